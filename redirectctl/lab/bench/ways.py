"""Throughput of one connection by each way that it may take, and by what people would use instead.

Two hosts in network namespaces and a router between them, one iperf3 connection at a time, a few seconds each, in turn:

    plain                  as it is
    rewritten              nftables rewrites addresses on both hosts
    tunnel                 TUN devices and carriers, a process each
    tunnel with integrity  the same, every datagram with a tag
    relayed                the tunnel, by way of a third host that passes datagrams on: a third process
    wireguard-go           what people would use instead; from Debian, with wireguard-tools; left out where it is not

All of it on the same processors.  Ratios are those of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
from collections import defaultdict
from functools import partial
from ipaddress import ip_address

from redirectctl.flows.commands import Carried
from redirectctl.flows.connection import Flow
from redirectctl.kernel.constants import MARK_MOVED, MARK_TUNNEL, RULE_PRIORITY, TUN_DEVICE, TUNNEL_TABLE
from redirectctl.kernel.netfilter.rewriter import Rewriter
from redirectctl.kernel.sockets.diag import SockDiag, TcpState
from redirectctl.kernel.tunnel.carrier import Carrier
from redirectctl.kernel.tunnel.reports import Report
from redirectctl.kernel.tunnel.reuseport import share_port
from redirectctl.lab.bench import AbsentError, Figures, Outcome, machine, markdown, need, tell
from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import FIRST_HOST, Host, Lab
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.tunnel import Offer

METHODS = {  # and the first port of each; no port that a connection is given by itself
    "plain": 20000,
    "rewritten": 21000,
    "tunnel": 22000,
    "tunnel with integrity": 23000,
    "relayed": 24000,
    "wireguard-go": 25000,
}
TUNNELLED = ("tunnel", "tunnel with integrity", "relayed")
PORT = 5201
CONTROL_PORT = 7747
RELAY_RATE = 1e12  # bytes a second: no limit
PATIENCE = 30.0
LOOK = 0.02  # seconds between two looks for connections that are to move
MOST_ROUNDS = 100
QUICK = ("--rounds", "2", "--seconds", "2")
OTHERS = "wireguard-go"


def steer(version: int) -> str:
    """Everything of the tunnelled kinds of connection but its first packets goes to the TUN device."""
    first, last = METHODS[TUNNELLED[0]], METHODS[TUNNELLED[-1]] + MOST_ROUNDS
    word = "ip" if version == 4 else "ip -6"
    return f"""
nft -f - <<'NFT'
table inet bench {{
  chain out {{
    type route hook output priority mangle
    tcp flags & syn == 0 tcp sport {first}-{last} meta mark set meta mark or {MARK_TUNNEL}
    tcp flags & syn == 0 tcp dport {first}-{last} meta mark set meta mark or {MARK_TUNNEL}
  }}
  chain in {{
    type filter hook prerouting priority -310
    iifname {TUN_DEVICE} meta mark set {MARK_MOVED | MARK_TUNNEL}
  }}
}}
NFT
{word} route add default dev {TUN_DEVICE} table {TUNNEL_TABLE}
{word} rule add priority {RULE_PRIORITY} fwmark {MARK_TUNNEL}/{MARK_TUNNEL} lookup {TUNNEL_TABLE}
"""


def flows(local: str, remote: str, relay: str, rounds: int, server: bool) -> list[Carried]:
    """What one end's carrier carries.  Addresses of client, server and relay."""
    found = []
    for method in TUNNELLED:
        base = METHODS[method]
        for number in range(rounds):
            tuple_ = FourTuple(SockAddr(ip_address(local), base + number), SockAddr(ip_address(remote), PORT))
            offers = [Offer(base + number, random.Random(n).randbytes(16), 1 << 40) for n in (1, 2)]
            sending, receiving = reversed(offers) if server else offers
            tuple_ = tuple_.mirrored if server else tuple_
            peer = SockAddr(ip_address(relay) if method == "relayed" else tuple_.remote.host, CONTROL_PORT)
            integrity = method == "tunnel with integrity"
            found.append(Carried(tuple_, sending, receiving, sending.start, integrity, tuple_.local.host, peer))
    return found


def end(role: str, local: str, remote: str, alias: str, relay: str, rounds: int) -> None:
    """Be one end: carrier, and rewriting of addresses; or be the relay between the two."""
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    server = role == "server"
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    control = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        control.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    control.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", CONTROL_PORT))
    carrier = Carrier([share_port(control)], report)
    if role == "relay":
        flows_ = range(METHODS["relayed"], METHODS["relayed"] + rounds)
        ends = [SockAddr(ip_address(address), CONTROL_PORT) for address in (local, remote)]
        for here, there in (ends, ends[::-1]):
            routes = dict.fromkeys(flows_, (there, ip_address(relay)))
            carrier.relays.set(str(here).encode(), here, routes, RELAY_RATE)
        print("ready", flush=True)
        signal.sigwait(ending)
        carrier.close()
        return
    for carried in flows(local, remote, relay, rounds, server):
        carrier.carry(carried)
    rewriter = Rewriter()
    rewriter.setup()
    diag = SockDiag()
    moved = []
    for port in range(METHODS["rewritten"], METHODS["rewritten"] + rounds):
        pair = [FourTuple(SockAddr(ip_address(a), port), SockAddr(ip_address(remote), PORT)) for a in (local, alias)]
        before, after = (each.mirrored if server else each for each in pair)
        moved.append(Flow(before, after))
    print("ready", flush=True)
    while signal.sigtimedwait(ending, LOOK) is None:  # a connection moves when it is there: SYNs are nobody's move
        begun = [flow for flow in moved if _is_open(diag, flow.socket)]
        if begun:
            rewriter.apply(begun)
            moved = [flow for flow in moved if flow not in begun]
    carrier.close()


def _is_open(diag: SockDiag, connection: FourTuple) -> bool:
    found = diag.get(connection, ifindex=0)
    return found is not None and found.state is TcpState.ESTABLISHED


def report(what: Report) -> None:
    """Say it."""
    if what.what != "retransmission":
        print(what, file=sys.stderr)


class Bench:
    """The lab, with everything started."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        version = 6 if options.ipv6 else 4
        self.lab = Lab()
        client, server = self.lab.client, self.lab.server
        self.target = str(server.address(version))
        local, alias = str(client.address(version)), str(self.lab.home.addresses(FIRST_HOST + 1).of(version))
        # Nothing is sent from it unless addresses are rewritten.
        length = "24" if version == 4 else "64 nodad preferred_lft 0"
        client.ip(f"address add {alias}/{length} dev eth0")
        between = self.lab.stranger
        between.join(self.lab.office, FIRST_HOST)
        relay = str(between.address(version))
        for host, role in ((client, "client"), (server, "server"), (between, "relay")):
            command = [sys.executable, "-m", "redirectctl.lab.bench.ways", role, local, self.target, alias, relay]
            process = host.popen([*command, str(options.rounds)], stdout=subprocess.PIPE)
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise LabError(f"the {role}'s carrier did not start")
            if host is not between:
                host.run(["sh", "-e"], stdin=steer(version))
        if OTHERS in options.only:
            self.wireguard(client, server)
        server.popen(["iperf3", "--server", "--port", str(PORT)], stdout=subprocess.DEVNULL)
        listening = ["ss", "-ltnH", f"sport = :{PORT}"]
        wait_until(lambda: server.run(listening).stdout, PATIENCE, "iperf3 --server")

    def wireguard(self, client: Host, server: Host) -> None:
        """A WireGuard tunnel 10.77.0.0/24 between the two."""
        keys = {}
        for host in (client, server):
            private = host.run(["wg", "genkey"]).stdout
            keys[host.name] = private, host.run(["wg", "pubkey"], stdin=private).stdout.strip()
        for number, (host, other) in enumerate(((client, server), (server, client)), 1):
            device = f"wgb{os.getpid() % 10000}{number}"  # its control socket is a file that all namespaces see
            host.popen(["wireguard-go", "--foreground", device], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(partial(shown, host, device), PATIENCE, device)
            peer = ["peer", keys[other.name][1], "allowed-ips", "10.77.0.0/24"]
            peer += ["endpoint", f"{other.address(4)}:51820"]
            argv = ["wg", "set", device, "listen-port", "51820", "private-key", "/dev/stdin", *peer]
            host.run(argv, stdin=keys[host.name][0])
            host.ip(f"address add 10.77.0.{number}/24 dev {device}", f"link set {device} mtu 1420 up")

    def measure(self, method: str, number: int) -> float:
        """Bits a second of one connection."""
        address = "10.77.0.2" if method == OTHERS else self.target
        command = ["iperf3", "--client", address, "--port", str(PORT), "--cport", str(METHODS[method] + number)]
        command += ["--time", str(self.options.seconds), "--omit", "1"]
        command += ["--congestion", self.options.congestion, "--json"]
        found = json.loads(self.lab.client.run(command, timeout=self.options.seconds + PATIENCE).stdout)
        if "error" in found:
            raise LabError(f"iperf3, {method}: {found['error']}")
        return float(found["end"]["sum_received"]["bits_per_second"])


def figures(rates: dict[str, list[float]]) -> list[Figures]:
    """Of each way.  Ratios are those of one round, to wireguard-go; None without it."""
    found: list[Figures] = []
    for method, of_method in rates.items():
        row: Figures = {"connection": method, "bits_per_second": statistics.median(of_method)}
        ratios = [rate / base for rate, base in zip(of_method, rates.get(OTHERS, ()), strict=False)]
        row["ratio"] = statistics.median(ratios) if ratios else None
        row["lowest_ratio"], row["highest_ratio"] = (min(ratios), max(ratios)) if ratios else (None, None)
        found.append(row)
    return found


def shown(host: Host, device: str) -> bool:
    """WireGuard knows it."""
    return device in host.run(["wg", "show", "interfaces"]).stdout


def table(found: list[Figures]) -> str:
    """In Markdown."""
    rows = []
    for row in found:
        cells = [str(row["connection"]), f"{float(row['bits_per_second'] or 0) * 1e-9:.2f} Gbit/s"]
        ratios = [row[name] for name in ("ratio", "lowest_ratio", "highest_ratio")]
        cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        rows.append(cells)
    return markdown(["connection", "median", "ratio to wireguard-go: median", "lowest", "highest"], rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--rounds", type=_rounds, default=5, help="connections of each kind (5)")
    parser.add_argument("--seconds", type=int, default=4, help="of measurement (4)")
    parser.add_argument("--congestion", default="reno", metavar="NAME", help="TCP congestion control (reno)")
    parser.add_argument("--ipv6", action="store_true", help="IPv6 instead of IPv4")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="KIND", help="not all six")


def _rounds(text: str) -> int:
    if not 1 <= int(text) <= MOST_ROUNDS:
        raise argparse.ArgumentTypeError(f"1 to {MOST_ROUNDS}")
    return int(text)


def measure(options: argparse.Namespace) -> Outcome:
    """Throughput.  Raises AbsentError, LabError."""
    need("iperf3")
    if OTHERS in options.only and (absent := [tool for tool in (OTHERS, "wg") if shutil.which(tool) is None]):
        tell(f"without {OTHERS}: not installed: {', '.join(absent)}; apt install wireguard-go wireguard-tools")
        options.only = [method for method in options.only if method != OTHERS]
        if not options.only:
            raise AbsentError("nothing is left to measure")
    rates: dict[str, list[float]] = defaultdict(list)
    bench = Bench(options)
    for number in range(options.rounds):
        for method in options.only:
            rates[method].append(bench.measure(method, number))
        shown = ", ".join(f"{method} {found[-1] * 1e-9:.2f}" for method, found in rates.items())
        tell(f"round {number + 1}: {shown} Gbit/s")
    found = figures(rates)
    without = "" if OTHERS in options.only else f", without {OTHERS}"
    title = f"iperf3, {options.rounds} rounds, {options.congestion}, {machine(options.ipv6)}{without}"
    return Outcome(title, table(found), found)


if __name__ == "__main__":  # as one end
    _, role_, local_, target_, alias_, relay_, rounds_ = sys.argv
    end(role_, local_, target_, alias_, relay_, int(rounds_))
