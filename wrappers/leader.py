"""The process between redirect-run and the command: leader of the session that the command's own terminal belongs to.

It must not be the command itself, because the end of a session's leader hangs up everything in the foreground: what
`sh -c 'backup &'` or `ssh -f` leave running.  And it cannot be redirect-run, which stays in the session of the shell.

Its end of the control socket says ``P<pid>`` once, ``S<status>`` of waitpid(2) whenever the command stops or ends.  It
is told by single bytes:

    f   put the command into the foreground of its terminal (the process group that was there)
    b   put it into the background
    c   let it go on (SIGCONT): only a process of the same session may do that to a command with other rights

When the socket is closed it ends, and the kernel hangs up what is in the foreground.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # see run.py
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import NoReturn


def lead(control: _socket.socket, slave: int, keep_stderr: bool, execute: Callable[[], NoReturn]) -> NoReturn:
    """In a process made for this.  keep_stderr: the command's stderr is none of the terminal's."""
    try:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        command = os.fork()
        if command == 0:
            _become(slave, keep_stderr, execute)
        _to_front(slave, command)
        _Leader(control, command).run()
    finally:
        os._exit(1)


def _become(slave: int, keep_stderr: bool, execute: Callable[[], NoReturn]) -> NoReturn:
    try:
        _to_front(slave, os.getpid())
        for fd in (0, 1) if keep_stderr else (0, 1, 2):
            os.dup2(slave, fd)
        execute()
    finally:
        os._exit(1)


def _to_front(slave: int, command: int) -> None:
    """The command has a process group of its own, in the foreground.  Leader and command both do it: neither waits."""
    before = _signal.signal(_signal.SIGTTOU, _signal.SIG_IGN)
    try:
        os.setpgid(command, command)
        os.tcsetpgrp(slave, command)
    except OSError:
        pass  # it has been done, and the command runs already or has ended
    _signal.signal(_signal.SIGTTOU, before)


class _Leader:
    def __init__(self, control: _socket.socket, command: int) -> None:
        self._control = control
        self._command = command
        self._front = command  # the process group to put into the foreground
        self._alive = True
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for signum in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTSTP, _signal.SIGTTOU):
            _signal.signal(signum, _signal.SIG_IGN)  # SIGTTOU: tcsetpgrp from the background
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        close_all_but({control.fileno(), self._woken, wake})
        control.sendall(b"P%d\n" % command)

    def run(self) -> None:
        import select

        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        self._reap()  # it may have ended before there was a handler
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready:
                told = self._control.recv(64)
                if not told:
                    return
                for each in told:
                    self._do(each)

    def _reap(self) -> None:
        while self._alive:
            pid, status = os.waitpid(self._command, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return
            if not os.WIFSTOPPED(status):
                self._alive = False
                self._background()  # children of the command are in its group: they are not to be hung up
            self._control.sendall(b"S%d\n" % status)

    def _do(self, what: int) -> None:
        if what == ord("b"):
            self._background()
        elif what == ord("f"):
            self._set(self._front)
        elif what == ord("c") and self._alive:
            try:
                os.killpg(self._command, _signal.SIGCONT)
            except OSError:
                return  # it has ended

    def _background(self) -> None:
        own = os.getpgrp()
        tty = self._open()
        if tty is None:
            return
        try:
            front = os.tcgetpgrp(tty)
            if front != own:
                self._front = front
            os.tcsetpgrp(tty, own)
        except OSError:
            return  # hung up
        finally:
            os.close(tty)

    def _set(self, group: int) -> None:
        tty = self._open()
        if tty is None:
            return
        try:
            os.tcsetpgrp(tty, group)
        except OSError:
            return  # hung up, or that group is gone
        finally:
            os.close(tty)

    def _open(self) -> int | None:
        """The terminal is not kept open: redirect-run sees by that whether the command's children use it."""
        try:
            return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None  # hung up


def close_all_but(kept: set[int]) -> None:
    """Files that were handed to the command are not held open: who waits for their end waits for the command's."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the one that listed them
