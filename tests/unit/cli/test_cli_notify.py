"""redirectctl notify on a real session bus, with a notification server of the test's."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus

from redirectctl.api.schema import EventName, PeersReply, Status, StatusReply, StatusRequest
from redirectctl.cli.common import ExitCode
from redirectctl.cli.notify import NAME

if TYPE_CHECKING:
    from conftest import FakeDaemon

PATIENCE = 30.0  # seconds
KEY = "SHA256:" + "k" * 43

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")


class Session:
    """A bus, and a server on it that notes what it is asked to show."""

    def __init__(self) -> None:
        argv = ["dbus-daemon", "--session", "--nofork", "--print-address"]
        self.bus = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.bus.stdout is not None
        self.address = self.bus.stdout.readline().strip()
        self.capabilities = ["body", "body-markup"]
        self.calls: queue.Queue[tuple[str, list[Any]]] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._connection: MessageBus | None = None

    def serve(self) -> None:
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(PATIENCE)

    async def _serve(self) -> None:
        self._connection = await MessageBus(bus_address=self.address).connect()
        self._connection.add_message_handler(self._answer)
        await self._connection.request_name(NAME)

    def _answer(self, message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.interface != NAME:
            return None
        member = str(message.member)
        self.calls.put((member, list(message.body)))
        signature, body = {
            "GetCapabilities": ("as", [self.capabilities]),
            "Notify": ("u", message.body[1:2] if message.body[1:2] != [0] else [7]),
            "CloseNotification": ("", []),
        }[member]
        return Message.new_method_return(message, signature, body)

    def call(self, member: str) -> list[Any]:
        """The next that was asked of the server."""
        name, body = self.calls.get(timeout=PATIENCE)
        assert name == member
        return body

    def end(self) -> None:
        self.bus.terminate()
        self.bus.wait(PATIENCE)

    def close(self) -> None:
        self.end()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


@pytest.fixture
def started(session: Session) -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(session: Session, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    environment = os.environ | {"DBUS_SESSION_BUS_ADDRESS": session.address}
    argv = [sys.executable, "-m", "redirectctl.cli.main", "notify"]
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
    started.append(process)
    return process


def status(**fields: Any) -> StatusReply:
    """What the daemon says of itself."""
    known = {"version": "0.1.0", "uptime": 1.0, "identity": KEY, "addresses": [], "control_port": 7747, "pid": 1}
    return StatusReply(Status(**known, connections={}, peers=0, **fields))


def wait(condition: Callable[[], bool], what: str) -> None:
    for _ in range(int(PATIENCE * 100)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"waited in vain: {what}")


def wait_follower(daemon: FakeDaemon) -> None:
    """Until somebody follows the daemon's events."""
    wait(daemon.followed, "a follower of the events")


def test_notices_are_shown_replaced_and_taken_away(
    daemon: FakeDaemon, session: Session, started: list[subprocess.Popen[str]]
) -> None:
    daemon.replies |= {"peers": PeersReply([]), "status": status()}
    session.serve()
    process = start(session, started)
    session.call("GetCapabilities")
    wait_follower(daemon)
    daemon.record(EventName.CONNECTION_SUSPENDED, connection="c1", command="vi <b>", remote="192.0.2.9:22")
    shown = session.call("Notify")
    assert (shown[0], shown[1], shown[3]) == ("redirectctl", 0, "No path for one connection")
    assert shown[4] == "Suspended until there is a path: vi &lt;b&gt; to 192.0.2.9:22"
    daemon.time += 5
    daemon.record(EventName.CONNECTION_RESUMED, connection="c1")
    again = session.call("Notify")
    assert (again[1], again[3]) == (7, "One connection back")
    assert again[6]["urgency"].value == 0
    daemon.record(EventName.PEER_FIRST_CONTACT, peer=KEY, address="192.0.2.9")
    assert session.call("Notify")[3] == "First contact with 192.0.2.9"
    daemon.record(EventName.PEER_APPROVED, peer=KEY)
    assert session.call("CloseNotification") == [7]
    session.end()
    assert process.wait(PATIENCE) == ExitCode.DONE


def test_the_configuration_switches_them_off_and_on(
    daemon: FakeDaemon, session: Session, started: list[subprocess.Popen[str]]
) -> None:
    daemon.replies |= {"peers": PeersReply([]), "status": status()}
    session.serve()
    start(session, started)
    session.call("GetCapabilities")
    wait_follower(daemon)
    daemon.record(EventName.CONNECTION_SUSPENDED, connection="c1", command="vi", remote="192.0.2.9:22")
    assert session.call("Notify")[3] == "No path for one connection"
    daemon.replies["status"] = status(desktop_notices=False)
    daemon.record(EventName.CONNECTION_SUSPENDED, connection="c2", command="vi", remote="192.0.2.9:22")
    assert session.call("CloseNotification") == [7]  # what is there goes, and nothing comes
    daemon.record(EventName.PEER_FIRST_CONTACT, peer=KEY, address="192.0.2.9")
    wait(lambda: sum(isinstance(request, StatusRequest) for request in daemon.asked) == 3, "a third look")
    daemon.replies["status"] = status(desktop_notices=True)
    daemon.record(EventName.CONNECTION_RESUMED, connection="c1")
    assert session.call("Notify")[3] == "No path for one connection"  # what happened meanwhile is known


def test_it_waits_for_a_daemon_that_is_not_there(
    daemon: FakeDaemon, session: Session, started: list[subprocess.Popen[str]]
) -> None:
    daemon.replies |= {"peers": PeersReply([]), "status": status()}
    daemon.stop()
    session.capabilities = ["body"]
    session.serve()
    start(session, started)
    session.call("GetCapabilities")
    daemon.start()
    wait_follower(daemon)
    daemon.record(EventName.CONNECTION_SUSPENDED, connection="c1", command="vi <b>", remote="192.0.2.9:22")
    assert session.call("Notify")[4] == "Suspended until there is a path: vi <b> to 192.0.2.9:22"


def complaint(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def test_without_a_notification_server(
    daemon: FakeDaemon, session: Session, started: list[subprocess.Popen[str]]
) -> None:
    code, said = complaint(start(session, started))
    assert code == ExitCode.FAILED
    assert re.fullmatch(r"redirectctl: notify: GetCapabilities: .*; is there a notification server.*\n", said)


def test_without_a_session(daemon: FakeDaemon, session: Session, started: list[subprocess.Popen[str]]) -> None:
    session.end()
    code, said = complaint(start(session, started))
    assert code == ExitCode.FAILED
    assert re.fullmatch(r"redirectctl: notify: no session bus: .*; run it in a desktop session\n", said)
