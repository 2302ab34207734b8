"""Client and server change address in the same second: they find each other at a rendezvous.

::

    client ── (NAT) ── home, cafe ── router ── dc1, dc2 ── (NAT) ── server
                                       |
                                     office ── rendezvous 1, 2

REDIRECTCTL_MEETINGS says how many times both move in its test (2; the figures of docs/measurements.md are of 20).
"""

from __future__ import annotations

import os
import subprocess
import time
from itertools import cycle

import pytest
from rendezvous_lab import Meeting
from test_any_network import SIZE, assert_gone, digest
from test_doctor import doctor

from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import wait_until
from redirectctl.lab.terminal import Terminal
from redirectctl.lab.topology import FIRST_HOST, Lab, Network
from tests.netns.daemon_pair import PATIENCE

MEETINGS = int(os.environ.get("REDIRECTCTL_MEETINGS", "2"))
KBIT = 12_000  # so that a copy goes on for about 30 s


class Work:
    """A session and a copy, both opted in."""

    def __init__(self, meeting: Meeting, version: int = 4, kbit: int = KBIT) -> None:
        self.meeting = meeting
        self.kbit = kbit
        lab = meeting.lab
        self.version = version
        self.sshd = SshServer(lab.server)
        self.source, self.target = lab.sandbox.directory / "source", self.sshd.home / "target"
        self.source.write_bytes(os.urandom(SIZE))
        self.terminal = Terminal(lab.client, [*meeting.wrap, *self.sshd.ssh(version=version)])
        self.copies = 0
        self.start()

    def start(self) -> None:
        copy, *rest = self.sshd.scp(str(self.source), f"server:{self.target.name}", self.version)
        argv = [*self.meeting.wrap, copy, "-l", str(self.kbit), *rest]
        self.copy = self.meeting.lab.client.popen(argv, stderr=subprocess.PIPE)
        self.meeting.wait_protected(2)

    def under_way(self) -> None:
        """A copy is under way, now and for a while."""
        if self.copy.poll() is not None or self.target.stat().st_size > SIZE * 2 // 3:
            self.finish()
            self.start()

    def finish(self) -> None:
        _, complaints = self.copy.communicate(timeout=PATIENCE * 3)
        assert (self.copy.returncode, complaints) == (0, "")
        assert digest(self.target) == digest(self.source)
        self.copies += 1

    def goes_on(self, number: int) -> float:
        """Both are alive; seconds until the session answered."""
        began = time.monotonic()
        assert self.terminal.run(f"echo $(({number} + 1000))", PATIENCE) == f"{number + 1000}\n"
        answered = time.monotonic() - began
        before = self.target.stat().st_size
        wait_until(lambda: self.target.stat().st_size > before or self.copy.poll() is not None, PATIENCE,
                   "the copy goes on", poll=0.05)  # fmt: skip
        return answered

    def end(self) -> None:
        self.finish()
        self.leave()

    def leave(self) -> None:
        assert self.terminal.leave() == 0
        for daemon in self.meeting.daemons:
            wait_until(lambda daemon=daemon: {c["state"] for c in daemon.ctl("connections")} <= {"closed"}, PATIENCE,
                       f"nothing open on {daemon.host.name}", poll=0.1)  # fmt: skip


def both_move(work: Work, client: Network, server: Network, number: int) -> float:
    work.under_way()
    gone = work.meeting.both_move(client, server, FIRST_HOST + 1 + number)
    answered = work.goes_on(number)
    for host, addresses in gone:
        assert_gone(host, [address for pair in addresses for address in pair])
    return answered


def test_a_relay_is_killed_and_started_again_and_then_not_needed_any_more(lab: Lab) -> None:
    nats = [Gateway(lab, network).private for network in (lab.cafe, lab.dc2)]
    meeting = Meeting(lab)
    work = Work(meeting)
    (rendezvous,) = meeting.rendezvous
    seen = f"{rendezvous.host.address()}:7747"
    both_move(work, *nats, 0)
    assert {c["wire_remote"] for c in meeting.wait_protected(2)} == {seen}
    rendezvous.kill()
    rendezvous.start()
    work.goes_on(1)
    work.under_way()
    gone = lab.client.leave()
    lab.client.join(lab.home, FIRST_HOST + 1)
    work.goes_on(2)
    assert_gone(lab.client, [address for pair in gone for address in pair])
    wait_until(lambda: all(c["wire_remote"] != seen for c in meeting.client.ctl("connections")), PATIENCE,
               "a direct way", poll=0.1)  # fmt: skip
    work.goes_on(3)
    work.end()


def told(meeting: Meeting, check: str) -> str:
    """What `redirectctl doctor PEER` on the client finds about the server."""
    fingerprint = meeting.server.ctl("identity")["fingerprint"]
    return str(doctor(meeting.client, fingerprint)[1][check]["found"])


@pytest.mark.parametrize("version", [4, 6])
def test_both_move_at_once(lab: Lab, version: int) -> None:
    """With a copy of its own each time, which is under way then."""
    work = Work(Meeting(lab), version, kbit=40_000)
    clients, servers = cycle([lab.cafe, lab.home]), cycle([lab.dc2, lab.dc1])
    answered = []
    for number in range(MEETINGS):
        answered.append(both_move(work, next(clients), next(servers), number))
        work.finish()
        if number < MEETINGS - 1:
            work.start()
    assert work.copies >= MEETINGS
    work.leave()
    work.meeting.stop_without_a_trace()
    median, worst = sorted(answered)[MEETINGS // 2], max(answered)
    print(f"IPv{version}: {MEETINGS} times both at once: the session answered after {median:.2f} s (median), "
          f"{worst:.2f} s (worst); {work.copies} copies of {SIZE >> 20} MiB compared")  # fmt: skip


def test_the_rendezvous_is_killed_while_both_move_and_started_again(lab: Lab) -> None:
    meeting = Meeting(lab)
    work = Work(meeting)
    (rendezvous,) = meeting.rendezvous
    both_move(work, lab.cafe, lab.dc2, 0)
    rendezvous.kill()
    work.under_way()
    meeting.both_move(lab.home, lab.dc1, FIRST_HOST + 2)
    meeting.client.wait_event("rendezvous.lost", timeout=PATIENCE)
    assert meeting.client.ctl("connections")[0]["state"] in ("protected", "suspended")
    rendezvous.start()
    work.goes_on(1)
    both_move(work, lab.cafe, lab.dc2, 2)
    work.end()


def test_one_of_two_rendezvous_is_dead(lab: Lab) -> None:
    meeting = Meeting(lab, 2)
    work = Work(meeting)
    meeting.rendezvous[0].kill()
    both_move(work, lab.cafe, lab.dc2, 0)
    both_move(work, lab.home, lab.dc1, 1)
    work.end()


@pytest.mark.parametrize("keeps_ports", [True, False], ids=["punched", "relayed"])
def test_both_move_behind_nats(lab: Lab, keeps_ports: bool) -> None:
    clients = [Gateway(lab, network, keeps_ports=keeps_ports).private for network in (lab.cafe, lab.home)]
    servers = [Gateway(lab, network, keeps_ports=keeps_ports).private for network in (lab.dc2, lab.dc1)]
    meeting = Meeting(lab)
    work = Work(meeting)
    (rendezvous,) = meeting.rendezvous
    seen = f"{rendezvous.host.address()}:7747"
    for number, (client, server) in enumerate(zip(clients, servers, strict=True)):
        both_move(work, client, server, number)
        listed = meeting.wait_protected(2)
        assert {c["path"] for c in listed} == {"tunnel"}
        if keeps_ports:  # perhaps by relay at first, for a moment
            wait_until(lambda: all(c["wire_remote"] != seen for c in meeting.client.ctl("connections")), PATIENCE,
                       "a direct way", poll=0.1)  # fmt: skip
            assert "both are registered" in told(meeting, "peer.rendezvous")
        else:
            assert "2 connections relayed" in told(meeting, "peer.rendezvous")
            assert "by way of the rendezvous" in told(meeting, "peer.control-port")
            assert {(c["wire_remote"], c["reason"]) for c in listed} == {(seen, "relayed")}
    work.end()
