"""Two hosts on a wire, everything in one process.

::

    alice 10.99.0.1, fd99::1  a0 ────── b0  bob 10.99.0.2, fd99::2

``cut`` loses what arrives at either host, as a broken network would: the senders notice nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from redirectctl.kernel.constants import MARK_MOVED, MARK_PROBE, Queue
from redirectctl.kernel.netfilter.packet_queue import PacketQueue
from redirectctl.kernel.sockets.diag import SockDiag, SocketInfo
from redirectctl.kernel.tcp.backoff import BackoffReverter
from redirectctl.kernel.tcp.inject import RawInjector
from redirectctl.wire.addr import FourTuple, SockAddr, parse_ip

_CLONE_NEWNET = 0x4000_0000
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Sockets that are made in here belong to the namespace."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if _LIBC.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        _LIBC.setns(here, _CLONE_NEWNET)
        os.close(there)
        os.close(here)


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Poll; fail loudly."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not so within {seconds} s")
        time.sleep(0.005)


async def until_async(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    for _ in iter(condition, True):
        if time.monotonic() > end:
            raise AssertionError(f"not so within {seconds} s")
        await asyncio.sleep(0.005)


@dataclass
class Host:
    name: str  # of the namespace
    device: str
    mac: str
    addresses: dict[int, str]

    def run(self, *command: str, check: bool = True) -> str:
        return run("nsenter", f"--net=/run/netns/{self.name}", *command, check=check)

    def nft(self, text: str) -> None:
        self.run("nft", text)

    def cut(self) -> None:
        lose = f"iifname {self.device} drop"
        self.nft(f"table inet cut {{\nchain c {{ type filter hook prerouting priority -400;\n{lose};\n}}\n}}")

    def mend(self) -> None:
        self.nft("delete table inet cut")

    def refuse_to_send(self) -> None:
        """Sending fails at once, as without a route."""
        refuse = f"oifname {self.device} drop"
        self.nft(f"table inet mute {{\nchain c {{ type filter hook output priority -200;\n{refuse};\n}}\n}}")

    def send_again(self) -> None:
        self.nft("delete table inet mute")


@dataclass
class Connection:
    client: socket.socket  # on alice
    server: socket.socket  # on bob
    tuple: FourTuple = field(init=False)  # alice's

    def __post_init__(self) -> None:
        local, remote = self.client.getsockname(), self.client.getpeername()
        self.tuple = FourTuple(SockAddr(parse_ip(local[0]), local[1]), SockAddr(parse_ip(remote[0]), remote[1]))

    def close(self) -> None:
        self.client.close()
        self.server.close()


@dataclass
class Wire:
    alice: Host
    bob: Host
    connections: list[Connection] = field(default_factory=list)
    listeners: dict[int, socket.socket] = field(default_factory=dict)

    def connect(self, version: int = 4, *, dual_stack: bool = False, receive_buffer: int = 0) -> Connection:
        """alice connects to bob.  ``dual_stack``: IPv4 through an IPv6 socket; ``receive_buffer``: bob's, small."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        if version not in self.listeners:
            with inside(self.bob.name):
                self.listeners[version] = socket.create_server((self.bob.addresses[version], 0), family=family)
                self.listeners[version].listen(4096)
        listener = self.listeners[version]
        if receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        with inside(self.alice.name):
            client = socket.socket(socket.AF_INET6 if dual_stack else family, socket.SOCK_STREAM)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = listener.getsockname()[:2]
        client.connect((f"::ffff:{host}" if dual_stack else host, port))
        server, _ = self.listeners[version].accept()
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections.append(Connection(client, server))
        return self.connections[-1]

    def cut(self) -> None:
        self.alice.cut()
        self.bob.cut()

    def mend(self) -> None:
        self.alice.mend()
        self.bob.mend()


class Tools:
    """What a daemon on one of the hosts has, and what the kernel rewriting does for it: marks and queues probe ACKs."""

    def __init__(self, host: Host) -> None:
        self.errors: list[Exception] = []
        with inside(host.name):
            self.diag = SockDiag()
            self.injector = RawInjector()
            self.backoff = BackoffReverter(self.diag, self.injector, self.probe)
            self.queue = PacketQueue(Queue.PROBE, self.backoff.on_ack, on_error=self.errors.append)
        self.host = host
        self.probed: list[FourTuple] = []
        # Rough, for a test: data that these programs send ends in PSH or fills a packet.
        ack = "tcp flags & (fin | syn | rst | psh | ack) == ack meta length < 120"
        host.nft(
            "table inet probe {\n"
            " set p4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; flags timeout; }\n"
            " set p6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; flags timeout; }\n"
            " chain out { type filter hook output priority -310;\n"
            f" ip saddr . tcp sport . ip daddr . tcp dport @p4 {ack} meta mark set meta mark | {MARK_PROBE:#x};\n"
            f" ip6 saddr . tcp sport . ip6 daddr . tcp dport @p6 {ack} meta mark set meta mark | {MARK_PROBE:#x};\n"
            " }\n"
            # Else conntrack calls an injected SYN invalid, which many firewalls drop even from the loopback device.
            " chain raw { type filter hook output priority -300;\n"
            f" meta l4proto tcp meta mark & {MARK_MOVED:#x} != 0 notrack;\n"
            " }\n}"
        )
        for program in ("iptables", "ip6tables"):
            mark = f"{MARK_PROBE:#x}/{MARK_PROBE:#x}"
            rule = f"-A OUTPUT -m mark --mark {mark} -j NFQUEUE --queue-num {Queue.PROBE} --queue-bypass"
            host.run(program, "-t", "raw", *rule.split())
        self.queue.start(asyncio.get_running_loop())

    def probe(self, connections: object) -> None:
        chosen = list(connections)  # type: ignore[call-overload]
        self.probed += chosen
        for version in (4, 6):
            elements = ", ".join(
                f"{t.local.host} . {t.local.port} . {t.remote.host} . {t.remote.port} timeout 5s"
                for t in chosen
                if t.version == version
            )
            if elements:
                self.host.nft(f"add element inet probe p{version} {{ {elements} }}")

    def look(self, connection: FourTuple) -> SocketInfo:
        found = self.diag.get(connection)
        if found is None or found.info is None:
            raise AssertionError(f"no socket {connection}")
        return found

    def close(self) -> None:
        self.queue.close()
        self.injector.close()
        self.diag.close()


@contextmanager
def tools_on(host: Host) -> Iterator[Tools]:
    tools = Tools(host)
    try:
        yield tools
        assert not tools.errors
    finally:
        tools.close()
