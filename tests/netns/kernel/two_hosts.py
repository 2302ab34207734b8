"""Two hosts, a router and room for a stranger, driven from the test's own process.

    bob ──── net1 192.0.2.0/24     2001:db8:1::/64 ──┐
     │                                               │
     └────── net2 198.51.100.0/24  2001:db8:2::/64 ──┤
                                                     router (a bridge each, address .1)
    alice ── net3 203.0.113.0/24   2001:db8:3::/64 ──┤
     │                                               │
     └────── net4 198.18.0.0/24    2001:db8:4::/64 ──┘

Each host has a thread of its own in its network namespace; `host.do` runs a function there, `host.run` a coroutine.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, TypeVar

from redirectctl.flows.connection import Flow
from redirectctl.kernel.netfilter.rewriter import Rewriter
from redirectctl.kernel.routing.old_addresses import Keeper
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

T = TypeVar("T")
_CLONE_NEWNET = 0x4000_0000
_serial = itertools.count()
PREFIXES = {1: "192.0.2.", 2: "198.51.100.", 3: "203.0.113.", 4: "198.18.0."}


def sh(command: str, ns: str | None = None, check: bool = True) -> str:
    words = ["sh", "-ec", command]
    if ns is not None:
        words = ["nsenter", f"--net=/run/netns/{ns}", *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return done.stdout


def until(condition: Callable[[], T], seconds: float = 10.0) -> T:
    end = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"still false after {seconds} s")
        time.sleep(0.02)
    return result


def address(net: int, host: int, version: int) -> IPAddress:
    return ip_address(f"{PREFIXES[net]}{host}" if version == 4 else f"2001:db8:{net}::{host}")


class Host:
    def __init__(self, name: str) -> None:
        self.ns = f"rk{os.getpid()}-{next(_serial)}-{name}"
        sh(f"ip netns add {self.ns}")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=self._enter)
        self._loop = asyncio.new_event_loop()
        self._closers: list[Callable[[], None]] = []
        self.sh("ip link set lo up")

    def _enter(self) -> None:
        with open(f"/run/netns/{self.ns}") as ns:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(ns.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def do(self, function: Callable[..., T], *args: Any) -> T:
        return self._thread.submit(function, *args).result(60)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.do(self._loop.run_until_complete, coroutine)

    def sh(self, command: str, check: bool = True) -> str:
        return sh(command, self.ns, check)

    def at_close(self, function: Callable[[], None]) -> None:
        self._closers.append(function)

    def close(self) -> None:
        for function in reversed(self._closers):
            self.do(function)
        self.do(self._loop.close)
        self._thread.shutdown()
        sh(f"ip netns del {self.ns}")


class Net:
    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self.router = self.host("r")
        self.router.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for net in PREFIXES:
            self.router.sh(
                f"ip link add br{net} type bridge; ip link set br{net} up;"
                f"ip addr add {address(net, 1, 4)}/24 dev br{net};"
                f"ip addr add {address(net, 1, 6)}/64 dev br{net} nodad"
            )

    def host(self, name: str) -> Host:
        host = Host(name)
        self.hosts.append(host)
        return host

    def join(self, host: Host, net: int, number: int, default: bool = True) -> None:
        port, device = f"p{next(_serial)}", f"net{net}"
        self.router.sh(
            f"ip link add {port} type veth peer name {device} netns {host.ns}; ip link set {port} master br{net} up"
        )
        host.sh(
            f"ip addr add {address(net, number, 4)}/24 dev {device};"
            f"ip -6 addr add {address(net, number, 6)}/64 dev {device} nodad; ip link set {device} up"
        )
        if default:
            host.sh(
                f"ip route replace default via {address(net, 1, 4)};"
                f"ip -6 route replace default via {address(net, 1, 6)}"
            )

    def leave(self, host: Host, net: int) -> None:
        host.sh(f"ip link del net{net}")
        assert PREFIXES[net] not in host.sh("ip addr | grep -v redirect0")
        # The router must not send to the old owner's link-layer address.
        self.router.sh(f"ip neigh flush dev br{net}")

    def close(self) -> None:
        for host in reversed(self.hosts):
            host.close()


class Side:
    """One end of connections: what a daemon does to the kernel, without the daemon."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.rewriter = host.do(Rewriter)
        self.keeper = host.run(_in_loop(Keeper))
        self.flows: dict[FourTuple, Flow] = {}
        host.at_close(self.rewriter.close)
        host.at_close(self.keeper.close)
        host.do(self.rewriter.setup)
        host.run(self.keeper.setup())

    def rewrite(self, *pairs: tuple[FourTuple, FourTuple], tunnel: bool = False, integrity: bool = False) -> None:
        """Make the wire tuple of each socket tuple what is given, and keep what that needs."""
        old = [self.flows[sock] for sock, _ in pairs if sock in self.flows]
        new = [Flow(sock, wire, tunnel, integrity) for sock, wire in pairs]
        self.flows |= {flow.socket: flow for flow in new}
        everything = list(self.flows.values())
        keep = {flow.socket.local.host for flow in everything if flow.tunnel or flow.socket.local != flow.wire.local}
        away = {flow.socket.remote.host for flow in everything if flow.tunnel or flow.socket.remote != flow.wire.remote}
        self.host.run(self.keeper.reconcile(keep, away))
        self.host.do(self.rewriter.apply, new, old)

    def teardown(self) -> None:
        self.host.do(self.rewriter.teardown)
        self.host.run(self.keeper.teardown())


async def _in_loop(make: Callable[[], T]) -> T:
    return make()


class Connection:
    """A TCP connection of bob's to alice's port 5000."""

    def __init__(self, bob: Host, alice: Host, version: int, bob_net: int = 1, alice_net: int = 3) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        listener = alice.do(socket.socket, family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        target = (str(address(alice_net, 10, version)), 5000)
        listener.bind(target)
        listener.listen()
        self.bob = bob.do(socket.create_connection, target, 20, (str(address(bob_net, 10, version)), 0))
        self.alice, _ = listener.accept()
        listener.close()
        self.alice.settimeout(20)
        self.version = version
        self.tuple = FourTuple(_name(self.bob.getsockname()), _name(self.bob.getpeername()))
        bob.at_close(self.close)

    def wire(self, bob_net: int, alice_net: int) -> FourTuple:
        """Its tuple, as bob sees it, when the two are at other networks."""
        local, remote = self.tuple
        return FourTuple(
            SockAddr(address(bob_net, 10, self.version), local.port),
            SockAddr(address(alice_net, 10, self.version), remote.port),
        )

    def works(self, size: int = 300_000) -> bool:
        """Carries bytes both ways, unchanged."""
        for sender, receiver in ((self.bob, self.alice), (self.alice, self.bob)):
            data = os.urandom(size)
            with ThreadPoolExecutor(1) as thread:
                sending = thread.submit(sender.sendall, data)
                received = b""
                while len(received) < size:
                    chunk = receiver.recv(1 << 16)
                    if not chunk:
                        return False
                    received += chunk
                sending.result()
            if received != data:
                return False
        return True

    def close(self) -> None:
        self.bob.close()
        self.alice.close()


def _name(name: Any) -> SockAddr:
    return SockAddr(ip_address(name[0]), name[1])
