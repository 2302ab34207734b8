"""Everything at once, at random: test_soak.py and tests/soak/soak.py run it.

    laptop      roams between home, cafe and office
    inside      behind a NAT at home; the NAT dials again, or forgets; at times it is out in the cafe, and back
    server      moves between dc1 and dc2
    rendezvous  in the office, where it stays: laptop and server may move in the same moment

Steps: one moves, or both at once; an outage, in a long run also longer than TCP bears; losses for a while; a daemon is
killed or stopped, at some moment of a move or of nothing, and started again; what `soak_troubles` has.  After each step
every connection carries something new, both ways; at the end every byte is compared and nothing is left.  The router
drops what has a source of another network, as providers do (but not where an attacker is).

With an attacker there is mallory as well, in the office (attacker.py), and a bystander in the cafe to whom nobody has
anything to say: nothing of the connections gets to either.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from redirectctl.lab.daemons import Daemon
from redirectctl.lab.middlebox import Gateway
from redirectctl.lab.sshd import SshServer
from redirectctl.lab.streams import Bulk, Ticker, Verdict, start_bulk, start_idle, start_ticker, wait_until
from redirectctl.lab.terminal import Terminal
from redirectctl.lab.topology import Host, Lab, Network
from redirectctl.lab.uplinks import provider_filters
from tests.netns.attacked import Attacker
from tests.netns.clocks import Clock
from tests.netns.daemon_pair import FAST
from tests.netns.killing import going, stop_clean
from tests.netns.rendezvous_lab import FIRST_RENDEZVOUS, SERVE
from tests.netns.scarce import Disk
from tests.netns.soak_troubles import Troubles

PATIENCE = 120.0  # seconds for a connection to go on: losses and a loaded machine take their time
OUTAGES = (0.2, 1.0, 3.0, 6.0)  # seconds
LONG = 45.0  # an outage that TCP does not bear with RETRIES: 25 s
RETRIES = 6  # net.ipv4.tcp_retries2, so that seconds stand for days
LOSSES = (1, 3, 8)  # percent
DOWN = (0.0, 0.0, 0.5, 2.0)  # seconds that a daemon is away
WITHIN = 1.5  # seconds of a step in which the daemon goes
PACE = 1_500_000  # bytes a second of each bulk stream
FIRST, LAST = 20, 90  # numbers of hosts that move
ENOUGH = 240  # of the NAT's number
DISK = 32 << 20  # bytes for a daemon's state: the event log of a long run is there too


class Step(NamedTuple):
    """Something that happens."""

    does: Callable[[], None]
    weight: int
    alone: bool = False  # it needs the daemons as they are: none is killed meanwhile

    @property
    def kind(self) -> str:
        """What it is called."""
        return self.does.__name__


class Work:
    """The connections between a client and the server, of every kind."""

    def __init__(self, soak: Soak, name: str, client: Daemon, version: int) -> None:
        self.name = name
        self.client = client
        server, host, wrap = soak.lab.server, client.host, client.opted_in()
        self.terminal = Terminal(host, [*wrap, *soak.sshd.ssh("-tt", "sh", version=version)])
        self.ticker = start_ticker(server, host, version=version, interval=0.05, wrap=wrap)
        self.bulk = start_bulk(server, host, version=version, wrap=wrap, pace=PACE)
        self.requests = start_idle(server, host, 3, version=version, wrap=wrap)
        self.silent = start_idle(server, host, 3, version=version, wrap=wrap)
        self.count = 9

    def begin(self) -> tuple[float, int]:
        """What has arrived until now."""
        return time.monotonic(), self.bulk.received()

    def lives(self, since: tuple[float, int], word: str, *, silent: bool) -> None:
        """Something new comes on each; on what is silent only when asked for.  Raises LabError, AssertionError."""
        assert self.terminal.run(f"echo {word}", PATIENCE).strip() == word, f"{self.name}: terminal"
        self.ticker.wait_both(since[0], PATIENCE)
        assert self.requests.ask(PATIENCE) == {}, f"{self.name}: requests"
        if silent:
            assert self.silent.ask(PATIENCE) == {}, f"{self.name}: silent connections"
        what = f"{self.name}: bytes on {self.bulk.local}"
        wait_until(lambda: self.bulk.received() > since[1] or _over(self.bulk), PATIENCE, what, poll=0.05)
        assert not _over(self.bulk), f"{self.name}: the bulk stream has ended"

    def stop(self) -> list[Verdict]:
        """All of it ends; what arrived is compared."""
        verdicts = [self.ticker.stop(), self.bulk.stop()]
        assert self.terminal.leave(PATIENCE) == 0
        for idle in (self.requests, self.silent):
            idle.stop()
        return verdicts


def _over(stream: Bulk | Ticker) -> bool:
    return any(program.process.poll() is not None for program in stream.ends.values())


class Soak:
    """One lab with its workload.  AssertionError and LabError say what was lost."""

    def __init__(
        self,
        lab: Lab,
        seed: int,
        done: Counter[str],
        say: Callable[[str], None] = print,
        *,
        long: bool = False,
        kinds: Collection[str] = (),
        attacker: bool = False,
    ) -> None:
        """``done`` counts.  ``long``: with outages that TCP does not bear.  ``kinds``: of steps; empty: all."""
        self.lab = lab
        self.long = long
        self.outages = (*OUTAGES, LONG) if long else OUTAGES
        self.client_networks = (lab.home, lab.cafe, lab.office)
        self.server_networks = (lab.dc1, lab.dc2)
        self.random = random.Random(seed)
        self.say = say
        self.done = done
        self._numbers: Counter[str] = Counter()
        self.gateway = Gateway(lab, lab.home)
        self.inside = Host(lab, "inside")
        meeting = Host(lab, "rendezvous")
        for host in (self.inside, meeting):
            lab.add(host)
        self.inside.join(self.gateway.private, 10)
        meeting.join(lab.office, FIRST_RENDEZVOUS)
        for host in (lab.client, self.inside, lab.server):
            host.sysctl({"net.ipv4.tcp_retries2": RETRIES})
        # Where the attacker is, nobody keeps it from forging its sources.
        provider_filters(lab, *(n for n in lab.networks.values() if not attacker or n is not lab.office))
        config = f'{FAST}[rendezvous]\nservers = ["{meeting.address()}:7747"]\n'
        hosts = (lab.client, self.inside, lab.server)
        self.disks = {host.name: Disk(host, DISK) for host in hosts}
        self.clocks = {host.name: Clock(host) for host in hosts}
        self.rendezvous = Daemon(meeting, SERVE)
        self.moving = tuple(self.disks[host.name].daemon(config, self.clocks[host.name].command) for host in hosts)
        self.laptop, self.nat, self.server = self.moving
        self.daemons = (self.rendezvous, *self.moving)
        for daemon in self.daemons:
            daemon.start()
        self.fingerprints = {daemon.host.name: daemon.ctl("identity")["fingerprint"] for daemon in self.moving}
        self.sshd = SshServer(lab.server)
        self.attacker = attacked = Attacker(lab, seed) if attacker else None
        if attacked is not None:
            attacked.daemon.start()
            self._inform()
            wait_until(lambda: attacked.busy, PATIENCE, "an attacker with a session and connections", poll=0.2)
        self.works = [Work(self, "laptop 4", self.laptop, 4), Work(self, "laptop 6", self.laptop, 6),
                      Work(self, "inside 4", self.nat, 4)]  # fmt: skip
        self.extra: list[tuple[Ticker, Bulk]] = []
        self.attacked: dict[str, int] = {}  # what was sent, at the end
        self.done["connections"] = sum(work.count for work in self.works)
        for daemon in (self.laptop, self.nat):
            wanted = sum(work.count for work in self.works if work.client is daemon)
            daemon.wait_connections("protected", wanted, timeout=PATIENCE)
        self.steps = [step for step in self._steps() if not kinds or step.kind in kinds]

    def _steps(self) -> list[Step]:
        troubles = Troubles(self)
        return [
            Step(self.laptop_moves, 4),
            Step(self.server_moves, 3),
            Step(self.inside_moves, 4),
            Step(self.both_move, 2),
            Step(self.outage, 3),
            Step(self.losses, 2),
            Step(self.nothing, 1),
            Step(self.come_and_go, 2),
            Step(troubles.second_uplink, 3),
            Step(troubles.family_dies, 2),
            Step(troubles.vpn, 2),
            Step(troubles.nat_entry_pinned, 2),
            Step(troubles.disk_full, 2, alone=True),
            Step(troubles.no_descriptors, 2, alone=True),
            Step(troubles.clock_set, 2, alone=True),
            Step(troubles.daemon_gone, 2, alone=True),
            Step(troubles.udp_blocked, 2, alone=True),
        ]

    def _inform(self) -> None:
        """The attacker knows everything but keys and tokens."""
        if self.attacker is not None:
            self.attacker.learn([self.server], [self.laptop, self.nat, self.rendezvous])

    # -- steps --------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Steps for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()

    def step(self) -> None:
        """Something happens, in half of the cases while a daemon goes and comes back; then all lives."""
        (chosen,) = self.random.choices(self.steps, [step.weight for step in self.steps])
        since = [work.begin() for work in self.works]
        self._inform()
        if not chosen.alone and self.random.random() < 0.5:
            self._while_a_daemon_goes(chosen.does)
        else:
            chosen.does()
        self.live(since=since)
        if self.long:
            self._none_is_suspended()
        self.done["steps"] += 1
        self.done[f"step {chosen.kind}"] += 1

    def live(self, works: Sequence[Work] | None = None, since: Sequence[tuple[float, int]] = ()) -> None:
        """All of it carries something new.  ``works``: of these only; ``since``: what each had before."""
        self._inform()
        chosen = self.works if works is None else works
        silent = self.random.random() < 0.3
        now = [work.begin() for work in chosen]
        for work, (_, had), (moment, _) in zip(chosen, since or now, now, strict=True):
            work.lives((moment, had), f"word-{self.random.random()}", silent=silent)

    def _while_a_daemon_goes(self, step: Callable[[], None]) -> None:
        daemon = self.random.choice(self.daemons)
        after, down = self.random.random() * WITHIN, self.random.choice(DOWN)
        how = self.random.choice(("SIGKILL", "SIGKILL", "SIGTERM"))
        self.say(f"{how} of {daemon.host.name} after {after:.2f} s, back after {down} s")
        with going([daemon], after, down, how):
            time.sleep(self.random.random() * WITHIN)
            step()
        self.done[how] += 1

    def place(self, *networks: Network) -> tuple[Network, int]:
        """A network, not the one of last time, and a number there that was not used for long."""
        network = self.random.choice(networks)
        self._numbers[network.name] += 1
        return network, FIRST + self._numbers[network.name] % (LAST - FIRST)

    def laptop_moves(self) -> None:
        """Another network, or another address; in some cases before it has left."""
        place = self.place(*self.client_networks)
        self.say(f"laptop moves to {place[0].name} {place[1]}")
        overlap = self.random.random() < 0.3 and place[0] is not self.lab.client.links[-1].network
        self.lab.client.move(*place, make_before_break=overlap)
        self.done["moves"] += 1

    def server_moves(self) -> None:
        """The same, of the server."""
        place = self.place(*self.server_networks)
        self.say(f"server moves to {place[0].name} {place[1]}")
        self.lab.server.move(*place)
        self.done["moves"] += 1

    def both_move(self) -> None:
        """Laptop and server in the same moment: the rendezvous knows."""
        places = self.place(*self.client_networks), self.place(*self.server_networks)
        self.say("laptop and server move at once")
        for host in (self.lab.client, self.lab.server):
            host.leave()
        for host, place in zip((self.lab.client, self.lab.server), places, strict=True):
            host.join(*place)
        self.done["moves"] += 2
        self.done["both at once"] += 1

    def inside_moves(self) -> None:
        """The NAT dials again or forgets, the host gets another address behind it, or goes out, or comes back."""
        at_home = self.inside.links[-1].network is self.gateway.private
        number = int(self.gateway.links[0].addresses.v4) & 0xFF
        what = self.random.choice(("rebind", "forget", "readdress", "out") if at_home and number < ENOUGH else ("out",))
        if not at_home:
            what = self.random.choice(("back", "out"))
        if what in ("rebind", "forget"):
            # A connection that has not moved ends at a NAT's RST while a daemon is away, as it does without us.
            self._end_extra()
        self.say(f"inside: {what}")
        match what:
            case "rebind":
                self.gateway.rebind()
            case "forget":
                self.gateway.forget()
            case "readdress":
                self.inside.readdress(self.place(self.gateway.private)[1])
            case "out":
                self.inside.move(*self.place(self.lab.cafe))
            case "back":
                self.inside.move(*self.place(self.gateway.private))
        self.done["moves"] += 1
        self.done[f"inside: {what}"] += 1

    def outage(self) -> None:
        """A network drops everything, or a host is on none."""
        seconds = self.random.choice(self.outages)
        if self.random.random() < 0.5:
            network = self.random.choice([host.links[-1].network for host in (self.lab.client, self.lab.server)])
            self.say(f"{network.name} drops everything for {seconds} s")
            network.cut()
            time.sleep(seconds)
            network.restore()
        else:
            self.say(f"laptop has no network for {seconds} s")
            self.lab.client.leave()
            time.sleep(seconds)
            self.lab.client.join(*self.place(self.lab.home, self.lab.cafe))
            self.done["moves"] += 1
        self.done["outages"] += 1
        self.done["outages beyond TCP"] += seconds == LONG

    def losses(self) -> None:
        """A network loses packets, and something moves there."""
        network, percent = self.lab.server.links[-1].network, self.random.choice(LOSSES)
        self.say(f"{network.name} loses {percent} %")
        network.lose(percent)
        self.laptop_moves()
        time.sleep(2.0)
        network.restore()
        self.done["losses"] += 1

    def nothing(self) -> None:
        """Time passes."""
        time.sleep(1.0)

    def come_and_go(self) -> None:
        """Connections of a moment ago end, others begin."""
        self._end_extra()
        client = self.random.choice((self.laptop, self.nat))
        if client.process is None or client.process.poll() is not None:
            return  # nobody would opt it in
        self.say(f"new connections of {client.host.name}")
        server, wrap = self.lab.server, client.opted_in()
        ticker = start_ticker(server, client.host, interval=0.05, wrap=wrap)
        self.extra = [(ticker, start_bulk(server, client.host, wrap=wrap, pace=PACE))]
        # What is not protected yet may be lost by the next move, and that is as it should be.
        begun = {each.local: each.ends["client"].process.pid for each in self.extra[0]}
        wait_until(lambda: self._protected(client, begun), PATIENCE, "new connections protected", poll=0.2)
        self.done["connections"] += 2

    def _end_extra(self) -> None:
        """Those that began during the run."""
        for ticker, bulk in self.extra:
            self._judge([ticker.stop(), bulk.stop()])
        self.extra = []

    @staticmethod
    def _protected(client: Daemon, begun: Mapping[str, int]) -> bool:
        """Connections and the processes that have them: opted in now, if redirect-run had no daemon to ask."""
        if client.process is None or client.process.poll() is not None or not client.socket.exists():
            return False
        try:
            states = {c["local"]: c["state"] for c in client.ctl("connections")}
            for pid in [pid for local, pid in begun.items() if local not in states]:
                client.ctl("protect", str(pid))
        except Exception:  # it is just being started again
            return False
        return all(states.get(local) == "protected" for local in begun)

    def _none_is_suspended(self) -> None:
        """Any more, also of those that have nothing to say.  Raises LabError."""

        def states() -> set[str]:
            return {connection["state"] for daemon in self.moving for connection in daemon.ctl("connections")}

        wait_until(lambda: "suspended" not in states(), PATIENCE, "no connection is suspended", poll=1.0)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _judge(self, verdicts: Sequence[Verdict]) -> None:
        assert all(verdict.ok for verdict in verdicts), [v for v in verdicts if not v.ok]
        for verdict in verdicts:
            sent = verdict.figures["server"]
            self.done["bytes compared"] += int(sent.get("bytes", 0)) or 16 * int(sent.get("received", 0))

    def finish(self) -> None:
        """Nothing is lost, suspended, wrong or left."""
        self._none_is_suspended()
        self._end_extra()
        for work in self.works:
            assert work.silent.ask(PATIENCE) == {}, f"{work.name}: silent connections"
            self._judge(work.stop())
        if self.attacker is not None:
            self.attacker.end(self.server)
            self.attacked = self.attacker.judge(self.daemons)
        # Where a clock was set peers were met in what is the future now, and that is what doctor says.
        stop_clean(self.daemons, known={"daemon.clock"} if self.done["step clock_set"] else ())
