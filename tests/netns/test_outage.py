"""Connections of every kind live through an outage that ends them otherwise, on hosts where minutes stand for days.

Retransmissions give up after 13 to 25 s (tcp_retries2 = 5), keepalives after 30 s: on a busy machine the daemons need
some of that to suspend.  The outage lasts until all that is not protected is dead; with REDIRECTCTL_OUTAGE=300 at least
5 minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from daemon_pair import FAST, PATIENCE, Pair

from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host, Lab

OUTAGE = float(os.environ.get("REDIRECTCTL_OUTAGE", "25"))
SETTINGS = {
    "net.ipv4.tcp_retries2": 5,
    "net.ipv4.tcp_keepalive_time": 5,
    "net.ipv4.tcp_keepalive_intvl": 5,
    "net.ipv4.tcp_keepalive_probes": 5,
}
KINDS = ("from client", "from server", "both", "idle", "half closed", "full window")

# One end of a connection of each kind: listens, or connects to the address and ports given.  Commands come as lines on
# stdin: "write" (as the kind says), "read" (what has come, digested), "end".  Each answers with a line of JSON.
PROGRAM = r"""
import hashlib, json, os, select, socket, sys, time
kinds = sys.argv[1].split(",")
ends, got, failed, first, over = {}, {}, {}, {}, set()
if len(sys.argv) > 2:
    for kind, port in zip(kinds, sys.argv[3:]):
        ends[kind] = socket.create_connection((sys.argv[2], int(port)), 30)
else:
    listeners = {}
    for kind in kinds:
        listeners[kind] = one = socket.socket(socket.AF_INET6)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == "full window":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.bind(("::", 0))
        one.listen()
    print(json.dumps([one.getsockname()[1] for one in listeners.values()]), flush=True)
    for kind, one in listeners.items():
        ends[kind] = one.accept()[0]
client = len(sys.argv) > 2
sent = {kind: hashlib.sha256() for kind in kinds}
lengths = dict.fromkeys(kinds, 0)
came = {kind: hashlib.sha256() for kind in kinds}
for kind, one in ends.items():
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    got[kind] = 0
def write(kind, size):
    data = (kind.encode() + b"%d" % lengths[kind]) * (size // 16 + 1)
    try:
        n = ends[kind].send(data[:size])
    except BlockingIOError:
        return
    except OSError as error:
        failed[kind] = str(error)
        return
    sent[kind].update(data[:n]); lengths[kind] += n
def read():
    for kind, one in ends.items():
        if kind == "full window" and not reading:
            # SO_ERROR also tells what a router said of the outage, which ends nothing (sk_err_soft).
            if one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7:
                failed[kind] = "closed"
            continue
        try:
            while True:
                data = one.recv(1 << 20)
                if not data:
                    over.add(kind)  # and readable for ever
                    break
                came[kind].update(data); got[kind] += len(data); first.setdefault(kind, time.monotonic())
        except BlockingIOError: pass
        except OSError as error: failed[kind] = str(error)
reading = False
writes = {"from client": client, "from server": not client, "both": True}
writes |= {"half closed": not client, "full window": client}
print(json.dumps("ready"), flush=True)
while True:
    quiet = {*failed, *over} | (set() if reading else {"full window"})
    watched = [e for k, e in ends.items() if k not in quiet]
    ready, _, _ = select.select([sys.stdin, *watched], [], [], 0.05)
    read()
    if sys.stdin not in ready:
        continue
    line = sys.stdin.readline().strip()
    if line == "fill" and client:
        for _ in range(64): write("full window", 65536)
        ends["half closed"].shutdown(socket.SHUT_WR)
    if line == "write":
        for kind, does in writes.items():
            if does: write(kind, 3000)
    if line == "drain":
        reading = True
    if line == "mark":
        first.clear()
    if line in ("end", ""):
        break
    print(json.dumps({"sent": {k: [lengths[k], h.hexdigest()] for k, h in sent.items()},
                      "came": {k: [got[k], h.hexdigest()] for k, h in came.items()},
                      "failed": failed, "first": first}), flush=True)
"""


class End:
    """The program above, on one host."""

    def __init__(self, host: Host, *arguments: str, wrap: list[str] | None = None) -> None:
        argv = [*(wrap or []), sys.executable, "-c", PROGRAM, ",".join(KINDS), *arguments]
        self._process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def do(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = self.line()
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Sessions:
    """A connection of each kind."""

    def __init__(self, lab: Lab, version: int, wrap: list[str] | None = None) -> None:
        self.server = End(lab.server)
        ports = self.server.line()
        self.client = End(lab.client, str(lab.server.address(version)), *map(str, ports), wrap=wrap)
        self.ends = (self.client, self.server)
        for end in self.ends:
            assert end.line() == "ready"

    def failed(self) -> set[str]:
        return {kind for end in self.ends for kind in end.do("look")["failed"]}

    def whole(self) -> bool:
        """All that was written at one end has arrived at the other."""
        client, server = (end.do("look") for end in self.ends)
        return bool(client["sent"] == server["came"] and server["sent"] == client["came"])

    def first_byte(self) -> float | None:
        """When the first byte after "mark" arrived at either end, on any of them."""
        times = [moment for end in self.ends for moment in end.do("look")["first"].values()]
        return min(times, default=None)

    def kill(self) -> None:
        for end in self.ends:
            end.kill()


def prepare(lab: Lab) -> Pair:
    for host in (lab.client, lab.server):
        host.sysctl(SETTINGS)
    return Pair(lab)


def live_through(lab: Lab, pair: Pair, version: int, how: str) -> float:
    """Returns seconds from the path's return to the first byte."""
    protected = Sessions(lab, version, pair.wrap)
    plain = Sessions(lab, version)
    both = (protected, plain)
    pair.wait_protected(len(KINDS))
    for sessions in both:
        for end in sessions.ends:
            end.do("fill")
    time.sleep(1.0)  # until the window is closed, and all else is acknowledged
    gone = lab.client.links[-1].network
    if how == "silent":
        gone.cut()
    else:
        lab.client.leave()
    for sessions in both:
        for end in sessions.ends:
            end.do("write")
    for daemon in pair.daemons:
        daemon.wait_connections("suspended", len(KINDS), timeout=PATIENCE)
    time.sleep(OUTAGE)
    assert protected.failed() == set()
    wait_until(lambda: plain.failed() >= set(KINDS), PATIENCE, f"all plain ones dead, not {plain.failed()}", poll=0.5)
    for daemon in pair.daemons:
        listed = [c for c in daemon.ctl("connections") if c["state"] == "suspended"]
        assert len(listed) == len(KINDS)
        assert all(c["suspended_for"] >= OUTAGE for c in listed)
        assert {c["reason"] for c in listed} <= {"no-path", "peer-silent"}
    for end in protected.ends:
        end.do("mark")
    began = time.time()
    if how == "silent":
        back = time.monotonic()
        gone.restore()
    else:
        back = lab.client.join(
            gone if how == "same address" else lab.cafe, 10 if how == "same address" else 20
        ).usable_at
    first = wait_until(protected.first_byte, PATIENCE, "a byte")
    for end in protected.ends:
        end.do("drain")
    wait_until(protected.whole, PATIENCE, "all bytes", poll=0.1)
    assert protected.failed() == set()
    pair.wait_protected(len(KINDS))
    for daemon in pair.daemons:
        resumed = daemon.events("connection.resumed", since=began)
        assert len(resumed) == len(KINDS)
        assert all(event["duration"] >= OUTAGE and event["reason"] for event in resumed)
    for sessions in both:
        sessions.kill()
    return first - back


@pytest.mark.parametrize(
    ("how", "version"), [("another address", 4), ("same address", 6), ("silent", 4), ("silent", 6)]
)
def test_every_kind_of_connection_lives_through_an_outage(lab: Lab, how: str, version: int) -> None:
    pair = prepare(lab)
    gap = live_through(lab, pair, version, how)
    print(f"outage of {OUTAGE:.0f} s, {how}, IPv{version}: first byte {1000 * gap:.0f} ms after the path's return")
    pair.stop_without_a_trace()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_daemons_that_end_in_the_outage_leave_them_suspended_and_take_them_up_again(lab: Lab, how: str) -> None:
    pair = prepare(lab)
    sessions = Sessions(lab, 4, pair.wrap)
    pair.wait_protected(len(KINDS))
    for end in sessions.ends:
        end.do("fill")
    time.sleep(1.0)
    lab.client.leave()
    for end in sessions.ends:
        end.do("write")
    for daemon in pair.daemons:
        daemon.wait_connections("suspended", len(KINDS), timeout=PATIENCE)
    time.sleep(2.0)  # held by the kernel, and their sockets know of it
    for daemon in pair.daemons:
        if how == "SIGTERM":
            daemon.stop()
        else:
            daemon.kill()
    # Not for long: nothing answers the sockets meanwhile, and these hosts' TCP gives up after five attempts.
    time.sleep(2.0)
    pair.start()
    for daemon in pair.daemons:
        assert len(daemon.wait_connections("suspended", len(KINDS), timeout=PATIENCE)) == len(KINDS)
    time.sleep(30.0)
    assert sessions.failed() == set()
    lab.client.join(lab.cafe, 20)
    for end in sessions.ends:
        end.do("drain")
    wait_until(sessions.whole, PATIENCE, "all bytes", poll=0.1)
    assert sessions.failed() == set()
    sessions.kill()
    pair.stop_without_a_trace()


def test_given_up(lab: Lab) -> None:
    pair = Pair(lab, *[FAST + '[outage]\nsuspend_after = "2s"\ngive_up_after = "5s"\n'] * 2)
    sessions = Sessions(lab, 4, pair.wrap)
    pair.wait_protected(len(KINDS))
    lab.client.leave()
    for end in sessions.ends:
        end.do("write")
    for daemon in pair.daemons:
        daemon.wait_event("connection.closed", reason="given-up", timeout=PATIENCE)
    wait_until(lambda: sessions.failed() >= set(KINDS) - {"idle"}, PATIENCE, "closed for their programs", poll=0.2)
    sessions.kill()
    pair.stop_without_a_trace()
