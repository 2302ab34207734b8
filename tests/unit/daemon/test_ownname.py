"""The own name: one update at a time, of the newest addresses, until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from ipaddress import ip_address
from pathlib import Path

import pytest

from redirectctl.api.schema import EventName
from redirectctl.config import Dns, HostName, HostPort
from redirectctl.daemon import ownname
from redirectctl.daemon.eventlog import EventLog
from redirectctl.daemon.loops import Pulse
from redirectctl.daemon.ownname import OwnNameKeeper
from redirectctl.names.tsigkey import TsigKey
from redirectctl.names.update import OwnName, UpdateError
from redirectctl.wire.addr import IPAddress

KEY = 'key "k" { algorithm hmac-sha256; secret "c2VjcmV0"; };'


class Server:
    """What the name server would see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.updates: list[set[str]] = []
        self.cancelled: list[set[str]] = []
        self.answers: list[str | asyncio.Event | None] = []  # of the next updates: a refusal, well, or when
        self.addresses: set[IPAddress] = {ip_address("192.0.2.1")}
        self.now = 0.0
        self.pace = ownname.SETTLING  # seconds from one update to the next
        self.log = EventLog(tmp_path, lambda: self.now)
        self.key = tmp_path / "key"
        self.key.write_text(KEY)
        self.key.chmod(0o600)
        self.keeper = OwnNameKeeper(self.log, lambda: self.addresses, lambda: self.now)
        self.settings = Dns(
            name=HostName("h.example"), zone=HostName("example"), server=HostPort("192.0.2.53:53"),
            key_file=str(self.key),
        )  # fmt: skip
        monkeypatch.setattr(ownname.update, "publish", self.publish)
        monkeypatch.setattr(ownname, "RETRIES", (0.0,))

    async def publish(self, own: OwnName, addresses: Collection[IPAddress], key: TsigKey) -> None:
        self.now += self.pace
        assert (own.name, own.zone, own.host, own.port, own.ttl) == ("h.example", "example", "192.0.2.53", 53, 30)
        assert key.secret == b"secret"
        wanted = set(map(str, addresses))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, asyncio.Event):
            try:
                await answer.wait()
            except asyncio.CancelledError:
                self.cancelled.append(wanted)
                raise
        if isinstance(answer, str):
            raise UpdateError(answer, "so it is")
        self.updates.append(wanted)

    def have(self, *addresses: str) -> None:
        self.addresses = set(map(ip_address, addresses))
        self.keeper.network_changed()

    def events(self, name: EventName) -> list[str | None]:
        with self.log.history(None) as history:
            return [event.reason for event in history.read(1000) if event.event is name]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 (what is waited for is no Event)
                await asyncio.sleep(0)

    def run(self, story: Callable[[], object]) -> None:
        async def main() -> None:
            running = asyncio.ensure_future(self.keeper.run(Pulse("own name")))
            try:
                await story()  # type: ignore[misc]
                for _ in range(50):
                    await asyncio.sleep(0)
                assert not running.done()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        asyncio.run(main())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    return Server(monkeypatch, tmp_path)


def test_every_change_is_published_once(server: Server) -> None:
    async def story() -> None:
        server.keeper.configure(server.settings)
        await server.until(lambda: server.updates == [{"192.0.2.1"}])
        server.keeper.network_changed()  # nothing of ours
        for _ in range(50):
            await asyncio.sleep(0)
        server.have("192.0.2.2", "2001:db8::1", "127.0.0.1", "fe80::1", "10.0.0.1")
        await server.until(lambda: len(server.updates) == 2)
        assert server.updates[-1] == {"192.0.2.2", "2001:db8::1"}
        server.have()  # no way to tell anybody
        for _ in range(50):
            await asyncio.sleep(0)
        server.have("192.0.2.3")
        await server.until(lambda: server.updates[2:] == [{"192.0.2.3"}])

    server.run(story)
    assert len(server.events(EventName.DNS_UPDATED)) == 3
    assert server.events(EventName.DNS_FAILED) == []


def test_without_a_name_nothing_is_sent(server: Server) -> None:
    async def story() -> None:
        for n in range(5):
            server.have(f"192.0.2.{n}")
            await asyncio.sleep(0)
        server.keeper.configure(server.settings)
        await server.until(lambda: server.updates == [{"192.0.2.4"}])
        server.keeper.configure(Dns())
        server.have("192.0.2.9")
        for _ in range(50):
            await asyncio.sleep(0)

    server.run(story)
    assert server.updates == [{"192.0.2.4"}]


def test_failures_are_tried_again_and_told_once_for_each_reason(server: Server) -> None:
    server.answers = ["no-answer-from-server"] * 5 + ["refused-by-server"] * 2 + [None]

    async def story() -> None:
        server.keeper.configure(server.settings)
        await server.until(lambda: bool(server.updates))

    server.run(story)
    assert server.events(EventName.DNS_FAILED) == ["no-answer-from-server", "refused-by-server"]
    assert len(server.events(EventName.DNS_UPDATED)) == 1
    assert server.keeper.failure is None


def test_a_server_that_answers_after_a_moment_has_not_failed(server: Server) -> None:
    """The address is there before its route: at once there is no way to the server."""
    server.pace = ownname.SETTLING / 4
    server.answers = [None, *["no-answer-from-server"] * 4, None, *["no-answer-from-server"] * 4, None]

    async def story() -> None:
        server.keeper.configure(server.settings)
        await server.until(lambda: len(server.updates) == 1)
        server.have("192.0.2.2")
        await server.until(lambda: len(server.updates) == 2)
        server.have("192.0.2.3")
        await server.until(lambda: len(server.updates) == 3)

    server.run(story)
    assert server.events(EventName.DNS_FAILED) == []
    assert len(server.events(EventName.DNS_UPDATED)) == 3


def test_addresses_of_a_moment_ago_do_not_count(server: Server) -> None:
    server.answers = ["no-answer-from-server", None]

    async def story() -> None:
        server.pace = ownname.SETTLING / 4
        server.keeper.configure(server.settings)
        await server.until(lambda: server.keeper.failure is not None)
        server.have()
        server.now += 3600.0
        server.answers.insert(0, "no-answer-from-server")
        server.have("192.0.2.2")
        await server.until(lambda: server.updates == [{"192.0.2.2"}])

    server.run(story)
    assert server.events(EventName.DNS_FAILED) == []


def test_an_answer_of_another_kind_is_told_at_once(server: Server) -> None:
    server.pace = 0.0
    server.answers = ["refused-by-server", *["no-answer-from-server"] * 3, None]

    async def story() -> None:
        server.keeper.configure(server.settings)
        await server.until(lambda: bool(server.updates))

    server.run(story)
    assert server.events(EventName.DNS_FAILED) == ["refused-by-server"]


def test_an_update_that_hangs_does_not_keep_the_next_address_waiting(server: Server) -> None:
    async def story() -> None:
        server.answers = [asyncio.Event()]
        server.keeper.configure(server.settings)
        await server.until(lambda: not server.answers)
        server.have("198.51.100.7")
        await server.until(lambda: server.updates == [{"198.51.100.7"}])

    server.run(story)
    assert server.cancelled == [{"192.0.2.1"}]


def test_a_key_that_others_can_read_is_not_used(server: Server) -> None:
    server.key.chmod(0o644)

    async def story() -> None:
        server.keeper.configure(server.settings)
        await server.until(lambda: bool(server.events(EventName.DNS_FAILED)))
        server.key.chmod(0o600)
        await server.until(lambda: bool(server.updates))

    server.run(story)
    assert server.events(EventName.DNS_FAILED) == ["key-file"]


def test_it_is_published_afresh_now_and_then(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownname, "AFRESH", 0.0)

    async def story() -> None:
        server.keeper.configure(server.settings)
        await server.until(lambda: len(server.updates) > 3)

    server.run(story)
    assert all(each == {"192.0.2.1"} for each in server.updates)
