"""Never worse than without: what plain TCP lives through where it is, protected connections live through too, when the
other host's daemon has ended or cannot be reached.

Each situation has plain connections beside the protected ones.  How soon they are back is measured by
`redirectctl bench stays`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from daemon_pair import FAST, PATIENCE, Pair, resets_sent, stop_without_a_trace

from redirectctl.lab.bench.without import (
    GONE,
    LOST,
    NO_DATAGRAMS,
    PROTECTED,
    SITUATIONS,
    Bench,
    Sample,
    forget_sockets,
)
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import Idle, start_idle, wait_until
from redirectctl.lab.topology import FIRST_HOST, Lab

INTEGRITY = FAST + '[integrity]\nmode = "on"\n'


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.close()


def all_live(samples: list[Sample]) -> bool:
    assert {sample.kind for sample in samples if sample.seconds == LOST} <= {PROTECTED}, "the lab is broken"
    return all(sample.seconds < LOST for sample in samples)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("gone", GONE)
def test_what_plain_tcp_lives_through(benches: list[Bench], gone: str, version: int) -> None:
    """Written by either host during the outage, right after it and later."""
    bench = Bench(GONE[gone], version)
    benches.append(bench)
    for name, situation in SITUATIONS.items():
        if situation.spoil is not GONE[gone] or situation.ends:
            continue
        began = time.time()
        assert all_live(bench.round(name)), name
        bench.settle()
        lost, back = (bench.daemon.events(f"connection.{what}", since=began) for what in ("suspended", "resumed"))
        assert len(lost) == len(back)
        # What is silent for 15 s may be back before anybody takes it for lost.
        assert lost or situation.seconds == 15.0
    for idle in bench.idle.values():
        idle.stop()
    stop_without_a_trace(bench.running)


def protected_and_plain(pair: Pair, version: int = 4) -> tuple[Idle, Idle]:
    lab = pair.lab
    protected = start_idle(lab.server, lab.client, 2, version=version, wrap=pair.wrap)
    plain = start_idle(lab.server, lab.client, 1, version=version)
    pair.wait_protected(2)
    return protected, plain


def wait_suspended(*daemons: Daemon, count: int = 2) -> None:
    for daemon in daemons:
        daemon.wait_connections("suspended", count, timeout=PATIENCE)


@pytest.mark.parametrize("version", [4, 6])
def test_both_are_suspended_and_their_daemons_do_not_hear_each_other(lab: Lab, version: int) -> None:
    """What answers the other's keepalive gets out of either host."""
    pair = Pair(lab)
    protected, plain = protected_and_plain(pair, version)
    back = start_idle(lab.client, lab.server, 1, version=version)  # the server asks on another one, and not in vain
    lab.router.run(["nft", "-f", "-"], stdin=NO_DATAGRAMS)
    lab.home.cut()
    for idle in (protected, plain, back):
        idle.begin(5 * PATIENCE)
    wait_suspended(pair.client)
    # The server has nothing unanswered: it notices when its peer's daemon asks in vain, or when it writes itself.
    began = time.time()
    lab.home.restore()
    for idle in (protected, plain, back):
        wait_until(idle.echoed, PATIENCE, "an echo")
        assert idle.ask(PATIENCE) == {}
    pair.wait_protected(2)
    assert {event["reason"] for event in pair.client.events("connection.resumed", since=began)} == {"peer-silent"}
    lab.router.run(["nft", "delete", "table", "inet", "blocked"])
    for idle in (protected, plain, back):
        assert idle.ask(PATIENCE) == {}
        idle.stop()
    pair.stop_without_a_trace()


@pytest.mark.parametrize("how", ["at once", "suspended"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_server_that_has_restarted_without_a_daemon_ends_what_it_does_not_know(
    lab: Lab, version: int, how: str
) -> None:
    pair = Pair(lab)
    protected, plain = protected_and_plain(pair, version)
    lab.home.cut()
    pair.server.kill()
    for idle in (protected, plain):
        idle.begin(2 * PATIENCE)
    forget_sockets(lab.server)
    if how == "suspended":
        wait_suspended(pair.client)
    lab.home.restore()
    for idle in (plain, protected):
        wait_until(lambda idle=idle: idle.echoed() is not None, 2 * PATIENCE, "an end")  # type: ignore[misc]
        assert idle.echoed() == {}
        assert set(idle.ask(PATIENCE).values()) <= {"ECONNRESET", "EPIPE"}
    pair.client.wait_connections("closed", 2)
    protected.stop()
    plain.stop()
    stop_without_a_trace([pair.client])


def test_a_daemon_that_says_that_it_ends_is_not_asked_about_a_rst(lab: Lab) -> None:
    """Nor by whom the connection was begun."""
    pair = Pair(lab)
    protected, plain = protected_and_plain(pair)
    pair.client.stop()
    began = time.time()
    forget_sockets(lab.client)
    port = protected.server.printed()[0]["port"]

    def gone() -> bool:
        return not lab.server.run(["ss", "-tnH", f"sport = :{port}"]).stdout.strip()

    wait_until(gone, PATIENCE, "the server's sockets gone", poll=0.1)
    assert not pair.server.events("rst.held", since=began)
    for idle in (protected, plain):
        idle.stop()
    stop_without_a_trace([pair.server])


def test_who_has_the_address_of_a_client_that_sleeps_ends_nothing(lab: Lab) -> None:
    """Its daemon is silent, and a stranger answers with RST: not to be told from a client that has restarted."""
    pair = Pair(lab)
    protected, plain = protected_and_plain(pair)
    back = start_idle(lab.client, lab.server, 1, wrap=pair.server.opted_in())
    pair.wait_protected(3)
    port = protected.server.printed()[0]["port"]
    lab.client.leave()
    back.begin(10 * PATIENCE)
    wait_suspended(pair.server, count=3)
    pair.client.kill()
    before = resets_sent(lab.stranger)
    lab.stranger.take(lab.home.addresses(FIRST_HOST), lab.home)
    wait_until(lambda: resets_sent(lab.stranger) > before, PATIENCE, "a keepalive to the stranger", poll=0.2)
    pair.server.wait_event("rst.held", reason="no-path", timeout=PATIENCE)
    time.sleep(3.0)
    of_client = [c for c in pair.server.ctl("connections") if c["local"].endswith(f":{port}")]
    assert [c["state"] for c in of_client] == ["suspended"] * 2
    lab.client.join(lab.cafe, 20)
    pair.client.start()
    assert protected.ask(PATIENCE) == {}
    assert plain.ask(1.0) != {}
    for idle in (protected, plain, back):
        idle.stop()


def test_what_has_integrity_is_not_asked_plainly(lab: Lab) -> None:
    pair = Pair(lab, INTEGRITY, INTEGRITY)
    protected, plain = protected_and_plain(pair)
    port = protected.server.printed()[0]["port"]
    pair.server.kill()
    lab.home.cut()
    for idle in (protected, plain):
        idle.begin(5 * PATIENCE)
    wait_suspended(pair.client)
    count = f"chain c {{\ntype filter hook prerouting priority -450\ntcp dport {port} counter name plain\n}}\n"
    lab.router.run(["nft", "-f", "-"], stdin=f"table inet seen {{\ncounter plain {{ }}\n{count}}}\n")
    lab.home.restore()
    wait_until(plain.echoed, PATIENCE, "an echo of the plain one")
    time.sleep(3.0)
    seen = lab.router.run(["nft", "list", "counter", "inet", "seen", "plain"]).stdout
    assert "packets 0" in seen
    wait_suspended(pair.client)
    pair.server.start()
    wait_until(protected.echoed, PATIENCE, "an echo")
    assert protected.ask(PATIENCE) == {}
    for idle in (protected, plain):
        idle.stop()
    pair.stop_without_a_trace()


@pytest.mark.parametrize("version", [4, 6])
def test_without_any_daemon_a_path_that_comes_back_carries(lab: Lab, version: int) -> None:
    """A daemon that is told to end lets go what may get through as it is, and takes it up again."""
    pair = Pair(lab)
    protected, plain = protected_and_plain(pair, version)
    lab.home.cut()
    for idle in (protected, plain):
        idle.begin(5 * PATIENCE)
    wait_suspended(pair.client)
    pair.server.kill()
    pair.client.stop()
    lab.home.restore()
    for idle in (plain, protected):
        wait_until(idle.echoed, PATIENCE, "an echo")
        assert idle.ask(PATIENCE) == {}
    pair.start()
    pair.wait_protected(2)
    for idle in (plain, protected):
        assert idle.ask(PATIENCE) == {}
        idle.stop()
    pair.stop_without_a_trace()


@pytest.mark.parametrize("version", [4, 6])
def test_moved_connections_are_asked_where_they_are(lab: Lab, version: int) -> None:
    """The kernel at the other end rewrites what comes, and what it answers, without its daemon."""
    pair = Pair(lab)
    protected, _ = protected_and_plain(pair, version)
    lab.client.move(lab.cafe, 20)
    wait_until(
        lambda: all(c["path"] == "rewritten" for d in pair.daemons for c in pair.protected(2) or [{"path": ""}]),
        3 * PATIENCE, "plain packets", poll=0.2,
    )  # fmt: skip
    assert protected.ask(PATIENCE) == {}
    pair.server.kill()
    lab.client.leave()
    time.sleep(3.0)
    wait_suspended(pair.client)
    protected.begin(5 * PATIENCE)
    lab.client.join(lab.cafe, 20)
    wait_until(protected.echoed, PATIENCE, "an echo")
    assert protected.ask(PATIENCE) == {}
    pair.client.wait_connections("protected", 2)
    pair.server.start()
    pair.wait_protected(2)
    assert protected.ask(PATIENCE) == {}
    protected.stop()
    pair.stop_without_a_trace()
