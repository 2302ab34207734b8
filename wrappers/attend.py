"""A command on a terminal of its own, while redirect-run stays between that and the person's.

    the person's terminal  <->  redirect-run (this module)  <->  pseudo-terminal  <->  command
                                     |        \\-- control -- leader.py, parent of the command
                                  daemon

Everything is passed on as it is.  The modes and the size of the person's terminal become those of the command's at the
beginning and after each stop, and the other way round when the command stops or ends.  So a program that changes them
changes what it would change without us; meanwhile the person's terminal passes on every byte.

When the command stops, we restore the terminal and stop with our process group, for the shell to see; when we go on, so
does the command, in the foreground or not.  In between, at moments when the terminal is between characters and
sequences (scanner.py), notices and questions are shown (display.py).

Keys are the command's until the person presses the one that a question has named, and while the command reads a
password they are always: what is typed for it must get nowhere else.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # see run.py
import os
import select
import termios
import time

from redirectctl_wrappers import leader, terminal
from redirectctl_wrappers.display import Display
from redirectctl_wrappers.limits import Inquiry
from redirectctl_wrappers.link import Link
from redirectctl_wrappers.terminal import KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

CHUNK: Final = 65536  # bytes read at once; a pseudo-terminal gives 4 KiB at most
BURST: Final = 16  # reads of output between two looks at everything else
MAX_TYPED: Final = 4096  # bytes that the command has not taken yet, as many as a terminal holds
REMEMBERED: Final = 4096  # bytes of what was typed last
LEAST_ROOM: Final = select.PIPE_BUF  # bytes that a pipe takes at once if it takes any
LOOK: Final = 0.25  # seconds between looks for what nothing announces: `fg` of a running job, a terminal opened again
BY_HAND: Final = b"~."  # typed to ssh, to end it
IN: Final = select.POLLIN | select.POLLHUP | select.POLLERR

# Signals that would end the command, or that it may be waiting for: whoever sends them to us means the command.
FORWARDED: Final = (
    _signal.SIGHUP,
    _signal.SIGINT,
    _signal.SIGQUIT,
    _signal.SIGTERM,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
    _signal.SIGALRM,
    _signal.SIGTSTP,
)


class CannotAttendError(Exception):
    """There is no terminal to be had: nothing has been started."""


def attend(
    daemon: tuple[_socket.socket, str | None], notify: str, command: list[str], execute: Callable[[], NoReturn]
) -> int:
    """Run a command on a terminal of its own; its exit status, or the end by the signal that ended it.

    daemon: a connection to it and the socket's path as given.  execute: becomes the command, in a new process.
    Raises CannotAttendError.
    """
    try:
        outer = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CannotAttendError from error
    try:
        modes = termios.tcgetattr(outer)
        winsize = terminal.size(outer)
        master, slave = os.openpty()
    except (OSError, termios.error) as error:
        os.close(outer)
        raise CannotAttendError from error
    attended = Attended(outer, master, slave, modes, winsize, notify, command)
    attended.start(daemon, execute)
    return attended.run()


class Attended:
    """The state of one attended command."""

    def __init__(
        self,
        outer: int,
        master: int,
        slave: int,
        modes: list[Any],
        winsize: bytes,
        notify: str,
        command: list[str],
    ) -> None:
        """outer: the person's terminal, opened for us alone; the rest as it was found there."""
        self._outer = outer
        self._master = master
        self._slave = slave
        self._name = os.ttyname(slave)
        self._winsize = winsize
        termios.tcsetattr(master, termios.TCSANOW, modes)
        terminal.set_size(master, winsize)
        os.set_blocking(master, False)
        self._command = command
        self._notify = notify
        self._foreground = True
        self._typed = b""  # for the command
        self._last_typed = b""
        self._output = b""  # for the person
        self._status: int | None = None
        self._pid = 0
        self._early: list[int] = []  # signals that came before there was a command
        self._told = b""  # a part of a line from the leader
        self._master_silent = False  # nobody has the command's terminal open at this moment
        self._hung_up = False

    # -- beginning ----------------------------------------------------------------------------------------------------

    def start(self, daemon: tuple[_socket.socket, str | None], execute: Callable[[], NoReturn]) -> None:
        """Start the command; then everything is closed that was opened for it."""
        import _socket

        sock, path = daemon
        self._control, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        here, stderr = os.fstat(0).st_rdev, _terminal_behind(2)
        _name_terminal(self._slave)
        if os.fork() == 0:
            leader.lead(theirs, self._slave, stderr != here, execute)
        theirs.close()
        os.close(self._slave)
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        kept = {0, 1, 2, self._outer, self._master, self._control.fileno(), self._woken, wake, sock.fileno()}
        leader.close_all_but(kept)
        for signum in (*FORWARDED, _signal.SIGWINCH, _signal.SIGCONT):
            if _signal.getsignal(signum) is not _signal.SIG_IGN:
                _signal.signal(signum, lambda *_: None)
        _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._link = Link(path, sock)
        self._display = Display(self._notify, self._command, path, terminal.is_simple())
        self._display.resize(self._winsize)
        self._inquiry = Inquiry(self._command if self._notify != "none" else [""])
        self._take_over()
        if terminal.size(self._outer) != self._winsize:
            self._resize()  # it was changed before there was a handler

    def run(self) -> int:
        """Until the command has ended; see attend()."""
        self._poll = select.poll()
        self._registered: dict[int, int] = {}
        while self._status is None:
            self._turn()
        self._finish()
        return _as_the_command(self._status)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        self._register()
        for fd, events in self._poll.poll(self._timeout(now)):
            if fd == self._master:
                if events & select.POLLOUT:
                    self._give_typed()
                if events & IN:
                    self._take_output()
            elif fd == self._outer:
                if events & select.POLLOUT:
                    self._give_output()
                if events & IN:
                    self._take_typed()
            elif fd == self._woken:
                self._on_signals(os.read(self._woken, 4096))
            elif fd == self._control.fileno():
                self._on_told()
            elif fd == self._inquiry.fd:
                self._on_answer(time.monotonic())
            else:
                self._on_daemon(time.monotonic())
        self._look_around(time.monotonic())

    def _register(self) -> None:
        """Wait for what can be used."""
        wanted = {self._control.fileno(): select.POLLIN, self._woken: select.POLLIN}
        if self._link.fd is not None:
            wanted[self._link.fd] = select.POLLIN
        if self._inquiry.fd is not None:
            wanted[self._inquiry.fd] = select.POLLIN
        if not self._hung_up:
            reading = self._foreground and self._pid and len(self._typed) < MAX_TYPED
            outer = (select.POLLIN if reading else 0) | (select.POLLOUT if self._output else 0)
            if outer:
                wanted[self._outer] = outer
            if not self._master_silent:
                room = not self._output and self._display.has_room()
                inner = (select.POLLIN if room else 0) | (select.POLLOUT if self._typed else 0)
                if inner:
                    wanted[self._master] = inner
        if wanted != self._registered:
            for fd in self._registered.keys() - wanted.keys():
                self._poll.unregister(fd)
            for fd, events in wanted.items():
                self._poll.register(fd, events)
            self._registered = wanted

    def _timeout(self, now: float) -> float | None:
        """Milliseconds."""
        possible = (self._link.retry_at, self._inquiry.deadline, self._display.next_at(now))
        moments = [at for at in possible if at is not None]
        if not self._foreground or self._master_silent:
            moments.append(now + LOOK)
        return max(0.0, min(moments) - now) * 1000 + 1 if moments else None

    def _look_around(self, now: float) -> None:
        if self._link.retry_at is not None and now >= self._link.retry_at:
            self._link.retry(now)
        if self._inquiry.deadline is not None and now >= self._inquiry.deadline:
            self._on_answer(now)
        if self._master_silent:
            self._master_silent = not self._readable()
        if not self._foreground and not self._hung_up and self._in_front():
            self._enter()
            self._tell(b"f")
        if self._foreground and not self._output:
            self._write(self._display.tick(now, secret=self._display.unannounced and self._reads_secret()))

    def _on_daemon(self, now: float) -> None:
        alive, reply = self._link.read(now)
        if reply is not None:
            self._write(self._display.update(now, reply, secret=self._reads_secret()))
        elif not alive:
            self._write(self._display.forget(now, stopped=self._link.retry_at is not None))

    def _on_answer(self, now: float) -> None:
        """ssh has said something about itself."""
        inquiry = self._inquiry
        if not inquiry.read():
            return
        self._write(self._display.learn(now, ends_after=inquiry.ends_after, master=inquiry.master))
        if inquiry.master:
            self._link.ask_about(now, inquiry.master)

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _take_output(self) -> None:
        """From the command to the person."""
        for _ in range(BURST):
            try:
                data = os.read(self._master, CHUNK)
            except BlockingIOError:
                return
            except OSError:  # EIO: nobody has it open
                self._master_silent = True
                return
            self._write(self._display.pass_on(data))
            if self._display.asking and self._reads_secret():  # what it has written is its question
                self._write(self._display.withdraw())
            if self._output or not self._display.has_room():
                return

    def _write(self, data: bytes) -> None:
        if self._hung_up or not data:
            return
        if self._output:
            self._output += data
            return
        try:
            written = os.write(self._outer, data)
        except BlockingIOError:
            written = 0
        except OSError:
            self._hang_up()
            return
        self._output = data[written:]

    def _give_output(self) -> None:
        data, self._output = self._output, b""
        self._write(data)

    def _take_typed(self) -> None:
        """From the person to the command, or to a question that is shown."""
        try:
            data = os.read(self._outer, MAX_TYPED)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        display = self._display
        secret = (display.asking or display.waiting) and self._reads_secret()
        if display.asking and secret:
            self._write(display.withdraw())
        if not data:
            self._hang_up()
        elif display.asking:
            written, left = display.press(time.monotonic(), data)
            self._write(written)
            self._pass_on(left)
        elif display.waiting and not secret and data in KEYS:  # alone: not as a part of what is pasted
            self._write(display.open())
        else:
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        """To the command."""
        if data:
            self._typed += data
            self._last_typed = (self._last_typed + data)[-REMEMBERED:]
            self._give_typed()

    def _reads_secret(self) -> bool:
        """Whether the command reads a line that is not to be seen, as getpass(3) does.

        Of what is read at the other end of a session nothing is to be known: ssh keeps its terminal raw.
        """
        try:
            modes = termios.tcgetattr(self._master)[3]
        except (OSError, termios.error):
            return False
        return bool(modes & termios.ICANON) and not modes & termios.ECHO

    def _give_typed(self) -> None:
        try:
            written = os.write(self._master, self._typed)
        except BlockingIOError:
            return
        except OSError:  # nobody has it open
            written = len(self._typed)
        self._typed = self._typed[written:]

    def _readable(self) -> bool:
        """Whether somebody has the command's terminal open, or has written to it before closing it."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        ready = poll.poll(0)
        return not ready or bool(ready[0][1] & select.POLLIN)

    # -- signals and stops --------------------------------------------------------------------------------------------

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == _signal.SIGWINCH:
                self._resize()
            elif number == _signal.SIGCONT:
                self._continued()
            else:
                self._forward(number)

    def _forward(self, number: int) -> None:
        if not self._pid:
            self._early.append(number)
            return
        try:
            os.kill(self._pid, number)
        except OSError:
            return  # it has ended, or got rights that we have not

    def _resize(self) -> None:
        if self._hung_up or not self._foreground:
            return
        self._winsize = terminal.size(self._outer)
        terminal.set_size(self._master, self._winsize)
        self._write(self._display.resize(self._winsize))

    def _on_told(self) -> None:
        """The leader has something to say."""
        data = self._control.recv(4096)
        if not data:  # somebody has killed it, and so hung up
            self._status = self._status if self._status is not None else _signal.SIGHUP
            return
        *lines, self._told = (self._told + data).split(b"\n")
        for line in lines:
            number = int(line[1:])
            if line[:1] == b"P":
                self._pid = number
                for early in self._early:
                    self._forward(early)
            elif os.WIFSTOPPED(number):
                self._stop(os.WSTOPSIG(number))
            else:
                self._status = number

    def _stop(self, signum: int) -> None:
        """The command has stopped: the shell is to see us stop in the same way."""
        if signum in (_signal.SIGTTIN, _signal.SIGTTOU) and not self._foreground and self._in_front():
            self._go_on()  # it was quicker than we: `fg` has been typed
            return
        self._flush()
        self._write(self._display.withdraw())
        self._leave()
        before = time.monotonic()
        if signum in (_signal.SIGTSTP, _signal.SIGTTIN, _signal.SIGTTOU):
            kept = _signal.signal(signum, _signal.SIG_DFL)
            os.kill(0, signum)  # as the terminal does it, to the whole job
            _signal.signal(signum, kept)
        else:
            os.kill(os.getpid(), _signal.SIGSTOP)
        if time.monotonic() - before < 0.01:
            time.sleep(0.1)  # nobody could be there to let us go on (an orphaned group): do not try for ever
        self._go_on()

    def _go_on(self) -> None:
        if self._hung_up or self._status is not None:
            return
        if self._in_front():
            self._enter()
            self._tell(b"f")
        else:
            self._tell(b"b")
        self._tell(b"c")

    def _continued(self) -> None:
        """SIGCONT: after _stop, or somebody had stopped us alone, and a shell may have taken the terminal meanwhile."""
        if not self._foreground or self._hung_up:
            return
        if not self._in_front():
            self._foreground = False
            self._tell(b"b")
            return
        try:
            termios.tcsetattr(self._outer, termios.TCSANOW, terminal.raw(termios.tcgetattr(self._master)))
        except (OSError, termios.error):
            self._hang_up()

    def _in_front(self) -> bool:
        try:
            return os.tcgetpgrp(self._outer) == os.getpgrp()
        except OSError:
            return False

    def _tell(self, what: bytes) -> None:
        import _socket

        try:
            self._control.send(what, _socket.MSG_NOSIGNAL)
        except OSError:
            return  # its end is reported by _on_told

    def _enter(self) -> None:
        """The person's terminal is ours: its modes are the command's from now on."""
        try:
            modes = termios.tcgetattr(self._outer)
            termios.tcsetattr(self._master, termios.TCSANOW, modes)
            self._winsize = terminal.size(self._outer)
            terminal.set_size(self._master, self._winsize)
        except (OSError, termios.error):
            self._hang_up()
            return
        self._take_over()

    def _take_over(self) -> None:
        """Of the person's terminal only: at the beginning the command may have changed its own already."""
        try:
            termios.tcsetattr(self._outer, termios.TCSANOW, terminal.raw(termios.tcgetattr(self._outer)))
        except (OSError, termios.error):
            self._hang_up()
            return
        self._foreground = True
        self._write(self._display.resize(self._winsize))

    def _leave(self) -> None:
        """The person's terminal has the modes and the size that the command has given its own."""
        if not self._foreground or self._hung_up:
            return
        self._foreground = False
        try:
            modes = termios.tcgetattr(self._master)
            termios.tcsetattr(self._outer, termios.TCSANOW, modes)
            modes[1] &= ~termios.OPOST  # the person's terminal does that again
            termios.tcsetattr(self._master, termios.TCSANOW, modes)
            if (winsize := terminal.size(self._master)) != self._winsize:
                terminal.set_size(self._outer, winsize)
        except (OSError, termios.error):
            return  # it is gone

    def _hang_up(self) -> None:
        """The person's terminal is gone; so is the command's, then."""
        if self._hung_up:
            return
        self._hung_up = True
        self._output = self._typed = b""
        self._forward(_signal.SIGHUP)
        os.close(self._master)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """What the command has written up to now is shown, however slow the terminal is."""
        self._write(self._display.withdraw())
        while not self._hung_up:
            if self._output:
                self._wait_for(self._outer, select.POLLOUT)
                self._give_output()
                continue
            if self._master_silent:
                return
            if not self._wait_for(self._master, select.POLLIN, 0):
                return
            self._take_output()

    def _wait_for(self, fd: int, events: int, timeout: int | None = None) -> bool:
        poll = select.poll()
        poll.register(fd, events)
        return bool(poll.poll(timeout))

    def _finish(self) -> None:
        self._master_silent = False
        self._flush()
        self._write(self._display.end())
        self._flush()
        lingering = not self._hung_up and not self._master_silent
        if not lingering:
            self._give_back()
        in_front = self._foreground and not self._hung_up
        self._leave()
        self._link.close()
        self._inquiry.close()
        if in_front and not lingering:
            self._say_last_words()
        if lingering and os.fork() == 0:
            self._linger()

    def _say_last_words(self) -> None:
        """Once the terminal is as it was: on stderr, wherever that leads."""
        status = self._status or 0
        exit_status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        by_hand = self._last_typed.endswith(BY_HAND)
        lines = self._display.last_words(time.monotonic(), exit_status, by_hand=by_hand)
        text = "".join(f"redirect-run: {line}\n" for line in lines)
        if lines and self._display.within_a_line and _terminal_behind(2) is not None:
            text = "\n" + text
        try:
            if self._wait_for(2, select.POLLOUT, 0):  # else nobody reads it: the exit status does not wait for that
                os.write(2, text.encode(errors="replace")[:LEAST_ROOM])
        except OSError:
            return  # it is closed: nobody can be told

    def _give_back(self) -> None:
        """What was typed ahead and the command has not read is for whoever reads the terminal next, as a rule a shell.

        Only what is known to have been typed: a command could put other things into its own terminal.
        """
        import fcntl

        if not self._foreground or not self._last_typed:
            return
        try:
            slave = os.open(self._name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            return
        try:
            shown = termios.tcgetattr(slave)
            termios.tcsetattr(slave, termios.TCSANOW, terminal.raw(shown))
            try:
                left = os.read(slave, REMEMBERED)
            finally:
                termios.tcsetattr(slave, termios.TCSANOW, shown)
            if left and self._last_typed.replace(b"\r", b"\n").endswith(left.replace(b"\r", b"\n")):
                for number in left:
                    fcntl.ioctl(self._outer, termios.TIOCSTI, bytes([number]))
        except (OSError, termios.error):
            return  # nothing was left, or this system does not let anybody do that
        finally:
            os.close(slave)

    def _linger(self) -> NoReturn:
        """Children of the command use its terminal still: what they write is shown as it would be without us."""
        for signum in (*FORWARDED, _signal.SIGWINCH, _signal.SIGCONT):
            _signal.signal(signum, _signal.SIG_DFL)
        try:
            while not self._hung_up and not self._master_silent:
                self._wait_for(self._outer if self._output else self._master, select.POLLOUT if self._output else IN)
                if self._output:
                    self._give_output()
                else:
                    self._take_output()
        finally:
            os._exit(0)


def _terminal_behind(fd: int) -> int | None:
    """Which terminal a file is."""
    try:
        return os.fstat(fd).st_rdev if os.isatty(fd) else None
    except OSError:
        return None


def _name_terminal(slave: int) -> None:
    """GPG_TTY names the terminal that a passphrase may be asked for on."""
    if "GPG_TTY" in os.environ and os.environ["GPG_TTY"] == os.ttyname(0):
        os.environ["GPG_TTY"] = os.ttyname(slave)


def _as_the_command(status: int) -> int:
    """The exit status; does not return when a signal ended the command."""
    if os.WIFSIGNALED(status):
        import resource

        signum = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # its is enough
        if signum not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(signum, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [signum])
        os.kill(os.getpid(), signum)
        return 128 + signum  # not reached but for a signal that does not end a process by default
    return os.WEXITSTATUS(status)
