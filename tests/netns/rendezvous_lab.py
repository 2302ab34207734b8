"""Client and server with redirectd, and one or two rendezvous on a network that neither of them ever is on."""

from __future__ import annotations

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Addresses, Host, Lab, Network
from tests.netns.daemon_pair import FAST, PATIENCE, Pair

FIRST_RENDEZVOUS = 100  # its number in the office
SERVE = FAST + "[rendezvous]\nserve = true\n"


class Meeting(Pair):
    """A pair that meets at ``count`` rendezvous; each end is registered at each of them."""

    def __init__(self, lab: Lab, count: int = 1, config: str = "", serve: str = "") -> None:
        """``config``: added to that of client and server; ``serve``: to that of the rendezvous."""
        self.rendezvous = []
        for number in range(FIRST_RENDEZVOUS, FIRST_RENDEZVOUS + count):
            host = Host(lab, f"rendezvous{number - FIRST_RENDEZVOUS + 1}")
            lab.add(host)
            host.join(lab.office, number)
            daemon = Daemon(host, SERVE + serve)
            daemon.start()
            self.rendezvous.append(daemon)
        servers = ", ".join(f'"{daemon.host.address()}:7747"' for daemon in self.rendezvous)
        meeting = f"{FAST}{config}[rendezvous]\nservers = [{servers}]\n"
        super().__init__(lab, meeting, meeting)
        for daemon in self.daemons:
            wait_until(lambda daemon=daemon: len(self.reached(daemon)) == count, PATIENCE, f"{daemon.host.name} is "
                       "registered", poll=0.1)  # fmt: skip

    @staticmethod
    def reached(daemon: Daemon) -> set[str]:
        """The rendezvous that the latest event about says is reached, by peer."""
        latest = {event["peer"]: event["event"] for event in daemon.events() if event["event"].startswith("rendezvous")}
        return {peer for peer, name in latest.items() if name == "rendezvous.reached"}

    def both_move(self, client: Network, server: Network, number: int) -> list[tuple[Host, list[Addresses]]]:
        """Client and server leave where they are and are elsewhere in the same moment; what they have lost."""
        gone = [(host, host.leave()) for host in (self.lab.client, self.lab.server)]
        self.lab.client.join(client, number)
        self.lab.server.join(server, number)
        return gone
