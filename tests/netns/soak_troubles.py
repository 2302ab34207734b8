"""What happens in a soak besides moves and outages: networks, routers, disks, clocks and daemons that are of no help.

While one of these lasts, whatever has another way must live already; when it is over, all must (see `soaking`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redirectctl.lab.bench.without import NO_DATAGRAMS
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Lab
from redirectctl.lab.uplinks import family_dies
from redirectctl.lab.vpn import ROUTES, Vpn
from tests.netns.scarce import Descriptors

if TYPE_CHECKING:
    from tests.netns.soaking import Soak, Work

AWHILE = (0.0, 0.5, 2.0, 5.0)  # seconds that a trouble has lasted when it is asked who lives
SHORT = (0.2, 1.0, 3.0)  # seconds of an outage in which addresses stay
SETTLED = 4.0  # seconds in which a connection that can is plain again
HOUR = 3600.0
CLOCKS = (-400 * 24 * HOUR, -20 * 24 * HOUR, -HOUR, 0.0, HOUR, 20 * 24 * HOUR, 400 * 24 * HOUR)  # seconds off
PLAIN = ("original", "rewritten")


@contextmanager
def no_datagrams(lab: Lab) -> Iterator[None]:
    """Nothing of the control port gets through."""
    lab.router.run(["nft", "-f", "-"], stdin=NO_DATAGRAMS)
    yield
    lab.router.run(["nft", "delete", "table", "inet", "blocked"])


class Troubles:
    """Each method is a step of a soak: it makes trouble, asks who lives, and ends it."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._random = soak.random
        self._lab = soak.lab
        self._vpn = Vpn(soak.lab, soak.lab.client, translates=False)
        self._vpns = 1

    # -- the network ----------------------------------------------------------------------------------------------

    def second_uplink(self) -> None:
        """Another network comes up and is preferred, the address stays; one of the two leads nowhere, then one goes."""
        soak = self._soak
        host, networks = self._random.choice(
            ((self._lab.client, soak.client_networks), (self._lab.server, soak.server_networks))
        )
        first = host.links[-1].network
        second, number = soak.place(*(network for network in networks if network is not first))
        dead = self._random.choice((first, second, None))
        soak.say(f"{host.name}: also in {second.name} {number}, {dead.name if dead else 'neither'} leads nowhere")
        if dead is second:
            dead.cut()
        host.join(second, number)
        if dead is first:
            self._wait()
            dead.cut()
        self._wait()
        soak.live([work for work in soak.works if work.client.host is host or host is self._lab.server])
        if dead is not None:
            dead.restore()
        host.leave(self._random.choice((first, second)))
        soak.done["moves"] += 1

    def family_dies(self) -> None:
        """All live by the other one."""
        version = self._random.choice((4, 6))
        self._soak.say(f"IPv{version} is dead")
        with family_dies(self._lab, version):
            self._wait()
            self._soak.live()

    def vpn(self) -> None:
        """One that all goes by comes up, and goes again; the network below it may change meanwhile."""
        self._vpns = self._vpns % 200 + 1
        self._soak.say("VPN up")
        self._vpn.up(self._vpns + 1, default=ROUTES)
        self._wait()
        self._soak.live()
        if self._random.random() < 0.5:
            self._soak.laptop_moves()
            self._soak.live()
        self._soak.say("VPN down")
        self._vpn.down()

    def nat_entry_pinned(self) -> None:
        """What the host behind the NAT sends makes entries without translation, for its rule is not there yet."""
        soak, link = self._soak, self._soak.inside.links[-1]
        seconds = self._random.choice(AWHILE)
        soak.say(f"inside: the NAT's rule comes after {seconds} s")
        with soak.gateway.untranslated():
            soak.gateway.forget()
            if link.network is not soak.gateway.private:
                soak.inside.move(*soak.place(soak.gateway.private))
            time.sleep(seconds)

    # -- the host -------------------------------------------------------------------------------------------------

    def disk_full(self) -> None:
        """Moves go on, and afterwards."""
        some = self._some()
        self._soak.say(f"disk full: {', '.join(daemon.host.name for daemon in some)}")
        for daemon in some:
            self._soak.disks[daemon.host.name].fill()
        self._change()
        self._soak.live()
        for daemon in some:
            self._soak.disks[daemon.host.name].clear()

    def no_descriptors(self) -> None:
        """The same."""
        some = self._some()
        self._soak.say(f"no descriptors: {', '.join(daemon.host.name for daemon in some)}")
        descriptors = [Descriptors(daemon) for daemon in some]
        for each in descriptors:
            each.deny()
        self._change()
        self._soak.live()
        for each in descriptors:
            each.allow()

    def clock_set(self) -> None:
        """While a daemon runs, or while it does not; it stays wrong."""
        daemon, off = self._random.choice(self._soak.moving), self._random.choice(CLOCKS)
        how = self._random.choice(("at once", "stop", "kill"))
        self._soak.say(f"{daemon.host.name}: clock {off / HOUR:+g} h, {how}")
        if how != "at once":
            getattr(daemon, how)()
        self._soak.clocks[daemon.host.name].set(off)
        if how != "at once":
            daemon.start()
        self._change()

    # -- the other daemon -----------------------------------------------------------------------------------------

    def daemon_gone(self) -> None:
        """It is no help in an outage in which addresses stay: what plain TCP lives through lives."""
        gone = self._random.choice(self._soak.moving)
        how: Callable[[], object] = self._random.choice((gone.stop, gone.kill))
        plain = self._plain(gone)
        how()
        self._soak.say(f"{gone.host.name} is gone: {how.__name__}; plain: {[work.name for work in plain]}")
        self._outage_where_addresses_stay(plain)
        gone.start()

    def udp_blocked(self) -> None:
        """The same, and both daemons are there."""
        plain = self._plain(self._soak.server)
        self._soak.say(f"UDP blocked; plain: {[work.name for work in plain]}")
        with no_datagrams(self._lab):
            self._outage_where_addresses_stay(plain)

    def _outage_where_addresses_stay(self, plain: list[Work]) -> None:
        network = self._random.choice([host.links[-1].network for host in (self._lab.client, self._lab.server)])
        self._wait()
        network.cut()
        time.sleep(self._random.choice(SHORT))
        network.restore()
        self._soak.live(plain)
        self._soak.done["lived without the other daemon"] += len(plain)

    def _plain(self, gone: Daemon) -> list[Work]:
        """Work between this daemon's host and others, of which all goes plainly, as both ends list it."""
        soak = self._soak
        clients = [gone] if gone is not soak.server else [soak.laptop, soak.nat]
        found = []
        for client in clients:
            try:
                wait_until(lambda client=client: self._is_plain(client), SETTLED, "plain", poll=0.5)  # type: ignore[misc]
            except LabError:
                continue
            found += [work for work in soak.works if work.client is client]
        return found

    def _is_plain(self, client: Daemon) -> bool:
        peers = {client: self._soak.server, self._soak.server: client}
        return all(
            connection["state"] == "protected" and connection["path"] in PLAIN
            for daemon, peer in peers.items()
            for connection in self._open(daemon)
            if connection["peer"] == self._soak.fingerprints[peer.host.name]
        )

    @staticmethod
    def _open(daemon: Daemon) -> list[dict[str, Any]]:
        return [c for c in daemon.ctl("connections") if c["state"] not in ("closed", "released")]

    # -- what these share -----------------------------------------------------------------------------------------

    def _wait(self) -> None:
        time.sleep(self._random.choice(AWHILE))

    def _some(self) -> list[Daemon]:
        daemons = self._soak.moving
        return self._random.sample(daemons, self._random.randint(1, len(daemons)))

    def _change(self) -> None:
        soak = self._soak
        self._random.choice((soak.laptop_moves, soak.server_moves, soak.inside_moves, soak.outage))()
