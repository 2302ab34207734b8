"""A daemon that stops or is killed: moved connections go on without it, and it takes them up again."""

from __future__ import annotations

import re
import sys
import time

import pytest
from daemon_pair import PATIENCE, Pair, give_away, held, resets_sent, traces

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import Idle, Ticker, start_idle, start_ticker, wait_until
from redirectctl.lab.topology import Lab, Link

COUNT = 3  # idle connections; with the ticker one more
FORGE = """
import socket, sys
from redirectctl.wire.addr import SockAddr
from redirectctl.wire.ip import TcpFlags, build_tcp
source, target = SockAddr.parse(sys.argv[1]), SockAddr.parse(sys.argv[2])
packet = build_tcp(source, target, seq=int(sys.argv[3]), flags=TcpFlags.RST)
family = socket.AF_INET if target.host.version == 4 else socket.AF_INET6
socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(packet, (str(target.host), 0))
"""


def end(daemon: Daemon, how: str) -> None:
    if how == "SIGTERM":
        assert daemon.stop() < 2
    else:
        daemon.kill()


def acknowledged(lab: Lab, idle: Idle) -> dict[str, int]:
    """Let each connection echo once; the last number that the server acknowledged to each of the client's ports."""
    dump = lab.sandbox.directory / f"dump{lab.sandbox.number()}"
    port = str(idle.server.printed()[0]["port"])
    with dump.open("w") as out:
        sniffer = lab.router.popen(["tcpdump", "-SnU", "-l", "-i", "any", f"tcp port {port}"], stdout=out, stderr=out)
    wait_until(lambda: "listening on" in dump.read_text(), PATIENCE, "tcpdump")
    assert idle.ask(PATIENCE) == {}
    seen = ""

    def quiet() -> bool:
        nonlocal seen
        before, seen = seen, dump.read_text()
        return before == seen != ""

    wait_until(quiet, PATIENCE, "the last acknowledgement", poll=0.5)
    sniffer.terminate()
    sniffer.wait()
    numbers = dict(re.findall(r" > \S+\.(\d+): Flags \[[^\]]*\],.* ack (\d+)", seen))  # the last one of each port
    return {port: int(numbers[port]) for port in (each.rpartition(":")[2] for each in idle.locals)}


def forge_resets(lab: Lab, idle: Idle, numbers: dict[str, int], version: int) -> None:
    """The stranger, who has the client's first address, sends exactly the RST that each server socket believes."""
    server_port = idle.server.printed()[0]["port"]
    target = f"[{lab.server.address(6)}]" if version == 6 else str(lab.server.address())
    for local in idle.locals:
        number = numbers[local.rpartition(":")[2]]
        lab.stranger.run([sys.executable, "-c", FORGE, local, f"{target}:{server_port}", str(number)])


def lives(ticker: Ticker, idle: Idle) -> None:
    ticker.wait_both(time.monotonic(), PATIENCE)
    assert idle.ask(PATIENCE) == {}


def ended(lab: Lab, idle: Idle) -> bool:
    """The server has no socket for it any more."""
    port = idle.locals[0].rpartition(":")[2]
    return not lab.server.run(["ss", "-tnH", f"dport = :{port}"]).stdout.strip()


@pytest.mark.parametrize(
    ("who", "how", "version"),
    [
        ("client", "SIGTERM", 4),
        ("client", "SIGKILL", 6),
        ("server", "SIGKILL", 4),
        ("server", "SIGTERM", 6),
        ("both", "SIGKILL", 4),
        ("both", "SIGTERM", 6),
    ],
)
def test_moved_connections_live_without_the_daemon_and_are_taken_up_again(
    lab: Lab, who: str, how: str, version: int
) -> None:
    pair = Pair(lab)
    ending = {"client": (pair.client,), "server": (pair.server,), "both": pair.daemons}[who]
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    idle = start_idle(lab.server, lab.client, COUNT, version=version, wrap=pair.wrap)
    plain = start_idle(lab.server, lab.client, 1, version=version)
    plain_numbers = acknowledged(lab, plain)
    pair.wait_protected(COUNT + 1)
    give_away(lab, lab.client)
    link = lab.client.join(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    pair.wait_moved(pair.client, 0.0)
    wait_plain(pair, link, version)
    numbers = acknowledged(lab, idle)

    for daemon in ending:
        end(daemon, how)
    # It works, and RSTs from the first address do no harm.
    forge_resets(lab, plain, plain_numbers, version)
    lives(ticker, idle)
    forge_resets(lab, idle, numbers, version)
    lives(ticker, idle)
    wait_until(lambda: ended(lab, plain), PATIENCE, "the same RST ends a connection that is not protected", poll=0.1)

    # RSTs from the address where the connections are now, while they are nowhere, do none either.
    before = resets_sent(lab.stranger)
    give_away(lab, lab.client)
    wait_until(lambda: resets_sent(lab.stranger) > before, PATIENCE, "a RST", poll=0.02)
    link = lab.client.join(lab.office, 30)
    for daemon in ending:
        daemon.start()
    ticker.wait_both(link.usable_at, PATIENCE)
    lives(ticker, idle)
    wait_plain(pair, link, version)

    # They can move again, the server too.
    for host, network, number in ((lab.client, lab.cafe, 31), (lab.server, lab.dc2, 32)):
        link = host.move(network, number)
        ticker.wait_both(link.usable_at, PATIENCE)
        lives(ticker, idle)
    verdict = ticker.stop()
    assert verdict.ok, verdict
    idle.stop()
    plain.stop()
    pair.stop_without_a_trace()


@pytest.mark.parametrize("version", [4, 6])
def test_killed_before_any_move(lab: Lab, version: int) -> None:
    """The first move after a restart is like any other."""
    pair = Pair(lab)
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    (before,) = pair.wait_protected(1)
    pair.kill()
    ticker.wait_both(time.monotonic(), PATIENCE)
    pair.start()
    (after,) = pair.wait_protected(1)
    assert {key: after[key] for key in ("id", "path", "local", "remote", "peer", "moves")} == {
        key: before[key] for key in ("id", "path", "local", "remote", "peer", "moves")
    }
    give_away(lab, lab.client)
    link = lab.client.join(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    verdict = ticker.stop()
    assert verdict.ok, verdict


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_what_closes_while_no_daemon_runs_leaves_nothing(lab: Lab, how: str) -> None:
    pair = Pair(lab)
    connections = [start_idle(lab.server, lab.client, 2, version=version, wrap=pair.wrap) for version in (4, 6)]
    pair.wait_protected(4)
    began = time.time()
    lab.client.move(lab.cafe, 20)
    wait_until(lambda: {path for path, _ in ways(pair)} == {"rewritten"}, PATIENCE * 3, "all moved", poll=0.1)
    for each in connections:
        assert each.ask(PATIENCE) == {}
    assert pair.wait_moved(pair.client, began)
    for daemon in pair.daemons:
        end(daemon, how)
        assert held(daemon.host)  # or the connections would not live
    for each in connections:
        assert each.ask(PATIENCE) == {}
        each.stop()
    wait_until(lambda: not _open(lab), PATIENCE, "closed connections", poll=0.2)
    for daemon in pair.daemons:
        daemon.start()
        wait_until(lambda host=daemon.host: not held(host), PATIENCE * 2, f"{daemon.host.name}", poll=0.5)
        assert daemon.ctl("connections") == []
        daemon.stop()
        assert traces(daemon.host) == []


def ways(pair: Pair) -> set[tuple[str, str]]:
    """How the connections travel, and between which addresses, as both hosts list them."""
    listed = [
        (c, end)
        for d, end in zip(pair.daemons, ("wire_local", "wire_remote"), strict=True)
        for c in d.ctl("connections")
    ]
    return {(c["path"], c[end].rpartition(":")[0].strip("[]")) for c, end in listed if c["state"] == "protected"}


def wait_plain(pair: Pair, link: Link, version: int) -> None:
    """Until both hosts send plainly, which goes on without daemons."""
    there = {("rewritten", str(link.addresses.of(version)))}
    wait_until(lambda: ways(pair) == there, PATIENCE * 3, f"plain packets, not {ways(pair)}", poll=0.1)


def _open(lab: Lab) -> bool:
    """Whether client or server have a connection that has not ended, apart from TIME-WAIT."""
    listed = [host.run(["ss", "-tnH", "exclude", "time-wait"]).stdout.strip() for host in (lab.client, lab.server)]
    return any(listed)


def without_tokens(lab: Lab, networks: str) -> tuple[Pair, Ticker]:
    """What comes from these networks has no tokens: that direction is not proven."""
    pair = Pair(lab)
    lab.router.run(["nft", "-f", "-"], stdin=f"""
        table inet tokens {{
            chain forward {{
                type filter hook forward priority -10
                iifname {networks} tcp option 253 exists drop
            }}
        }}
    """)  # fmt: skip
    # Without tokens the hosts look at sequence numbers, which needs a moment in which nothing is sent.
    ticker = start_ticker(lab.server, lab.client, interval=0.05, wrap=pair.wrap)
    pair.wait_protected(1)
    ticker.wait_both(lab.client.move(lab.cafe, 20).usable_at, PATIENCE)
    return pair, ticker


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_nobody_sends_into_a_tunnel_that_nobody_reads(lab: Lab, how: str) -> None:
    """The server's tokens do not arrive, so it goes on in the tunnel; but the client's have."""
    pair, ticker = without_tokens(lab, '"br-dc1"')
    for daemon, wanted in ((pair.client, "rewritten"), (pair.server, "tunnel")):
        wait_until(lambda d=daemon, w=wanted: path_of(d) == w, PATIENCE, f"{wanted}: {daemon.host.name}", poll=0.1)
    end(pair.client, how)
    ticker.wait_both(time.monotonic(), PATIENCE)
    wait_until(lambda: path_of(pair.server) == "rewritten", PATIENCE, "the server leaves the tunnel", poll=0.1)
    ticker.wait_both(time.monotonic(), PATIENCE)
    assert [c["state"] for c in pair.server.ctl("connections")] == ["protected"]
    pair.client.start()
    for daemon, wanted in ((pair.server, "tunnel"), (pair.client, "rewritten")):
        wait_until(lambda d=daemon, w=wanted: path_of(d) == w, PATIENCE, f"{wanted} again", poll=0.1)
    ticker.wait_both(time.monotonic(), PATIENCE)
    ticker.stop()
    pair.stop_without_a_trace()


def test_what_was_never_proven_plainly_waits_for_the_daemon(lab: Lab) -> None:
    """It has moved: without a proof its tuple may be somebody else's, and without redirectctl it would be gone."""
    pair, ticker = without_tokens(lab, '{ "br-dc1", "br-cafe" }')
    for daemon in pair.daemons:
        wait_until(lambda d=daemon: path_of(d) == "tunnel", PATIENCE, "the tunnel", poll=0.1)
    end(pair.client, "SIGTERM")
    time.sleep(5)
    assert path_of(pair.server) == "tunnel"
    pair.client.start()
    ticker.wait_both(time.monotonic(), PATIENCE)
    ticker.stop()
    pair.stop_without_a_trace()


def path_of(daemon: Daemon) -> str:
    """Of its only connection."""
    (connection,) = daemon.ctl("connections")
    return str(connection["path"])
