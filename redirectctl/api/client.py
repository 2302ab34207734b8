"""Talking to the daemon, synchronously: for the command line and for threads of the terminal UI."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self, TypeVar

from redirectctl.api import schema
from redirectctl.api.optin import API_VERSION, socket_path

REPLY_TIMEOUT: Final = 30.0  # seconds; closing a connection on both hosts and doctor's checks ask the other host

ReplyT = TypeVar("ReplyT", bound=schema.Reply)


class UnreachableError(Exception):
    """The daemon does not run, is not to be reached, stopped, or speaks another version."""

    def __init__(self, path: str, why: str, hint: str) -> None:
        super().__init__(f"{path}: {why}; {hint}")
        self.path = path
        self.why = why
        self.hint = hint


class Client:
    """One connection to the daemon.  Not for use by several threads at once."""

    def __init__(self, path: str | None = None, timeout: float = REPLY_TIMEOUT) -> None:
        """Connect.  path: as socket_path() takes it.  timeout: seconds for each reply.

        Raises UnreachableError, RequestError when the daemon has too many clients.
        """
        self.path = socket_path(path)
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that are known to hold no line break
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._connect()
            self._expect_hello()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def interrupt(self) -> None:
        """End what another thread waits for: its call() or events() raises UnreachableError."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def call(self, request: schema.Request, reply: type[ReplyT]) -> ReplyT:
        """Send a request, return its reply.

        Raises RequestError when the daemon says no, UnreachableError when it does not answer or not with `reply`.
        """
        self._send(request)
        answer = self._receive()
        if not isinstance(answer, reply):
            raise self._not_understood(f"{type(answer).__name__} instead of {reply.__name__}")
        return answer

    def events(self, *, follow: bool = False, since: float | None = None) -> Iterator[schema.Event]:
        """The event log, oldest first; with follow for ever.  Raises as call() does, UnreachableError if it stops."""
        self._send(schema.EventsRequest(follow=follow, since=since))
        timeout = self._socket.gettimeout()
        if follow:
            self._socket.settimeout(None)
        try:
            while True:
                answer = self._receive()
                if isinstance(answer, schema.EventsEnd):
                    return
                if not isinstance(answer, schema.EventReply):
                    raise self._not_understood(f"{type(answer).__name__} among events")
                yield answer.event
        finally:
            self._socket.settimeout(timeout)

    def _connect(self) -> None:
        try:
            self._socket.connect(self.path)
        except (FileNotFoundError, ConnectionRefusedError):
            raise UnreachableError(
                self.path,
                "no daemon listens there",
                f"`{_sudo()}systemctl start redirectd`, or name its socket with --socket",
            ) from None
        except PermissionError:
            raise UnreachableError(self.path, "permission denied", "allow access to the socket's directory") from None
        except OSError as error:
            raise UnreachableError(self.path, error.strerror or str(error), "name its socket with --socket") from None

    def _expect_hello(self) -> None:
        hello = self._receive()
        if not isinstance(hello, schema.Hello):
            raise self._not_understood(f"{type(hello).__name__} instead of Hello")
        if hello.api != API_VERSION:
            raise UnreachableError(
                self.path,
                f"redirectd {hello.version} speaks version {hello.api} of the interface, this program {API_VERSION}",
                "install the same version of both, and `systemctl restart redirectd`",
            )

    def _send(self, request: schema.Request) -> None:
        try:
            self._socket.sendall(schema.encode(request), socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            pass  # the daemon refused before it had read all; what it said is still to be read
        except OSError as error:
            raise self._lost(error) from None

    def _receive(self) -> schema.Reply:
        """The next reply; RequestError if it is an Error."""
        try:
            line = self._read_line()
        except OSError as error:
            raise self._lost(error) from None
        try:
            reply = schema.decode_reply(line)
        except ValueError as error:
            raise self._not_understood(str(error)) from None
        if isinstance(reply, schema.Error):
            raise schema.RequestError(reply.what, reply.why, reply.hint, reply.code)
        return reply

    def _read_line(self) -> bytes:
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > schema.MAX_REPLY:
                raise self._not_understood("an endless line")
            chunk = self._socket.recv(256 * 1024)
            if not chunk:
                raise UnreachableError(self.path, "the daemon ended the connection", "look into its log")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def _lost(self, error: OSError) -> UnreachableError:
        if isinstance(error, TimeoutError):
            return UnreachableError(self.path, "the daemon does not answer", "look into its log or restart it")
        return UnreachableError(self.path, f"the daemon ended the connection ({error})", "look into its log")

    def _not_understood(self, what: str) -> UnreachableError:
        return UnreachableError(
            self.path,
            f"the daemon's answer is not understood ({what})",
            "install the same version of both, and `systemctl restart redirectd`",
        )


class Unseen:
    """Tells new events from those of the moment `since`: a restarted daemon, asked from then, gives them again."""

    def __init__(self, since: float | None) -> None:
        """since: from when on events are wanted, None all."""
        self.since = since
        self._latest: list[schema.Event] = []  # of that moment, seen already

    def take(self, event: schema.Event) -> bool:
        """Whether it is new; now it is seen."""
        if event in self._latest:
            return False
        if event.time != self.since:
            self.since, self._latest = event.time, []
        self._latest.append(event)
        return True


def _sudo() -> str:
    """What a person has to put before a command of root."""
    return "" if os.geteuid() == 0 else "sudo "
