"""The server on a real Unix socket, with raw sockets and processes of other users as clients."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

from redirectctl.api import schema
from redirectctl.api.client import Client
from redirectctl.api.optin import OptInError, opt_in
from redirectctl.daemon import apiserver
from redirectctl.daemon.apiserver import ROUTES, ApiError, ApiServer, Caller, Refusal, Right, Service
from redirectctl.daemon.eventlog import QUEUE, EventLog
from redirectctl.daemon.slots import Slots
from redirectctl.kernel.processes.pidfd import Pidfd

NOBODY = 65534

STATUS = schema.Status(
    version="1",
    uptime=1.0,
    identity="SHA256:x",
    addresses=[],
    control_port=7747,
    connections={},
    peers=0,
    pid=1,
)


class FakeService:
    """Remembers who asked for what, answers with what it is given."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, Caller]] = []
        self.replies: dict[str, Any] = {
            "status": schema.StatusReply(STATUS),
            "opt_in": schema.OptedIn(),
            "announce": schema.AnnounceReply(2),
        }
        self.watch = schema.WatchReply(connections=[], questions=[])
        self.watchers: list[tuple[Caller, bool]] = []

    async def begin_watch(self, request: schema.WatchRequest, caller: Caller) -> None:
        pass

    def watched(self, request: schema.WatchRequest, caller: Caller, may_decide: bool) -> schema.WatchReply:
        self.watchers.append((caller, may_decide))
        return self.watch

    def __getattr__(self, name: str) -> Callable[[Any, Caller], Coroutine[Any, Any, Any]]:
        async def answer(request: Any, caller: Caller) -> Any:
            self.asked.append((name, request, caller))
            reply = self.replies[name]
            if isinstance(reply, BaseException):
                raise reply
            return reply

        return answer


class Bench:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "run" / "d.sock"
        self.service = FakeService()
        self.log = EventLog(directory, lambda: 1000.0)

    @contextlib.asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[ApiServer]:
        server = ApiServer(cast(Service, self.service), self.log, "9.9", **options)
        await server.start(self.path)
        try:
            yield server
        finally:
            await server.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        assert json.loads(await reader.readline()) == {"type": "hello", "version": "9.9", "api": 1}
        return reader, writer

    async def say(self, sent: bytes) -> list[Any]:
        """All that is answered to this and the end of input."""
        reader, writer = await self.connect()
        writer.write(sent)
        writer.write_eof()
        answers = [json.loads(line) for line in (await reader.read()).splitlines()]
        writer.close()
        return answers


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    # Users without rights must be able to get at the socket: pytest's directories are closed to them.
    directory = Path(f"/tmp/redirectctl-test-{os.getpid()}")
    directory.mkdir(mode=0o755)
    bench = Bench(directory)
    yield bench
    bench.log.close()
    assert not bench.path.exists()
    shutil.rmtree(directory)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """None can be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.args[1] for record in caplog.records if isinstance(record.args, tuple) and len(record.args) > 1]


async def as_nobody(program: str, *arguments: str) -> tuple[int, str]:
    """Run Python code as another user; its status and output."""
    drop = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    imports = "import socket, sys\nfrom redirectctl.api.client import *\nfrom redirectctl.api.schema import *\n"
    imports += "from redirectctl.api.optin import *\nimport argparse, asyncio, json\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", imports + drop + program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


SAY = """
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
lines = s.makefile()
lines.readline()  # hello
s.sendall(json.dumps({"type": sys.argv[2]}).encode() + b"\\n")
print(lines.readline().strip())
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def test_every_request_has_a_route_and_only_four_are_for_anybody():
    requests = set(schema.Request.__args__)
    assert set(ROUTES) == requests
    assert {kind for kind, route in ROUTES.items() if route.right is Right.ANYBODY} == {
        schema.StatusRequest,
        schema.IdentityRequest,
        schema.OptInRequest,
        schema.WatchRequest,
    }
    for kind, route in ROUTES.items():
        assert kind is schema.EventsRequest or hasattr(Service, route.method)


def test_requests_are_answered_in_order(bench: Bench):
    async def check() -> None:
        async with bench.serving():
            bench.service.replies["release"] = schema.RequestError("release", "no such connection", "see conns")
            assert await bench.say(
                b'{"type":"announce"}\n{"type":"release","connection":"x"}\n{"type":"announce"}\n'
            ) == [
                {"type": "announce", "peers": 2},
                {
                    "type": "error",
                    "code": "failed",
                    "what": "release",
                    "why": "no such connection",
                    "hint": "see conns",
                },
                {"type": "announce", "peers": 2},
            ]
        name, request, caller = bench.service.asked[1]
        assert (name, request) == ("release", schema.ReleaseRequest("x"))
        assert (caller.pid, caller.uid) == (os.getpid(), os.geteuid())

    asyncio.run(check())


def test_a_handler_that_fails_is_an_error_not_the_end(bench: Bench, caplog: pytest.LogCaptureFixture):
    async def check() -> None:
        bench.service.replies["peers"] = ZeroDivisionError("oh")
        async with bench.serving():
            answers = await bench.say(b'{"type":"peers"}\n{"type":"announce"}\n')
            assert answers[0] == {
                "type": "error",
                "code": "failed",
                "what": "peers",
                "why": "the daemon failed: ZeroDivisionError('oh')",
                "hint": "see redirectd's log",
            }
            assert answers[1]["type"] == "announce"
            bench.service.replies["identity"] = schema.IdentityReply("SHA256:\udcff", "")
            answers = await bench.say(b'{"type":"identity"}\n{"type":"announce"}\n')
            assert answers[0]["why"].startswith("the daemon failed: UnicodeEncodeError(")
            assert answers[1]["type"] == "announce"

    asyncio.run(check())
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"\n", "Input data was truncated"),
        (b"[]\n", "Expected `object`, got `array`"),
        (b"[" * 60000 + b"\n", "Expected `object`, got `array`"),
        (b"{}\n", "Object missing required field `type`"),
        (b'{"type":"reboot"}\n', "Invalid value 'reboot' - at `$.type`"),
        (b'{"type":"status","verbose":1}\n', "Object contains unknown field `verbose`"),
        (b'{"type":"kill"}\n', "Object missing required field `connection`"),
        (b'{"type":"kill","connection":5}\n', "Expected `str`, got `int` - at `$.connection`"),
        (b'{"type":"hello","version":"1"}\n', "Invalid value 'hello' - at `$.type`"),
        (b"\x00\xff\xfe\n", "JSON is malformed: invalid character (byte 0)"),
        (b"GET / HTTP/1.1\r\n\r\n", "JSON is malformed: invalid character (byte 0)"),
    ],
)
def test_malformed_requests(bench: Bench, caplog: pytest.LogCaptureFixture, sent: bytes, why: str):
    async def check() -> None:
        async with bench.serving():
            answers = await bench.say(sent + b'{"type":"announce"}\n')
            assert [(answer["code"], answer["what"], answer["why"]) for answer in answers] == [
                ("usage", "request", why)
            ]
            assert len(await bench.say(b'{"type":"status"}\n')) == 1  # others are served

    asyncio.run(check())
    assert refusals(caplog) == [Refusal.MALFORMED]
    assert [name for name, _, _ in bench.service.asked] == ["status"]


def test_oversized_request(bench: Bench, caplog: pytest.LogCaptureFixture):
    def ask() -> None:
        with Client(str(bench.path)) as client:
            client.call(schema.KillRequest("x" * 1_000_000), schema.ConnectionReply)

    async def check() -> None:
        async with bench.serving():
            with pytest.raises(schema.RequestError, match="longer than 65536 bytes; shorten it"):
                await asyncio.to_thread(ask)

    asyncio.run(check())
    assert refusals(caplog) == [Refusal.TOO_LONG]


def test_slow_request(bench: Bench, caplog: pytest.LogCaptureFixture):
    async def check() -> None:
        async with bench.serving(request_timeout=0.01):
            reader, writer = await bench.connect()
            writer.write(b'{"type":')
            answers = (await reader.read()).splitlines()
            assert [json.loads(answer)["why"] for answer in answers] == ["none within 0.01 s"]
            writer.close()

    asyncio.run(check())
    assert refusals(caplog) == [Refusal.TOO_SLOW]


def test_client_that_does_not_read(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    async def check() -> None:
        monkeypatch.setattr(apiserver, "WRITE_TIMEOUT", 0.01)
        bench.service.replies["identity"] = schema.IdentityReply("SHA256:x", "#" * 4_000_000)
        async with bench.serving() as server:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, str(bench.path))
                sock.send(b'{"type":"identity"}\n')
                await until(lambda: Refusal.NOT_READING in refusals(caplog))
            await until(lambda: not server._clients)
            assert not len(server._slots)

    asyncio.run(asyncio.wait_for(check(), 60))


def test_an_idle_client_makes_room_for_a_new_one_of_its_user(bench: Bench, caplog: pytest.LogCaptureFixture):
    async def check() -> None:
        async with bench.serving(max_clients_per_user=2) as server:
            first, one = await bench.connect()
            second, two = await bench.connect()
            two.write(b'{"type":"announce"}\n')
            await second.readline()  # used later than the first
            assert await bench.say(b'{"type":"announce"}\n') == [{"type": "announce", "peers": 2}]
            why = "it closed this connection, which was idle, because another program needed the slot"
            assert [json.loads(line)["why"] for line in (await first.read()).splitlines()] == [why]
            two.write(b'{"type":"announce"}\n')
            assert json.loads(await second.readline())["type"] == "announce"
            await until(lambda: len(server._clients) == 1)
            one.close()
            two.close()

    asyncio.run(check())
    assert refusals(caplog) == [Refusal.IDLE]


def test_too_many_busy_clients_of_one_user(bench: Bench, caplog: pytest.LogCaptureFixture):
    def ask() -> None:
        with Client(str(bench.path)):
            pass

    async def check() -> None:
        answered = asyncio.Event()

        async def slowly(request: Any, caller: Caller) -> Any:
            await answered.wait()
            return schema.AnnounceReply(2)

        bench.service.announce = slowly  # type: ignore[attr-defined]
        async with bench.serving(max_clients_per_user=2) as server:
            busy = [await bench.connect() for _ in range(2)]
            for _, writer in busy:
                writer.write(b'{"type":"announce"}\n')
            await until(lambda: all(slot.idle_since is None for slot in server._slots._taken))
            with pytest.raises(schema.RequestError, match="too many programs talk to it at once; end some or wait"):
                await asyncio.to_thread(ask)
            answered.set()
            for reader, writer in busy:
                assert json.loads(await reader.readline())["type"] == "announce"
                writer.close()

    asyncio.run(check())
    assert refusals(caplog) == [Refusal.TOO_MANY]


def test_hanging_up_in_the_middle(bench: Bench, caplog: pytest.LogCaptureFixture):
    async def check() -> None:
        async with bench.serving() as server:
            for sent in (b"", b'{"type":"ann', b'{"type":"announce"}\n'):
                _, writer = await bench.connect()
                writer.write(sent)
                writer.transport.abort()
            assert await bench.say(b'{"type":"announce"}\n') != []
            await until(lambda: not server._clients)

    asyncio.run(asyncio.wait_for(check(), 60))
    assert refusals(caplog) == []


class TestRights:
    @needs_root
    def test_a_user_without_rights(self, bench: Bench, caplog: pytest.LogCaptureFixture):
        program = """
with Client(sys.argv[1]) as client:
    print(client.call(StatusRequest(), StatusReply).status.version)
    client.call(OptInRequest(), OptedIn)
    print(client.call(IdentityRequest(), IdentityReply).fingerprint)
    for request in (ConnectionsRequest(), PeersRequest(), ApproveRequest("x"), RejectRequest("x"), ForgetRequest("x"),
                    RetryRequest(), ProtectRequest("1"), ReleaseRequest("x"), KillRequest("x"), AnnounceRequest(),
                    EventsRequest(), EventsRequest(follow=True), DoctorRequest()):
        try:
            client.call(request, Error)
        except RequestError as error:
            print(error.error.code, error)
opt_in(sys.argv[1])
"""

        async def check() -> None:
            bench.service.replies["identity"] = schema.IdentityReply("SHA256:x", "")
            async with bench.serving():
                status, output = await as_nobody(program, str(bench.path))
            first, second, *others = output.splitlines()
            assert (status, first, second) == (0, "1", "SHA256:x")
            assert len(others) == 13
            for line in others:
                assert line.startswith("denied ")
                assert (
                    ": not permitted; ask as root, or join the group redirectctl: `sudo usermod -aG redirectctl "
                    in line
                )

        asyncio.run(check())
        assert refusals(caplog) == [Refusal.NO_RIGHT] * 2  # the first, and the others, counted
        assert caplog.messages[-1].endswith(" (12 times)")
        assert [(name, caller.uid) for name, _, caller in bench.service.asked] == [
            ("status", NOBODY),
            ("opt_in", NOBODY),
            ("identity", NOBODY),
            ("opt_in", NOBODY),
        ]

    @needs_root
    @pytest.mark.parametrize("groups", ["os.setgroups([7747]); os.setgid(65534)", "os.setgroups([]); os.setgid(7747)"])
    def test_members_of_the_group(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, groups: str):
        monkeypatch.setattr(apiserver, "admin_group", lambda: 7747)
        program = f"""
import os
from redirectctl.api.client import *
from redirectctl.api.schema import *
{groups}; os.setuid(65534)
with Client({str(bench.path)!r}) as client:
    print(client.call(AnnounceRequest(), AnnounceReply).peers)
"""

        async def check() -> None:
            async with bench.serving():
                assert bench.path.stat().st_gid == 7747
                process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
                output, _ = await process.communicate()
                assert output == b"2\n"

        asyncio.run(check())

    @needs_root
    @pytest.mark.parametrize(("members", "code"), [(["nobody"], 0), (["anna"], 4)])
    def test_whoever_has_joined_since_the_login(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, members: list[str], code: int
    ):
        """Their processes have the groups of before."""
        monkeypatch.setattr(apiserver.grp, "getgrnam", lambda name: Mock(gr_gid=7747, gr_mem=members))

        async def check() -> None:
            async with bench.serving():
                process = await asyncio.create_subprocess_exec(
                    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                    sys.executable, "-m", "redirectctl.cli.main", "--socket", str(bench.path), "announce",
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )  # fmt: skip
                await process.communicate()
                assert process.returncode == code

        asyncio.run(check())

    def test_a_process_of_an_unseen_namespace_cannot_opt_in(self, bench: Bench, monkeypatch: pytest.MonkeyPatch):
        async def check() -> None:
            monkeypatch.setattr(apiserver, "_caller", lambda sock: Caller(0, 1000, frozenset()))
            async with bench.serving():
                with pytest.raises(OptInError, match="process namespace that the daemon does not see"):
                    await asyncio.to_thread(opt_in, str(bench.path))

        asyncio.run(check())
        assert bench.service.asked == []

    @needs_root
    @pytest.mark.parametrize("request_type", ["opt-in", "watch"])
    def test_a_process_that_is_not_the_users_is_not_his_to_opt_in(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request_type: str
    ):
        """As before Linux 6.5, where the number that the kernel noted may be another process's by now."""
        monkeypatch.setattr(apiserver, "of_peer", lambda sock, pid: Pidfd.open(os.getpid()))  # root's

        async def check() -> None:
            async with bench.serving():
                _, answer = await as_nobody(SAY, str(bench.path), request_type)
                assert json.loads(answer)["why"].endswith(f"has other user ids than {NOBODY}")

        asyncio.run(check())
        assert bench.service.asked == []
        assert bench.service.watchers == []
        assert refusals(caplog) == [Refusal.NO_RIGHT]

    def test_a_watcher_whose_process_has_ended_hears_nothing_more(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        monkeypatch.setattr(apiserver, "WATCH_PAUSE", 0.0)

        async def check() -> None:
            async with bench.serving():
                process = await asyncio.create_subprocess_exec("sleep", "1000")
                monkeypatch.setattr(apiserver, "of_peer", lambda sock, pid: Pidfd.open(process.pid))
                reader, writer = await bench.connect()
                writer.write(b'{"type":"watch"}\n')
                assert json.loads(await reader.readline())["type"] == "watch"
                process.kill()
                await process.wait()
                bench.service.watch = lost(1.0)
                bench.log.record(schema.EventName.CONNECTION_SUSPENDED)
                (answer,) = (json.loads(line) for line in (await reader.read()).splitlines())
                assert answer["why"] == "the process that connected has ended"
                writer.close()

        asyncio.run(check())
        assert refusals(caplog) == [Refusal.NO_RIGHT]


class TestSocketFile:
    def test_modes(self, bench: Bench):
        async def check() -> None:
            async with bench.serving():
                assert stat.S_IMODE(bench.path.stat().st_mode) == 0o666

        asyncio.run(check())

    def test_a_dead_one_is_replaced_a_live_one_is_not(self, bench: Bench):
        async def check() -> None:
            bench.path.parent.mkdir()
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(bench.path))
            async with bench.serving():
                with pytest.raises(ApiError, match="another redirectd listens there; stop it or name another"):
                    async with bench.serving():
                        pass
                assert await bench.say(b'{"type":"announce"}\n') != []

        asyncio.run(check())

    def test_no_file_of_others_is_removed(self, bench: Bench):
        async def check() -> None:
            bench.path.parent.mkdir()
            bench.path.write_text("precious")
            with pytest.raises(ApiError, match="exists and is no socket"):
                async with bench.serving():
                    pass
            assert bench.path.read_text() == "precious"
            bench.path.unlink()

        asyncio.run(check())

    def test_path_too_long(self, bench: Bench):
        async def check() -> None:
            path, bench.path = bench.path, Path("/tmp") / ("x" * 120)
            with pytest.raises(ApiError, match="too long; name another with --socket"):
                async with bench.serving():
                    pass
            bench.path = path
            path.parent.mkdir()

        asyncio.run(check())


class TestEvents:
    def test_the_log(self, bench: Bench):
        async def check() -> None:
            for number in range(2 * apiserver.EVENTS_AT_ONCE + 1):
                bench.log.record(schema.EventName.RST_HELD, connection=str(number))
            async with bench.serving():
                answers = await bench.say(b'{"type":"events"}\n{"type":"announce"}\n')
                count = 2 * apiserver.EVENTS_AT_ONCE + 1
                assert [answer["event"]["connection"] for answer in answers[:count]] == [str(n) for n in range(count)]
                assert [answer["type"] for answer in answers[count:]] == ["events-end", "announce"]
                assert await bench.say(b'{"type":"events","since":1000.5}\n') == [{"type": "events-end"}]

        asyncio.run(check())

    def test_following_misses_and_doubles_nothing(self, bench: Bench):
        async def check() -> None:
            bench.log.record(schema.EventName.RST_HELD, connection="0")
            async with bench.serving():
                reader, writer = await bench.connect()
                writer.write(b'{"type":"events","follow":true,"since":1000}\n')
                got = [json.loads(await reader.readline())["event"]]
                for number in range(1, 50):
                    bench.log.record(schema.EventName.RST_HELD, connection=str(number))
                    if number % 7 == 0:
                        await asyncio.sleep(0)
                got += [json.loads(await reader.readline())["event"] for _ in range(49)]
                assert [event["connection"] for event in got] == [str(n) for n in range(50)]
                writer.close()

        asyncio.run(check())

    def test_a_follower_hears_the_last_event_before_the_end(self, bench: Bench):
        async def check() -> None:
            async with bench.serving():
                reader, writer = await bench.connect()
                writer.write(b'{"type":"events","follow":true}\n')
                await until(lambda: bool(bench.log._subscriptions))
                bench.log.record(schema.EventName.DAEMON_STOPPED)
            assert (await reader.read()) == b'{"type":"event","event":{"time":1000.0,"event":"daemon.stopped"}}\n'
            writer.close()
            assert not bench.log._subscriptions

        asyncio.run(check())

    def test_a_follower_that_goes_away_is_forgotten(self, bench: Bench):
        async def check() -> None:
            async with bench.serving() as server:
                _, writer = await bench.connect()
                writer.write(b'{"type":"events","follow":true}\n')
                await until(lambda: bool(bench.log._subscriptions))
                writer.close()
                await until(lambda: not (bench.log._subscriptions or server._clients))

        asyncio.run(asyncio.wait_for(check(), 60))

    def test_a_slow_follower_is_told_what_it_missed(self, bench: Bench):
        async def check() -> None:
            async with bench.serving():
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.setblocking(False)
                    loop = asyncio.get_running_loop()
                    await loop.sock_connect(sock, str(bench.path))
                    sock.send(b'{"type":"events","follow":true}\n')
                    await until(lambda: bool(bench.log._subscriptions))
                    total = 20 * QUEUE  # far more than the socket's buffers take
                    for number in range(total):
                        bench.log.record(schema.EventName.RST_HELD, connection=str(number), detail="x" * 200)
                        if number % 100 == 0:
                            await asyncio.sleep(0)
                    received = b""
                    seen = missed = 0
                    while seen + missed < total:
                        received += await loop.sock_recv(sock, 1 << 20)
                        *lines, received = received.split(b"\n")
                        for line in lines:
                            event = json.loads(line).get("event", {})
                            seen += isinstance(event, dict) and event.get("event") == "rst.held"
                            missed += event.get("count", 0) if isinstance(event, dict) else 0
                    assert missed > 0
                    assert seen + missed == total

        asyncio.run(asyncio.wait_for(check(), 60))


def lost(seconds: float | None) -> schema.WatchReply:
    watched = schema.Watched(id="c", remote="192.0.2.7:22", state=schema.ConnectionState.SUSPENDED, lost_for=seconds)
    return schema.WatchReply(connections=[watched], questions=[])


def test_watching(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apiserver, "WATCH_PAUSE", 0.0)

    async def check() -> None:
        async with bench.serving() as server:
            reader, writer = await bench.connect()
            writer.write(b'{"type":"watch"}\n')
            assert json.loads(await reader.readline()) == {"type": "watch", "connections": [], "questions": []}
            looks = len(bench.service.watchers)
            bench.service.watch = lost(1.0)
            bench.log.record(schema.EventName.CONNECTION_SUSPENDED)
            assert json.loads(await reader.readline())["connections"][0]["lost_for"] == 1.0
            bench.service.watch = lost(2.0)  # nothing has changed but the time: not said
            bench.log.record(schema.EventName.CONNECTION_FOUND)
            await until(lambda: len(bench.service.watchers) > looks + 2)
            bench.service.watch = lost(None)
            bench.log.record(schema.EventName.CONNECTION_RESUMED)
            assert "lost_for" not in json.loads(await reader.readline())["connections"][0]
            (caller, may_decide) = bench.service.watchers[-1]
            assert (caller.pid, may_decide) == (os.getpid(), True)
            writer.close()
            await until(lambda: not len(server._watching))

    asyncio.run(check())


def test_watchers_do_not_shut_out_others(bench: Bench):
    async def check() -> None:
        async with bench.serving(max_clients_per_user=2) as server:
            server._watching = Slots(100, 3)
            writers = []
            for _ in range(3):
                reader, writer = await bench.connect()
                writer.write(b'{"type":"watch"}\n')
                await reader.readline()
                writers.append(writer)
            assert (await bench.say(b'{"type":"opt-in"}\n'))[0] == {"type": "opted-in"}
            refused = await bench.say(b'{"type":"watch"}\n')
            assert refused[0]["why"] == "too many programs watch"
            for writer in writers:
                writer.close()

    asyncio.run(check())


@needs_root
def test_a_watcher_without_rights_may_not_decide(bench: Bench):
    program = """
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"type":"watch"}\\n')
f = s.makefile()
f.readline()
print(f.readline().strip())
"""

    async def check() -> None:
        async with bench.serving():
            status, output = await as_nobody(program, str(bench.path))
            assert (status, json.loads(output)["type"]) == (0, "watch")
            caller, may_decide = bench.service.watchers[0]
            assert (caller.uid, may_decide) == (NOBODY, False)

    asyncio.run(check())


def test_who_comes_while_no_descriptor_is_left_is_served_later(bench: Bench) -> None:
    """And that he waits costs nothing: one attempt a second."""

    async def run() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        async with bench.serving():
            waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(20)]
            with no_descriptors():
                for client in waiting:
                    client.connect(str(bench.path))
                await asyncio.sleep(3.5)
            assert 1 <= len(failures) <= 5
            for client in waiting:
                client.setblocking(False)
                async with asyncio.timeout(10):
                    assert b"hello" in await asyncio.get_running_loop().sock_recv(client, 100)
                client.close()

    asyncio.run(run())
