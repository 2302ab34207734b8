"""What only the running daemon knows: whether kernel, store and clock are as its connections need them."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

from redirectctl import __version__
from redirectctl.api.reasons import explain
from redirectctl.api.schema import Check
from redirectctl.daemon.runtime import Runtime
from redirectctl.doctor import host, traces
from redirectctl.doctor.alone import cgroups
from redirectctl.doctor.firewall import ruleset
from redirectctl.doctor.firewall.ruleset import Ruleset
from redirectctl.doctor.outcome import count, fail, ok, refused, several, warn
from redirectctl.doctor.traces import Routing, Trace
from redirectctl.flows.connection import Flow
from redirectctl.flows.state import State
from redirectctl.kernel.constants import NFT_TABLE, ROUTE_TABLE, Queue
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.elements import flows_in, rules
from redirectctl.kernel.netfilter.skeleton import skeleton
from redirectctl.kernel.routing.needs import Needs, needs_of_all
from redirectctl.kernel.sockets.reserved_ports import ReservedPorts
from redirectctl.store.database import DATABASE
from redirectctl.store.records import PeerState

LOOKS = 5  # at kernel and engine; a difference that is still there in the last one is none of a change under way
PAUSE = 0.3  # seconds between them
STEP = 2.0  # seconds by which the clock may differ: NTP slews far less than that
AHEAD = 60.0  # seconds by which a stored time may be in the future

RESTART = "`systemctl restart redirectd`"


def daemon(r: Runtime) -> Check:
    """That it runs, each part of it."""
    name = "daemon"
    if dead := r.loops.dead():
        return fail(name, several(dead), f"{RESTART}; redirectd's log may say why")
    if failing := [f"{pulse.name}: {pulse.error}" for pulse in r.loops.pulses if pulse.failing]:
        return fail(name, f"{several(failing)}: tried again each second", "redirectd's log has the details")
    before = [f"{p.name} failed {p.since_failure:.0f} s ago: {p.error}" for p in r.loops.pulses if p.error is not None]
    return ok(name, several([f"redirectd {__version__}, process {r.pid}", *before]))


def state_directory(r: Runtime) -> Check:
    """The private key and the pairwise secrets are nobody else's."""
    name = "daemon.state"
    try:
        wrong = [path for path in (r.state, *sorted(r.state.glob(f"{DATABASE}*"))) if _open_to_others(path)]
        room = os.statvfs(r.state)
    except OSError as error:
        return fail(name, f"{r.state}: {error.strerror}", "make it a directory of root with mode 0700")
    if wrong:
        text = several([f"{path} has mode {stat.S_IMODE(path.stat().st_mode):04o}" for path in wrong])
        return fail(name, text, f"chmod go= {' '.join(map(str, wrong))}")
    if r.peers.saving.failure is not None:
        peers, connections = r.peers.saving.waiting
        left = f"{count(peers, 'peer')} and {count(connections, 'connection')} since {r.peers.saving.failed_for:.0f} s"
        return fail(
            name, f"not stored, {left}: {r.peers.saving.failure}", "it is tried again each second, and moves go on"
        )
    if room.f_bavail * room.f_frsize < 1 << 20:
        return fail(
            name, f"no room left for {r.state}", "free some space; what is not stored is lost when redirectd ends"
        )
    return ok(name, f"{r.state}, only for root")


def _open_to_others(path: Path) -> bool:
    status = path.stat()
    forbidden = stat.S_IWGRP | stat.S_IWOTH if path.is_dir() else stat.S_IRWXG | stat.S_IRWXO
    return bool(status.st_mode & forbidden) or status.st_uid not in (0, os.geteuid())


async def sleep(r: Runtime) -> Check:
    """Who tells that the machine has slept; nothing is wrong without logind."""
    why = await r.sleep_signals.found()
    told = f"the clocks tell redirectd of sleep ({why})" if why else "logind and the clocks tell redirectd of sleep"
    return ok("daemon.sleep", told)


def clock(r: Runtime) -> Check:
    """Wall clock against the clock that cannot be set; what is stored against the wall clock."""
    name = "daemon.clock"
    now = time.time()
    step = now - r.started - r.uptime
    known = r.peers.records.values()
    ahead = [p for p in known if max(p.first_seen, p.last_contact or 0.0) > now + AHEAD]
    if ahead:
        text = f"{count(len(ahead), 'peer')} last met in the future: the clock was ahead, or is behind now"
        return warn(name, text, "set the clock (timedatectl); times in listings are off until then")
    if abs(step) > STEP:
        text = f"the clock was set {abs(step):.0f} s {'forward' if step > 0 else 'back'} since redirectd started"
        return ok(name, f"{text}; times in listings before that are off by as much")
    return ok(name, "no jump since redirectd started")


def control_port(r: Runtime) -> Check:
    """The UDP port is open, for both families."""
    name = "control.port"
    port = r.port.port
    bound = [kind for kind, file in (("IPv4", "udp"), ("IPv6", "udp6")) if port in _udp_ports(file)]
    if not bound:
        return fail(name, f"UDP {port} is not open", RESTART)
    missing = "IPv6" if "IPv6" not in bound and host.has_ipv6() and not r.config.control.listen else None
    if missing:
        return warn(name, f"UDP {port} is open for IPv4 only", f"{RESTART}; redirectd's log says why IPv6 is not")
    where = f" on {several(list(r.config.control.listen), ', ')}" if r.config.control.listen else ""
    return ok(name, f"UDP {port} is open for {' and '.join(bound)}{where}")


def _udp_ports(file: str) -> set[int]:
    try:
        lines = Path(f"/proc/thread-self/net/{file}").read_text().splitlines()[1:]
    except OSError:
        return set()
    return {int(line.split()[1].rpartition(":")[2], 16) for line in lines}


def peers(r: Runtime) -> Check:
    """Keys that wait for a person."""
    known = Counter(p.state for p in r.peers.records.values())
    changed = [p.fingerprint for p in r.peers.records.values() if p.state is PeerState.CHANGED]
    waiting = [p.fingerprint for p in r.peers.records.values() if p.state is PeerState.PENDING]
    if changed:
        text = f"another host's key where one is known: {several(changed, ', ')}"
        return fail(
            "peers",
            text,
            f"somebody is answering in its place, or the host was installed anew: `redirectctl doctor {changed[0]}`",
        )
    if waiting:
        return warn(
            "peers",
            f"waiting for a person: {several(waiting, ', ')}",
            f"`redirectctl approve {waiting[0]}`, or `redirectctl reject {waiting[0]}`",
        )
    return ok("peers", ", ".join(f"{number} {state}" for state, number in known.items()) or "none met yet")


def connections(r: Runtime) -> Check:
    """Those that are not protected although they are opted in."""
    alive = [c for c in r.engine.table if c.state is not State.CLOSED]
    states = (State.UNSUPPORTED, State.REFUSED, State.PENDING)
    left = [c for c in alive if c.state in states]
    if not left:
        return ok("connections", f"{sum(c.movable for c in alive)} of {len(alive)} protected")
    lines = Counter(f"{c.socket.remote.host}: {c.state.value}, {explain(c.reason)}" for c in left)
    text = several([f"{number}x {line}" if number > 1 else line for line, number in lines.items()])
    return warn("connections", f"not protected: {text}", "`redirectctl doctor HOST`, or `redirectctl connections`")


class KernelState:
    """Compares what the engine thinks with what the kernel has; looks again while a change is under way."""

    def __init__(self, runtime: Runtime) -> None:
        self._r = runtime
        self.rules: Ruleset | None = None

    async def examine(self) -> list[Check]:
        """Table, queues, routing, ports, leftovers."""
        checks: list[Check] = []
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(PAUSE)
            try:
                checks = await self._look()
            except KernelError as error:
                return [refused("kernel.state", error)]
            if all(check.status in ("ok", "skip") for check in checks):
                break
        return checks

    async def _look(self) -> list[Check]:
        self.rules = await ruleset.read()
        own = traces.own_table(self.rules.nft)
        present = await traces.routing()
        queues = traces.queue_traces()
        flows = [c.flow for c in self._r.engine.table if c.guarded]
        wanted, needed = {rules(flow) for flow in flows}, needs_of_all(flows)
        arrivals = await self._arrivals()
        conflicts = await self._r.rewriting.keeper.rp_filter_conflicts(arrivals)
        return [
            self._table(own, wanted),
            self._queues(queues),
            self._routing(present, needed),
            self._ports(needed.ports),
            self._rp_filter(conflicts),
            self._leftovers(own, present, queues, wanted, needed, arrivals),
        ]

    async def _arrivals(self) -> dict[IPv4Address, int]:
        """By which interface packets of moved connections come in, by the address that they say they are from."""
        found: dict[IPv4Address, int] = {}
        for c in self._r.engine.table:
            old = c.socket.remote.host
            if c.guarded and isinstance(old, IPv4Address) and c.wire.remote.host != old:
                interface = await self._r.network.interface_to(c.wire.remote.host, c.wire.local.host)
                if interface is not None:
                    found[old] = interface
        return found

    @staticmethod
    def _table(own: list[dict[str, object]], wanted: set[Flow]) -> Check:
        name = "state.table"
        if not own:
            hint = f"something flushed the ruleset; {RESTART} puts it back"
            lost = f": {count(len(wanted), 'connection')} unprotected" if wanted else ""
            return fail(name, f"nft table inet {NFT_TABLE} is gone{lost}", hint)
        damage = _damage(own)
        if damage:
            return fail(name, f"somebody changed nft table inet {NFT_TABLE}: {damage}", f"{RESTART} puts it back")
        missing = wanted - flows_in(own)
        if missing:
            text = several([traces.flow_trace(flow).what for flow in sorted(missing, key=str)])
            return fail(name, f"missing: {text}", f"{RESTART} puts it back")
        return ok(name, f"nft table inet {NFT_TABLE} is whole, with {count(len(wanted), 'protected connection')}")

    @staticmethod
    def _queues(queues: list[Trace]) -> Check:
        name = "state.queues"
        bound = host.bound_queues()
        unbound = [str(number) for number in Queue if bound is not None and number not in bound]
        if unbound:
            return fail(name, f"redirectd does not listen on NFQUEUE {', '.join(unbound)}", RESTART)
        if not host.uses_nft_queue() and len(queues) < traces.wanted_queues():
            text = f"{len(queues)} of {traces.wanted_queues()} iptables rules to NFQUEUE are there"
            return fail(
                name,
                f"{text}: RSTs pass without a question to the peer",
                f"something flushed them; {RESTART} puts them back",
            )
        return ok(name, "packets that need a decision reach redirectd")

    @staticmethod
    def _routing(present: Routing, needed: Needs) -> Check:
        name = "state.routing"
        there = Counter(trace.what for trace in present.traces)
        need = [*traces.skeleton_traces(present.first), *traces.wanted_traces(needed)]
        if present.device and not present.up:
            return fail(name, "device redirect0 is down, and its routes are gone", f"{RESTART} puts them back")
        missing = [trace.what for trace in need if not there[trace.what]]
        if missing:
            hint = f"is a network manager removing what it does not know? {RESTART} puts it back"
            return fail(name, f"missing: {several(missing)}", hint)
        if present.hiding:
            text = several([trace.what for trace in present.hiding])
            remedy = several([trace.remove for trace in present.hiding])
            return warn(name, f"{text}: this host cannot reach the host that has the address now", remedy)
        if kept := sorted(map(str, needed.kept)):
            return ok(name, f"keeps {count(len(kept), 'old address', 'old addresses')}: {several(kept, ', ')}")
        return ok(name, "device and rules are there; no old address is kept")

    @staticmethod
    def _ports(need: frozenset[int]) -> Check:
        name = "state.ports"
        missing = need - ReservedPorts().current()
        if missing:
            hint = f"something set net.ipv4.ip_local_reserved_ports; {RESTART} puts them back"
            return fail(name, f"not reserved: {several([str(port) for port in sorted(missing)], ', ')}", hint)
        if not need:
            return ok(name, "no port needs to be reserved")
        return ok(name, f"reserved for moved connections: {several([str(port) for port in sorted(need)], ', ')}")

    @staticmethod
    def _rp_filter(conflicts: list[str]) -> Check:
        name = "state.rp-filter"
        if conflicts:
            return fail(name, several(conflicts), "sysctl -w net.ipv4.conf.all.rp_filter=2")
        return ok(name, "reverse path filtering drops nothing of ours")

    def _leftovers(
        self,
        own: list[dict[str, object]],
        present: Routing,
        queues: list[Trace],
        wanted: set[Flow],
        needed: Needs,
        arrivals: dict[IPv4Address, int],
    ) -> Check:
        """What is there beyond what the connections need, each thing as often as it is too many."""
        need = Counter(trace.what for trace in traces.skeleton_traces(present.first))
        need.update(trace.what for trace in traces.wanted_traces(needed))
        # Whether an interface's rp_filter is strict may have changed since the route was made.
        need.update(traces.route_trace(old, ROUTE_TABLE).what for old in arrivals)
        found = [traces.flow_trace(flow) for flow in sorted(flows_in(own) - wanted, key=str)]
        for trace in present.traces:
            if need[trace.what] > 0:
                need[trace.what] -= 1
            else:
                found.append(trace)
        allowed: Counter[str] = Counter()
        if not host.uses_nft_queue():
            allowed.update({trace.what for trace in queues})
        for trace in queues:
            if allowed[trace.what] > 0:
                allowed[trace.what] -= 1
            else:
                found.append(trace)
        found += traces.port_traces(self._r.rewriting.reserved_ports - needed.ports)
        name = "leftovers"
        if not found:
            return ok(name, "none")
        return fail(name, traces.listed(found), f"{RESTART} removes it; by hand:\n{traces.commands(found)}")


def _damage(own: list[dict[str, object]]) -> str | None:
    """What of the table's skeleton is not there."""
    there: Counter[str] = Counter()
    for item in own:
        ((kind, value),) = item.items()
        if isinstance(value, dict):
            there[f"{kind} {value['chain']}" if kind == "rule" else f"{kind} {value['name']}"] += 1
    need: Counter[str] = Counter()
    for command in skeleton():
        if "add" not in command:
            continue
        ((kind, value),) = command["add"].items()
        if kind in ("set", "map", "chain", "counter"):
            need[f"{kind} {value['name']}"] += 1
        elif kind == "rule":
            need[f"rule {value['chain']}"] += 1
    missing = [what.replace("rule ", "a rule of chain ") for what in need if there[what] < need[what]]
    return f"{several(missing, ', ')} missing" if missing else None


async def cgroup_leftovers() -> Check:
    """Empty cgroups that the sweep could not remove."""
    return cgroups(await asyncio.to_thread(traces.swept_cgroups))
