"""What a peer's guesses of sequence numbers cost: python tests/bench/guesses.py.

A server has thousands of connections.  An approved peer claims some that there are not, and then sends BIND_NUMBERS
with guesses: 1,000 datagrams of 54 bytes.  What is measured is the processor time of the server's redirectd, and how
soon somebody else's connection is protected meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError, ended_by_signals
from redirectctl.lab.streams import start_idle, wait_until
from redirectctl.lab.topology import Host, Lab

FAST = '[trust]\nfirst_contact = "accept-new"\n[protect]\nlong_lived_after = "1s"\n'
PATIENCE = 120.0
SETTLE = 3.0
QUIET = 20.0  # seconds after the last datagram in which its work is done
GUESSES = "guesses"  # the first argument of the peer's daemon
RATE = 400  # datagrams a second, less than what a session may say
CLAIMS = 12  # in a message
_TICKS = os.sysconf("SC_CLK_TCK")


def _ordered(order: Path) -> list[int]:
    while not order.exists():
        time.sleep(0.1)
    return [int(word) for word in order.read_text().split()]


def guess(order: Path) -> int:
    """A redirectd that guesses when told to: how often, and at which port."""
    from redirectctl import redirectd as daemon
    from redirectctl.daemon.runtime import Runtime
    from redirectctl.flows.proofs import digest
    from redirectctl.wire import message as messages
    from redirectctl.wire.addr import FourTuple, SockAddr
    from redirectctl.wire.tunnel import Offer

    start = Runtime.start

    async def attack(runtime: Runtime) -> None:
        times, port = await asyncio.to_thread(_ordered, order)
        engine = runtime.engine
        (peer,) = (p for p in engine.peers.values() if p.session(runtime.now) is not None)
        assert peer.remote is not None
        local, sent = runtime.network.addresses()[0], 0

        async def say(message: messages.Message) -> None:
            nonlocal sent
            engine.host.send(runtime.now, peer.key, message)
            runtime.wake()
            sent += 1
            await asyncio.sleep(1 / RATE)

        claims = times // 2  # of each two guesses are looked at
        for first in range(1, claims, CLAIMS):
            made = []
            for number in range(first, min(first + CLAIMS, claims + 1)):
                socket = FourTuple(SockAddr(local, 1024 + number), SockAddr(peer.remote.host, port))
                cid = number.to_bytes(8)
                made.append(messages.Claim(cid, 2**40 + number, socket, digest(cid), Offer(number, bytes(16), 0)))
            await say(messages.Protect(first, tuple(made)))
        for number in range(times):
            await say(messages.BindNumbers(2**20 + number, (((1 + number % claims).to_bytes(8), os.urandom(8)),)))
        await asyncio.to_thread(order.with_suffix(".done").write_text, str(sent))

    async def begin(runtime: Runtime) -> None:
        await start(runtime)
        runtime.tasks.start(attack(runtime), "guesses")

    Runtime.start = begin  # type: ignore[method-assign]
    return daemon.main()


def used(daemon: Daemon) -> float:
    """Seconds of the processor, the kernel's on its behalf included."""
    assert daemon.process is not None
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def measure(sockets: int, times: int, *, own: bool) -> tuple[float, float, float]:
    """Seconds of the processor in as long without guesses, for the guesses; until another's connection is protected."""
    with Lab() as lab:
        mallory = Host(lab, "mallory")
        lab.add(mallory)
        mallory.join(lab.cafe, 66)
        order = lab.sandbox.directory / "order"
        done = order.with_suffix(".done")
        server, client = Daemon(lab.server, FAST), Daemon(lab.client, FAST)
        peer = Daemon(mallory, FAST, command=[sys.executable, __file__, GUESSES, str(order)])
        for daemon in (server, client, peer):
            daemon.start()
        many = start_idle(lab.server, mallory if own else lab.client, sockets)
        mine = start_idle(lab.server, mallory, 1, wrap=peer.opted_in())
        server.wait_connections("protected", 1, timeout=PATIENCE)
        port = many.server.wait_line(1)["port"]
        time.sleep(SETTLE)
        before, since = used(server), time.monotonic()
        order.write_text(f"{times} {port}")
        time.sleep(1)
        asked = time.monotonic()
        other = start_idle(lab.server, lab.client, 1, wrap=client.opted_in())
        try:
            client.wait_connections("protected", 1, timeout=PATIENCE)
            soon = time.monotonic() - asked
        except LabError:  # or never
            soon = float("inf")
        wait_until(done.exists, PATIENCE, "guesses", poll=0.2)
        time.sleep(QUIET)
        took, lasted = used(server) - before, time.monotonic() - since
        before = used(server)
        time.sleep(lasted)
        nothing = used(server) - before
        for idle in (many, mine, other):
            idle.stop()
    return nothing, took, soon


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=5000, help="connections of the server (5000)")
    parser.add_argument("--times", type=int, default=1000, help="guesses (1000)")
    options = parser.parse_args()
    print("| connections | guesses | processor, without them | with them | another's connection protected after |")
    print("|--:|--:|--:|--:|--:|", flush=True)
    with ended_by_signals():
        for own in (False, True):
            nothing, took, soon = measure(options.sockets, options.times, own=own)
            whose = "the peer's own, at the port" if own else "others'"
            figures = f"{nothing:.1f} s | {took:.1f} s | {soon:.1f} s"
            print(f"| {options.sockets}, {whose} | {options.times} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [GUESSES]:
        found = Path(sys.argv[2])
        del sys.argv[1:3]
        sys.exit(guess(found))
    sys.exit(main())
