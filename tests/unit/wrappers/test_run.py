"""redirect-run: the command's exit status, what it sees, and what happens with and without a daemon."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon

import redirectctl
from redirectctl_wrappers import launcher
from redirectctl_wrappers.run import OPTIONS

MEBI = 1 << 20


def run(*argv: str | bytes, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, capture_output=True, timeout=180, check=False, **options)  # type: ignore[call-overload]


# --- exit status


def test_exit_statuses(redirect_run: str, daemon: FakeDaemon) -> None:
    loop = 'for i in $(seq 0 255); do "$1" sh -c "exit $i"; echo $?; done'
    result = run("sh", "-c", loop, "sh", redirect_run)
    assert result.stdout.split() == [b"%d" % i for i in range(256)]
    assert result.stderr == b""


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "XFSZ"])
def test_death_by_signal(redirect_run: str, daemon: FakeDaemon, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    kill = f"ulimit -c 0; kill -{name} $$"
    assert run(redirect_run, "sh", "-c", kill).returncode == -number
    assert run("sh", "-c", '"$@"; exit $?', "sh", redirect_run, "sh", "-c", kill).returncode == 128 + number


def test_signal_to_redirect_run_reaches_the_command(redirect_run: str, daemon: FakeDaemon) -> None:
    script = "trap 'echo got it; exit 7' USR1; echo ready; while :; do read line; done"
    with subprocess.Popen([redirect_run, "bash", "-c", script], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == b"got it\n"
        assert process.wait(60) == 7


@pytest.fixture
def oddities(tmp_path: Path) -> Path:
    """Commands that cannot be run, or only in the way a shell runs them."""
    files = {
        "plain": (0o644, b"#!/bin/sh\n"),
        "lost-interpreter": (0o755, b"#!/nonexistent/interpreter\n"),
        "no-shebang": (0o755, b'echo "$0" "$@"; exit 9\n'),
        "empty": (0o755, b""),
        "broken-elf": (0o755, b"\x7fELF\0\0\0\0rubbish\n"),
    }
    for name, (mode, content) in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(mode)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("missing", 127),
        ("missing/x", 127),
        ("plain", 126),
        ("plain/x", 126),
        ("folder", 126),
        ("loop", 126),
        ("lost-interpreter", 127),
        ("broken-elf", 126),
        ("no-shebang", 9),
        ("empty", 0),
    ],
)
def test_commands_that_cannot_run_as_bash_has_it(
    redirect_run: str, daemon: FakeDaemon, oddities: Path, name: str, status: int
) -> None:
    path = str(oddities / name)
    shell = run("bash", "-c", '"$@"', "bash", path, "a b")
    result = run(redirect_run, path, "a b")
    assert (result.returncode, result.stdout) == (shell.returncode, shell.stdout)
    assert result.returncode == status
    if status in (126, 127):
        assert result.stderr.startswith(f"redirect-run: {path}: ".encode())
        assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        ("{0}", "missing", 127),
        ("{0}", "", 127),
        ("{0}", "plain", 126),
        ("{0}", "folder", 127),
        ("{0}/plain:{0}", "no-shebang", 9),
        ("{0}:{0}/good", "plain", 3),
        (":/nonexistent", "no-shebang", 9),
        (None, "true", 0),
    ],
)
def test_search_along_path(
    redirect_run: str, daemon: FakeDaemon, oddities: Path, path: str | None, name: str, status: int
) -> None:
    (oddities / "good").mkdir()
    (oddities / "good/plain").write_bytes(b"#!/bin/sh\nexit 3\n")
    (oddities / "good/plain").chmod(0o755)
    environment = {"REDIRECTCTL_SOCKET": str(daemon.path)}
    if path is not None:
        environment["PATH"] = path.format(oddities)
    result = run(redirect_run, name, env=environment, cwd=oddities)
    assert result.returncode == status, result.stderr


# --- what the command sees

STARTS = ["launcher", "pip"]


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest, redirect_run: str) -> list[str]:
    """Both ways in which redirect-run is installed."""
    if request.param == "launcher":
        return [redirect_run]
    return [sys.executable, "-c", "import sys; from redirectctl_wrappers.run import main; sys.exit(main())"]


STATUS_LINES = ("Umask", "Uid", "Gid", "Groups", "Sig", "Shd", "Cap", "NoNewPrivs", "Seccomp")


def seen(prefix: list[str], *files: str, **options: object) -> dict[str, bytes]:
    """What `cat` sees in files of its own /proc/self; of status what the wrapper could have changed.

    `cat` by its path, as the prefix is: subprocess starts what has one by posix_spawn where it can (from Python 3.13 on
    with close_fds too), and that leaves signals 32 and 33 ignored (glibc, sysdeps/unix/sysv/linux/spawni.c).
    """
    cat = shutil.which("cat")
    assert cat is not None
    result: dict[str, bytes] = {}
    for file in files:
        completed = run(*prefix, cat, f"/proc/self/{file}", **options)
        assert completed.returncode == 0, completed.stderr
        lines = completed.stdout.splitlines(keepends=True)
        if file == "status":
            lines = [line for line in lines if line.decode().startswith(STATUS_LINES) and not line.startswith(b"SigQ")]
        result[file] = b"".join(lines)
    return result


def test_signals_limits_and_rights_are_the_same(start: list[str], daemon: FakeDaemon) -> None:
    def unusual() -> None:
        os.umask(0o027)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    files = ("status", "limits", "cmdline")
    assert seen(start, *files) == seen([], *files)
    assert seen(start, *files, preexec_fn=unusual) == seen([], *files, preexec_fn=unusual)
    assert daemon.callers, "redirect-run did not ask"


@pytest.mark.parametrize("ignored", ["", "PIPE", "XFSZ", "PIPE XFSZ INT QUIT"])
def test_signals_that_a_shell_ignores_stay_ignored(start: list[str], daemon: FakeDaemon, ignored: str) -> None:
    shell = ["sh", "-c", f"trap '' {ignored} TSTP\n" + '"$@"; exit $?', "sh"]
    with_it, without = seen([*shell, *start], "status"), seen(shell, "status")
    assert with_it == without


def test_sigpipe_ends_the_command(start: list[str], daemon: FakeDaemon) -> None:
    script = '"$@" yes | head -n 1 >/dev/null; echo "${PIPESTATUS[0]}"'
    assert run("bash", "-c", script, "bash", *start).stdout == b"141\n"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"LC_ALL": "C"},
        {"LC_CTYPE": "C"},
        {"LC_CTYPE": "POSIX", "LANG": "de_DE.UTF-8"},
        {"LC_CTYPE": "C.UTF-8"},
        {"LANG": ""},
        {"bytes": b"\xff\xfe not UTF-8", "with space": "x", "empty": "", "lines": "a\nb"},
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
    ],
)
def test_environment_is_the_same(
    start: list[str], daemon: FakeDaemon, changes: dict[str, str | bytes], tmp_path: Path
) -> None:
    environment = {"PATH": os.environ["PATH"], "REDIRECTCTL_SOCKET": str(daemon.path), **changes}
    assert seen(start, "environ", env=environment) == seen([], "environ", env=environment)


def test_python_variables_are_for_the_command_only(redirect_run: str, daemon: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("raise SystemExit('mine')")
    (tmp_path / "os.py").write_text("raise SystemExit('mine')")
    environment = {"PATH": os.environ["PATH"], "REDIRECTCTL_SOCKET": str(daemon.path)}
    environment |= {"PYTHONHOME": "/nonexistent", "PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": "/nonexistent"}
    there = {"env": environment, "cwd": tmp_path}
    assert seen([redirect_run], "environ", **there) == seen([], "environ", **there)
    assert daemon.callers, "redirect-run did not ask"


def test_arguments_come_through(start: list[str], daemon: FakeDaemon) -> None:
    arguments = [b"a b", b"", b"line\nline", b"\xff\x80", b"\xed\xa0\x80", b"--require", b"--", b"-x", "ü€𝄞".encode()]
    print_them = "import sys; sys.stdout.buffer.write(open('/proc/self/cmdline', 'rb').read())"
    result = run(*start, "--", sys.executable, "-c", print_them, *arguments)
    assert result.stdout.split(b"\0")[3:-1] == arguments


def test_descriptors_and_directory_are_the_same(start: list[str], daemon: FakeDaemon, tmp_path: Path) -> None:
    with (tmp_path / "extra").open("wb") as extra:
        number = extra.fileno()
        listing = ["sh", "-c", "pwd; cd /proc/self/fd; for f in *; do echo $f $(readlink $f); done"]
        options = {"cwd": tmp_path, "pass_fds": [number], "stdin": subprocess.DEVNULL}
        with_it, without = (
            subprocess.run([*prefix, *listing], stdout=-1, timeout=60, check=True, **options).stdout  # type: ignore[call-overload]
            for prefix in (start, [])
        )

    def stable(text: bytes) -> list[bytes]:  # the pipe of each run has its own number
        return [line.split(b"pipe:")[0] for line in text.splitlines()]

    assert stable(with_it) == stable(without)
    assert f"{number} {tmp_path}/extra".encode() in with_it


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_stay_closed(start: list[str], no_daemon: None, tmp_path: Path, closed: str) -> None:
    report = tmp_path / "report"
    command = ["sh", "-c", f"exec 3>{report}; ls /proc/self/fd >&3; exit 5"]
    shown = []
    for prefix in (start, []):
        assert run("sh", "-c", f'"$@" {closed}', "sh", *prefix, *command).returncode == 5
        shown.append(report.read_text())
    assert shown[0] == shown[1]


def test_same_process(redirect_run: str, daemon: FakeDaemon) -> None:
    with subprocess.Popen([redirect_run, "sh", "-c", "echo $$ $PPID"], stdout=-1) as process:
        output, _ = process.communicate(timeout=60)
    assert output.split() == [b"%d" % process.pid, b"%d" % os.getpid()]
    assert daemon.callers == [process.pid]
    assert [json.loads(request) for request in daemon.requests] == [{"type": "opt-in"}]


def test_binary_pipes_of_100_mb_both_ways(redirect_run: str, daemon: FakeDaemon) -> None:
    block = random.Random(1).randbytes(MEBI)
    sent, received = hashlib.sha256(), hashlib.sha256()
    with subprocess.Popen([redirect_run, "cat"], stdin=-1, stdout=-1, bufsize=0) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def feed() -> None:
            with stdin:
                for i in range(100):
                    data = i.to_bytes(4, "big") + block[4:]
                    sent.update(data)
                    rest = memoryview(data)
                    while rest:
                        rest = rest[stdin.write(rest) :]

        writer = threading.Thread(target=feed)
        writer.start()
        size = 0
        while chunk := stdout.read(MEBI):
            received.update(chunk)
            size += len(chunk)
        writer.join()
        assert process.wait(60) == 0
    assert size == 100 * MEBI
    assert received.digest() == sent.digest()


# --- children


@pytest.fixture
def own_cgroup() -> Path:
    """This process's folder in the cgroup2 hierarchy, when children can be made in it."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    if not roots or not os.access(path := Path(roots[0] + own), os.W_OK):
        pytest.skip("needs a cgroup2 hierarchy in which it may make a group")
    return path


def test_child_that_goes_into_the_background_stays_opted_in(
    redirect_run: str, daemon: FakeDaemon, own_cgroup: Path, tmp_path: Path
) -> None:
    group = own_cgroup / f"test-group-{os.getpid()}"

    def move(sock: socket.socket, pid: int) -> None:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
        sock.sendall(b'{"type":"opted-in"}\n')

    daemon.behaviour = move
    os.mkfifo(tmp_path / "go")
    os.mkfifo(tmp_path / "report")
    # As ssh -f: a child in a session of its own goes on after the command has ended.
    child = "read go <go; { echo $$; cat /proc/self/cgroup; read end <go; } >report"
    try:
        assert run(redirect_run, "sh", "-c", f"setsid sh -c '{child}' >/dev/null 2>&1 &", cwd=tmp_path).returncode == 0
        (tmp_path / "go").write_text("go\n")
        with (tmp_path / "report").open() as report:
            pid = int(report.readline())
            finished = os.pidfd_open(pid)
            (tmp_path / "go").write_text("end\n")
            cgroups = report.read()
        assert f"/{group.name}\n" in cgroups
        assert select.select([finished], [], [], 60)[0]
        os.close(finished)
    finally:
        group.rmdir()  # fails while somebody is left in it


# --- the daemon, or none


def test_without_a_daemon_one_warning_and_the_command_runs(start: list[str], no_daemon: None) -> None:
    result = run(*start, "sh", "-c", "echo out; exit 4")
    assert (result.returncode, result.stdout) == (4, b"out\n")
    assert result.stderr.startswith(b"redirect-run: sh runs unprotected: ")
    assert b"nobody.sock" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_require_without_a_daemon_runs_nothing(start: list[str], no_daemon: None, tmp_path: Path) -> None:
    result = run(*start, "--require", "touch", str(tmp_path / "made"))
    assert result.returncode == 125
    assert not (tmp_path / "made").exists()
    assert result.stderr.startswith(b"redirect-run: nothing was run: ")
    assert result.stderr.count(b"\n") == 1


def test_require_with_a_daemon(redirect_run: str, daemon: FakeDaemon) -> None:
    result = run(redirect_run, "--require", "echo", "hi")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hi\n", b"")


def test_socket_option_comes_before_the_variable(redirect_run: str, daemon: FakeDaemon) -> None:
    environment = os.environ | {"REDIRECTCTL_SOCKET": "/nonexistent"}
    for option in (["--socket", str(daemon.path)], [f"--socket={daemon.path}"]):
        result = run(redirect_run, *option, "true", env=environment)
        assert (result.returncode, result.stderr) == (0, b"")


def garbage(sock: socket.socket, pid: int) -> None:
    sock.sendall(b"\xff\0[1]{\n")


def no_object(sock: socket.socket, pid: int) -> None:
    sock.sendall(b"[[[]]]\n")


def something_else(sock: socket.socket, pid: int) -> None:
    sock.sendall(b'{"type":"status"}\n')


def endless(sock: socket.socket, pid: int) -> None:
    while True:
        sock.sendall(bytes(4096))


def hang_up(sock: socket.socket, pid: int) -> None:
    return


def refuse(sock: socket.socket, pid: int) -> None:
    sock.sendall(
        b'{"type":"error","code":"failed","what":"opt-in","why":"no \\u001b[2J cgroup2\\nhere","hint":"mount it"}\n'
    )


@pytest.mark.parametrize("behaviour", [garbage, no_object, something_else, endless, hang_up, refuse])
def test_daemon_that_does_not_take_it(redirect_run: str, daemon: FakeDaemon, behaviour: object) -> None:
    daemon.behaviour = behaviour  # type: ignore[assignment]
    result = run(redirect_run, "echo", "hi")
    assert (result.returncode, result.stdout) == (0, b"hi\n")
    assert result.stderr.startswith(b"redirect-run: echo runs unprotected: ")
    assert result.stderr.count(b"\n") == 1
    assert b"\x1b" not in result.stderr
    assert run(redirect_run, "--require", "echo", "hi").returncode == 125


def test_daemon_that_hangs_is_not_waited_for(redirect_run: str, daemon: FakeDaemon) -> None:
    def hang(sock: socket.socket, pid: int) -> None:
        daemon.stopping.wait()

    daemon.behaviour = hang
    result = run(redirect_run, "echo", "hi")
    assert (result.returncode, result.stdout) == (0, b"hi\n")
    assert b"did not answer" in result.stderr


def test_refusal_says_why(redirect_run: str, daemon: FakeDaemon) -> None:
    daemon.behaviour = refuse
    assert b"cgroup2" in run(redirect_run, "true").stderr


# --- the command line


@pytest.mark.parametrize(
    "arguments",
    [[], ["--"], ["--require"], ["--notify"], ["--notify", "loud", "true"], ["--socket"], ["--bogus", "true"], ["-x"]],
)
def test_wrong_usage(redirect_run: str, daemon: FakeDaemon, arguments: list[str]) -> None:
    result = run(redirect_run, *arguments)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"redirect-run: ")
    assert result.stderr.count(b"\n") == 1
    assert not daemon.callers


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["printf", "%s|", "--require", "--"], b"--require|--|"),
        (["--", "printf", "%s|", "--", "x"], b"--|x|"),
        (["--notify", "none", "--require", "printf", "%s|", "x"], b"x|"),
        (["--notify=inline", "--", "printf", "%s|", "x"], b"x|"),
        (["--notify", "title", "printf", "%s|", "--help"], b"--help|"),
    ],
)
def test_options_end_at_the_command(redirect_run: str, daemon: FakeDaemon, arguments: list[str], output: bytes) -> None:
    result = run(redirect_run, *arguments)
    assert (result.returncode, result.stdout, result.stderr) == (0, output, b"")


def test_keep_tells_ssh_and_nobody_else(redirect_run: str, daemon: FakeDaemon, tmp_path: Path) -> None:
    for name in ("ssh", "scp", "git"):
        (tmp_path / name).write_text('#!/bin/sh\nfor each; do printf "<%s>" "$each"; done\n')
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for name in ("ssh", "scp", str(tmp_path / "ssh")):
        result = run(redirect_run, "--keep", name, "server", "a b", env=environment)
        assert (result.stdout, result.stderr) == (b"<-o><ServerAliveInterval=0><server><a b>", b"")
        assert run(redirect_run, name, "server", env=environment).stdout == b"<server>"
    result = run(redirect_run, "--keep", "git", "fetch", env=environment)
    assert result.stdout == b"<fetch>"
    assert result.stderr == b"redirect-run: --keep cannot change time limits of git: only of ssh, scp and sftp\n"


def test_every_option_of_the_table_is_understood(redirect_run: str, daemon: FakeDaemon) -> None:
    for names, value, choices, _ in OPTIONS:
        for name in names:
            values = choices or (daemon.path,) if value else ()
            for words in [[name, v] for v in values] + [[f"{name}={v}"] for v in values] or [[name]]:
                result = run(redirect_run, *words, "true")
                told = b"--keep cannot change time limits of true" if name == "--keep" else b""
                assert (result.returncode, told in result.stderr, bool(told)) == (0, True, bool(result.stderr)), words


def test_help_and_version(redirect_run: str) -> None:
    shown = run(redirect_run, "--help")
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert shown.stdout.startswith(b"usage: redirect-run ")
    assert run(redirect_run, "--version").stdout.decode() == f"redirect-run {redirectctl.__version__}\n"


# --- its start


def test_start_imports_little(redirect_run: str) -> None:
    folders = [str(Path(launcher.__file__).parent), str(Path(redirectctl.__file__).parent.parent)]
    code = f"import sys; sys.path += {folders!r}; import run, redirectctl.api.optin; print(*sys.modules)"
    modules = set(run(sys.executable, "-IS", "-c", code).stdout.decode().split())
    assert "run" in modules
    assert modules.isdisjoint({"argparse", "asyncio", "msgspec", "pyroute2", "subprocess", "typing"})


@pytest.mark.parametrize("python", ["/with space/python", "/" + "x" * 130])
def test_launcher_refuses_what_a_shebang_cannot_say(python: str) -> None:
    with pytest.raises(ValueError, match="#! line"):
        launcher.script(python)


def test_launcher_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "redirect-run"
    target.write_text("old")
    assert run(sys.executable, "-m", "redirectctl_wrappers.launcher", str(target)).returncode == 0
    assert target.read_text() == launcher.script(sys.executable)
    assert [path.name for path in tmp_path.iterdir()] == ["redirect-run"]
    assert run(str(target), "--version").returncode == 0
