"""First contact, trust, and what a person does to peers and connections by the command line."""

from __future__ import annotations

import shutil
import time

import pytest
from daemon_pair import FAST, PATIENCE, Pair, held

from redirectctl.lab.daemons import CommandError, Daemon, program
from redirectctl.lab.streams import start_idle, start_ticker, wait_until
from redirectctl.lab.topology import Lab

ASK = FAST.replace("accept-new", "ask")
BOTH_FAMILIES = pytest.mark.parametrize("version", [4, 6])


def identity(daemon: Daemon) -> str:
    return str(daemon.ctl("identity")["fingerprint"])


def states(daemon: Daemon) -> dict[str, str]:
    """Of peers, by fingerprint."""
    return {peer["fingerprint"]: peer["state"] for peer in daemon.ctl("peers")}


def wait_reason(daemon: Daemon, state: str, reason: str) -> None:
    wait_until(
        lambda: [c for c in daemon.ctl("connections") if (c["state"], c["reason"]) == (state, reason)],
        PATIENCE, f"{daemon.host.name}: a connection {state} because of {reason}; it has "
        f"{daemon.ctl('connections')}", poll=0.1,
    )  # fmt: skip


@BOTH_FAMILIES
def test_both_must_approve(lab: Lab, version: int) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    for daemon, other in ((pair.client, pair.server), (pair.server, pair.client)):
        assert daemon.wait_peer("pending", timeout=PATIENCE)["fingerprint"] == identity(other)
        assert daemon.events("peer.first_contact")
    wait_reason(pair.client, "pending", "approval-pending-here")
    pair.client.ctl("approve", identity(pair.server))
    wait_reason(pair.client, "pending", "approval-pending-there")
    for daemon in pair.daemons:
        assert held(daemon.host) == []
    pair.server.ctl("approve", identity(pair.client)[:16])  # a unique prefix is enough
    (listed,) = pair.wait_protected(1)
    assert listed["peer"] == identity(pair.server)
    assert states(pair.client) == {identity(pair.server): "approved"}
    assert states(pair.server) == {identity(pair.client): "approved"}
    link = lab.client.move(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    verdict = ticker.stop()
    assert verdict.ok, verdict


def test_the_other_order_and_a_rejection(lab: Lab) -> None:
    pair = Pair(lab, client=ASK, server=ASK)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.server.wait_peer("pending", timeout=PATIENCE)
    pair.server.ctl("approve", identity(pair.client))
    wait_reason(pair.client, "pending", "approval-pending-here")
    pair.client.ctl("approve", str(lab.server.address()))  # by its address
    pair.wait_protected(1)

    pair.server.ctl("reject", identity(pair.client))
    wait_reason(pair.client, "released", "released-there")
    wait_until(lambda: not held(lab.client) and not held(lab.server), PATIENCE, "nothing held", poll=0.1)
    another = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    wait_reason(pair.client, "refused", "rejected-there")
    assert states(pair.server) == {identity(pair.client): "rejected"}
    for each in (ticker, another):
        verdict = each.stop()
        assert verdict.ok, verdict
    pair.stop_without_a_trace()


def test_a_forgotten_peer_is_met_for_the_first_time_again(lab: Lab) -> None:
    pair = Pair(lab, client=ASK)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    fingerprint = pair.client.wait_peer("pending", timeout=PATIENCE)["fingerprint"]
    pair.client.ctl("approve", fingerprint)
    pair.wait_protected(1)
    assert pair.client.ctl("forget", fingerprint, "--yes")["fingerprint"] == fingerprint
    # The server's daemon may call at any moment: it has not forgotten anything, but it is a stranger here now.
    assert states(pair.client) in ({}, {fingerprint: "pending"})
    wait_reason(pair.client, "released", "peer-forgotten")
    wait_reason(pair.server, "released", "released-there")
    wait_until(lambda: not held(lab.client) and not held(lab.server), PATIENCE, "nothing held", poll=0.1)
    another = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    wait_reason(pair.client, "pending", "approval-pending-here")
    assert len(pair.client.events("peer.first_contact")) == 2
    pair.client.ctl("approve", fingerprint)
    pair.wait_protected(2)  # what was protected with it before, too
    for each in (ticker, another):
        verdict = each.stop()
        assert verdict.ok, verdict


@pytest.mark.parametrize("first_contact", ["ask", "accept-new"])
def test_changed_key(lab: Lab, first_contact: str) -> None:
    """Another key at an address that we know: refused, said aloud, nothing protected until a person has looked."""
    pair = Pair(lab, client=FAST.replace("accept-new", first_contact))
    before = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    known = identity(pair.server)
    if first_contact == "ask":
        pair.client.wait_peer("pending", timeout=PATIENCE)
        pair.client.ctl("approve", known)
    pair.wait_protected(1)
    assert before.stop().ok
    pair.wait_nothing_held()

    pair.server.stop()
    shutil.rmtree(pair.server.state)
    pair.server.start()
    new = identity(pair.server)
    assert new != known
    since = time.time()
    after = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    wait_reason(pair.client, "refused", "key-changed")
    event = pair.client.wait_event("peer.key_changed", since=since, timeout=PATIENCE)
    assert event["peer"] == new
    assert states(pair.client) == {known: "approved", new: "changed"}
    for daemon in pair.daemons:
        assert held(daemon.host) == []
    with pytest.raises(CommandError, match="another host's key is known") as refused:
        pair.client.ctl("approve", new)
    assert refused.value.status == 1
    assert states(pair.client)[new] == "changed"
    lab.client.move(lab.cafe, 20)
    lab.client.move(lab.home, 10)  # the same address again, and still alive: nobody touched it
    after.wait_both(time.monotonic(), PATIENCE)

    pair.client.ctl("forget", known, "--yes")
    assert states(pair.client) in ({}, {new: "pending"}, {new: "approved"})  # the warning goes with what it was about
    again = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    if first_contact == "ask":
        assert pair.client.wait_peer("pending", timeout=PATIENCE)["fingerprint"] == new
        pair.client.ctl("approve", new)
    protected = wait_until(
        lambda: [c for c in pair.client.ctl("connections") if (c["state"], c["local"]) == ("protected", again.local)],
        PATIENCE,
        "the new connection",
        poll=0.1,
    )
    assert protected[0]["peer"] == new


@BOTH_FAMILIES
def test_release_and_kill(lab: Lab, version: int) -> None:
    pair = Pair(lab)
    kept, released, killed = (start_idle(lab.server, lab.client, 1, version=version, wrap=pair.wrap) for _ in range(3))
    listed = {c["local"]: c for c in pair.wait_protected(3)}
    assert pair.client.ctl("release", listed[released.locals[0]]["id"])["state"] == "released"
    wait_reason(pair.client, "released", "released")
    wait_reason(pair.server, "released", "released-there")
    assert released.ask(PATIENCE) == {}
    pair.client.stop()
    pair.client.start()
    pair.wait_protected(2)
    wait_reason(pair.client, "released", "released")  # found again, and not taken up again
    pair.client.ctl("protect", f"{listed[released.locals[0]]['local']}-{listed[released.locals[0]]['remote']}")
    pair.wait_protected(3)
    one = listed[killed.locals[0]]
    pair.server.ctl("kill", f"{one['remote']}-{one['local']}")  # as the server sees it
    wait_reason(pair.client, "closed", "killed-there")
    assert set(killed.ask(1).values()) <= {"ECONNABORTED", "ECONNRESET"}
    pair.wait_protected(2)
    assert kept.ask(PATIENCE) == {}
    for command in ("release", "kill"):
        with pytest.raises(CommandError, match="no such connection") as refused:
            pair.client.ctl(command, "0" * 16)
        assert refused.value.status == 1
    for each in (kept, released, killed):
        each.stop()
    pair.stop_without_a_trace()


@BOTH_FAMILIES
def test_protect_what_is_open_already(lab: Lab, version: int) -> None:
    """By process: also what it opens later.  By LOCAL-REMOTE: that connection alone."""
    pair = Pair(lab, client=FAST.replace("1s", "2s"))
    process = start_idle(lab.server, lab.client, 2, version=version)
    single = start_ticker(lab.server, lab.client, version=version)
    other = start_ticker(lab.server, lab.client, version=version)
    taken = pair.client.ctl("protect", str(process.client.process.pid))
    assert {c["local"] for c in taken} == set(process.locals)
    pair.wait_protected(2)
    port = single.ends["server"].wait_line(1)["port"]
    remote = f"[{lab.server.address(6)}]:{port}" if version == 6 else f"{lab.server.address()}:{port}"
    (taken,) = pair.client.ctl("protect", f"{single.local}-{remote}")
    assert taken["local"] == single.local
    assert {c["local"] for c in pair.wait_protected(3)} == {*process.locals, single.local}
    link = lab.client.move(lab.cafe, 20)
    single.wait_both(link.usable_at, PATIENCE)
    assert process.ask(PATIENCE) == {}
    assert other.local not in {c["local"] for c in pair.client.ctl("connections")}
    for target, why in (("999999999", "no such process"), ("1.2.3.4:5", "LOCAL-REMOTE")):
        with pytest.raises(CommandError, match=why):
            pair.client.ctl("protect", target)


def test_announce(lab: Lab) -> None:
    pair = Pair(lab)
    connections = start_idle(lab.server, lab.client, 2, wrap=pair.wrap)
    pair.wait_protected(2)
    for daemon, number in ((pair.client, 2), (pair.server, 2)):
        since = time.time()
        assert daemon.ctl("announce")["peers"] == 1
        finished = pair.wait_moved(daemon, since, number)
        assert finished["address"] == str(daemon.host.address())
    assert {c["path"] for c in pair.wait_protected(2)} == {"original"}
    assert connections.ask(PATIENCE) == {}


def test_a_switch_to_accept_new_approves_who_waits(lab: Lab) -> None:
    """By SIGHUP here, by a restart there."""
    pair = Pair(lab, ASK, ASK)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    for daemon in pair.daemons:
        daemon.wait_peer("pending", timeout=PATIENCE)
        daemon.config.write_text(FAST)
    pair.client.reload()
    pair.client.wait_event("peer.approved", reason="accept-new", timeout=PATIENCE)
    pair.server.restart()
    pair.server.wait_event("peer.approved", reason="accept-new", timeout=PATIENCE)
    pair.wait_protected(1)
    pair.end(ticker)


def test_known_peers_need_no_person(lab: Lab) -> None:
    """A file as `peers export` writes it, read at start; with its line goes the trust, by SIGHUP."""
    pair = Pair(lab, FAST, FAST)
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    assert ticker.stop().ok
    for daemon, other in ((pair.client, pair.server), (pair.server, pair.client)):
        daemon.ctl("approve", identity(other), "--name", other.host.name)
        exported = daemon.host.run([program("redirectctl"), "--socket", str(daemon.socket), "peers", "export"]).stdout
        assert exported == f"{identity(other)} {other.host.name}\n"
        known = daemon.directory / "known_peers"
        known.write_text(exported)
        daemon.config.write_text(ASK.replace("[trust]", f'[trust]\nknown_peers = ["{known}"]'))
        daemon.ctl("forget", identity(other))
    for daemon in pair.daemons:
        daemon.restart()
    ticker = start_ticker(lab.server, lab.client, wrap=pair.wrap)
    pair.wait_protected(1)
    pair.client.wait_event("peer.approved", reason="known-peers", timeout=PATIENCE)
    assert [peer["name"] for peer in pair.client.ctl("peers")] == [lab.server.name]
    (pair.client.directory / "known_peers").write_text("# nobody\n")
    pair.client.reload()
    pair.client.wait_event("peer.rejected", reason="known-no-more", timeout=PATIENCE)
    assert ticker.stop().ok
