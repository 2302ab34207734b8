"""redirect-run: asks the daemon to opt this process in, then becomes the command.

The daemon moves this process into a cgroup of its own; the command inherits that, and so do its children.  Because
the command replaces this process (execve), its arguments, descriptors, terminal, job control, signals and exit status
are its own and nothing is relayed.  What is left to do is to undo the traces of Python's start: two signals that it
ignores and the variable LC_CTYPE.  Only in the foreground of a terminal, where a person can be asked and told, the
command is started on a terminal of its own instead (attend.py).

Only built-in modules are imported before they are needed: the start is what a person waits for (tests/bench).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C half of signal, which would import enum (3 ms)
import errno
import os
import sys

TYPE_CHECKING = False  # as typing's: importing that takes 5 ms
if TYPE_CHECKING:
    from typing import Final, NoReturn

# The options before COMMAND: names, what stands for the value ("": the option takes none), the values to choose from
# (none: any), what it does.  The help, the parser below and the completions of the shells are made from this table.
OPTIONS: Final = (
    (("--require",), "", (), "run nothing (exit 125) when the connections cannot be protected"),
    (
        ("--notify",),
        "HOW",
        ("title", "inline", "none"),
        "how to tell on a terminal what is protected and what is not: title, inline or none",
    ),
    (("--plain",), "", (), "no notices, no questions: COMMAND gets this terminal itself"),
    (("--keep",), "", (), "ssh, scp, sftp: no time limit of their own in an outage (ServerAliveInterval=0)"),
    (("--socket",), "PATH", (), "the daemon's socket (else $REDIRECTCTL_SOCKET, else the default)"),
    (("--version",), "", (), "print the version and exit"),
    (("--help", "-h"), "", (), "print this and exit"),
)
TAKE_A_VALUE: Final = frozenset(name for names, value, _, _ in OPTIONS if value for name in names)
NOTIFY: Final = frozenset(next(choices for names, _, choices, _ in OPTIONS if "--notify" in names))


def _described() -> str:
    rows = [(f"{', '.join(names)} {value}".rstrip(), text) for names, value, _, text in OPTIONS]
    return "".join(f"  {option:<15}  {text}\n" for option, text in rows)


USAGE: Final = f"""\
usage: redirect-run [--require] [--notify title|inline|none] [--plain] [--keep] [--socket PATH] [--] COMMAND [ARG...]

Runs COMMAND so that its TCP connections, and those of its children, survive address changes.

{_described()}
The exit status is COMMAND's; 125: --require failed; 126: not executable; 127: not found; 2: wrong usage.
"""

EXIT_USAGE: Final = 2
EXIT_NOT_PROTECTED: Final = 125
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127

# Python ignores these from its first moment on (signal_install_handlers) and keeps no note of what it found.
IGNORED_BY_PYTHON: Final = (_signal.SIGPIPE, _signal.SIGXFSZ)
# Programs whose children ignore what they ignore themselves.  Most others that ignore SIGPIPE (Python, sshd, tmux,
# node) put the default back in their children.
PASSES_IGNORED_ON: Final = frozenset({"ash", "bash", "busybox", "dash", "fish", "ksh", "mksh", "sh", "systemd", "zsh"})
BINARY_SAMPLE: Final = 80  # bytes that bash looks at (execute_cmd.c, check_binary_file)


class Options:
    """What the command line says.  Parsed by hand: argparse takes 8 ms, and options after COMMAND are not ours."""

    def __init__(self) -> None:
        self.require = False
        self.plain = False
        self.keep = False
        self.notify = "title"
        self.socket: str | None = None
        self.command: list[str] = []


class UsageError(Exception):
    """The command line is wrong; the text says how."""


def parse(arguments: list[str]) -> Options:
    """Read the arguments after the program's name.  Raises UsageError."""
    options = Options()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument == "--":
            options.command = list(rest)
        elif argument == "--require":
            options.require = True
        elif argument == "--plain":
            options.plain = True
        elif argument == "--keep":
            options.keep = True
        elif name in TAKE_A_VALUE:
            if not equals and (value := next(rest, "")) == "":
                raise UsageError(f"{name} needs a value")
            if name == "--socket":
                options.socket = value
            elif value not in NOTIFY:
                raise UsageError(f"--notify {value}: not one of title, inline, none")
            else:
                options.notify = value
        elif argument.startswith("-") and argument != "-":
            raise UsageError(f"{argument}: no such option; write -- before a command that begins with -")
        else:
            options.command = [argument, *rest]
    if not options.command:
        raise UsageError("no command given")
    return options


def main() -> int:
    """Become the command.  Returns an exit status only when there is nothing to run or it cannot be run."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C ends us as it would end the command
    if sys.argv[1:2] in (["--help"], ["-h"], ["--version"]):
        return _print_about(sys.argv[1])
    try:
        options = parse(sys.argv[1:])
    except UsageError as error:
        _complain(f"{error}; see redirect-run --help")
        return EXIT_USAGE
    if options.keep:
        _keep(options)
    why, status = _run(options)
    if why is not None and options.require:
        _complain(f"nothing was run: {why}")
        return EXIT_NOT_PROTECTED
    if why is not None:
        _complain(f"{options.command[0]} runs unprotected: {why}")
    return status if status is not None else _become(options.command)


def _keep(options: Options) -> None:
    from redirectctl_wrappers.limits import kept

    command = kept(options.command)
    if command is not None:
        options.command = command
    else:
        _complain(f"--keep cannot change time limits of {options.command[0]}: only of ssh, scp and sftp")


def _become(command: list[str]) -> int:
    """Be the command from now on; a status if it cannot be executed."""
    _restore_signals()
    _restore_locale()
    try:
        _execute(command)
    except OSError as error:
        return _explain(command[0], error)


def _run(options: Options) -> tuple[str | None, int | None]:
    """Opt in: why that failed.  Where the command was attended, its exit status."""
    from redirectctl.api.optin import OptInError, opt_in_and_stay

    try:
        sock, asks = opt_in_and_stay(options.socket)
    except OptInError as error:
        return str(error) or "the daemon refused", None
    from redirectctl_wrappers import terminal

    if options.plain or (options.notify == "none" and not asks) or not terminal.can_attend():
        sock.close()
        return None, None
    from redirectctl_wrappers.attend import CannotAttendError, attend

    def execute() -> NoReturn:
        os._exit(_become(options.command))

    try:
        return None, attend((sock, options.socket), options.notify, options.command, execute)
    except CannotAttendError:
        return None, None


def _print_about(option: str) -> int:
    if option == "--version":
        from redirectctl import __version__

        text = f"redirect-run {__version__}\n"
    else:
        text = USAGE
    try:
        os.write(1, text.encode())
    except OSError:
        return 1
    return 0


def _complain(text: str) -> None:
    """One line on stderr whatever the text holds.  Not through sys.stderr: it may be closed, which stops nothing."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    try:
        os.write(2, f"redirect-run: {line}\n".encode())
    except OSError:
        return  # nobody can be told; the exit status still says it


def _restore_signals() -> None:
    kept = _ignored_by_parent()
    for signum in IGNORED_BY_PYTHON:
        if not kept >> (signum - 1) & 1:
            _signal.signal(signum, _signal.SIG_DFL)


def _ignored_by_parent() -> int:
    """Signals that we were most likely started with as ignored: SigIgn of proc(5), bit n-1 for signal n."""
    parent = f"/proc/{os.getppid()}"
    try:
        with open(f"{parent}/status", "rb") as file:
            status = dict(line.split(b":", 1) for line in file.read().splitlines())
        ignored = int(status[b"SigIgn"], 16)
    except (OSError, KeyError, ValueError):
        return 0
    try:
        name = os.path.basename(os.readlink(f"{parent}/exe"))
    except OSError:  # another user's process, such as the system's systemd
        name = os.fsdecode(status[b"Name"].strip())  # of a script its own, not the shell's
    return ignored if name in PASSES_IGNORED_ON else 0


def _restore_locale() -> None:
    """Undo Python's coercion of the C locale (PEP 538), which changes LC_CTYPE in the environment."""
    if os.environ.get("LC_CTYPE") not in {"C.UTF-8", "C.utf8", "UTF-8"}:
        return
    try:
        with open("/proc/self/environ", "rb") as file:
            initial = file.read().split(b"\0")  # what execve gave us: setenv does not write there
    except OSError:
        return
    for entry in initial:
        if entry.startswith(b"LC_CTYPE="):
            os.environb[b"LC_CTYPE"] = entry.removeprefix(b"LC_CTYPE=")
            return
    del os.environ["LC_CTYPE"]


def _execute(command: list[str]) -> NoReturn:
    """Become the command, found as a shell would find it.  Raises OSError, the first that is worth telling.

    os.execv and not execve with os.environ: the environment of the C library also keeps entries without ``=`` and
    repeated ones.
    """
    name = command[0]
    denied: OSError | None = None
    for path in [name] if "/" in name else _candidates(name):
        try:
            os.execv(path, command)
        except OSError as error:
            if error.errno == errno.ENOEXEC and not _is_binary(path):
                os.execv("/bin/sh", ["/bin/sh", path, *command[1:]])  # a script without #!, as execvp(3) does
            if error.errno == errno.EACCES and os.path.isdir(path):
                error = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if "/" in name:
                raise error from None
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}:
                denied = denied or error
    raise denied or FileNotFoundError(errno.ENOENT, "command not found")


def _candidates(name: str) -> list[str]:
    """Where PATH says that a command without a slash may be.  An empty entry of PATH is the working directory."""
    return [os.path.join(directory, name) for directory in os.get_exec_path()] if name else []


def _is_binary(path: str) -> bool:
    """Whether a file that the kernel does not recognise is no script either: a NUL in its first line."""
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(BINARY_SAMPLE).partition(b"\n")[0]
    except OSError:
        return True


def _explain(name: str, error: OSError) -> int:
    _complain(f"{name}: {error.strerror}")
    return EXIT_NOT_FOUND if error.errno == errno.ENOENT else EXIT_NOT_EXECUTABLE
