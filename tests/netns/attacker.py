"""A redirectd that means harm: what test_soak.py and tests/soak/soak.py run on a host of the attacker's.

It is a real one, approved and of use, with connections of its own.  Besides it listens on the wire of the router as an
eavesdropper, and sends without end, at random: every message of the protocol with ids, tuples, epochs, nonces and
addresses of its own and of others, in its session, from its address and from those of others; announcements that its
connections are where somebody else is, and what is to confirm them; answers that seem to come from there; recordings,
as they were and altered; floods of one message; first messages of handshakes from anywhere; tokens on connections of
others; datagrams of tunnels.

What it does not do: pass on to the true host what came to its own address, as somebody does who is on the path at that
moment, or send datagrams of a tunnel of others with a number that it has overheard: the threat model says what comes of
that ("Announcements of moves"; "What remains").

It counts what reaches it of others' connections, which is nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import enum
import json
import os
import socket
import struct
import sys
import time
import types
import typing
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from random import Random
from typing import Any, Final

from redirectctl import redirectd as daemon
from redirectctl.daemon.runtime import Runtime
from redirectctl.proto import constants
from redirectctl.proto.cookie import CookieJar
from redirectctl.proto.events import Received
from redirectctl.proto.initiate import prologue
from redirectctl.proto.noise import Handshake, StaticKey
from redirectctl.proto.noise import Pattern as Noise
from redirectctl.wire import datagram, ip, tunnel
from redirectctl.wire import message as messages
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.datagram import MAX_DATAGRAM, Pattern

CONTROL: Final = 7747
KINDS: Final = typing.get_args(messages.Message)
PAUSE: Final = 0.02  # seconds between two rounds
A_ROUND: Final = 6  # things that are sent in one: some 300 a second
FLOOD: Final = 500  # messages at once
LIES: Final = 0.3  # of what is answered from somewhere else than where it is
FLOODS: Final = 0.004  # of what is done
OWN: Final = 4  # connections
LIVES: Final = 15.0  # seconds of each: what it has said of one may leave that of no use
REMEMBERED: Final = 400  # of each thing that has been seen
BEAT: Final = 0.5  # seconds between looks at what the soak knows
_NEWEST: Final = max(constants.VERSIONS)
_CLONE_NEWNET: Final = 0x40000000
_ETH_P_ALL: Final = 3
_OUTGOING: Final = 4  # PACKET_OUTGOING
_TCP, _UDP = 6, 17
_CONTROL_TYPES: Final = frozenset(map(int, datagram.Type))


class Knowledge:
    """What it has heard and seen, and makes messages of."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.cids: list[bytes] = []
        self.tuples: list[FourTuple] = []
        self.hosts: list[IPAddress] = []
        self.own: list[IPAddress] = []
        self.victims: list[IPAddress] = []
        self.seen: dict[str, deque[Any]] = {}  # by the name of a message's field
        self.recorded: deque[tuple[SockAddr, SockAddr, bytes]] = deque(maxlen=REMEMBERED)

    def note(self, message: Any) -> None:
        """Numbers of a message that has come: others' nonces, epochs and data of challenges."""
        for field in dataclasses.fields(message):
            value = getattr(message, field.name)
            if isinstance(value, int | bytes):
                self.seen.setdefault(field.name, deque(maxlen=REMEMBERED)).append(value)
        for tag in getattr(message, "tags", ()):
            self.seen.setdefault("tag", deque(maxlen=REMEMBERED)).append(tag)

    def address(self) -> IPAddress:
        """Anybody's."""
        pool = [*self.hosts, *self.own, *self.victims, ip_address("127.0.0.1"), ip_address("224.0.0.1")]
        return self.random.choice(pool)

    def place(self) -> SockAddr:
        """Anybody's control port, or another."""
        return SockAddr(self.address(), self.random.choice((CONTROL, CONTROL, 22, self.random.randrange(1, 65536))))

    def message(self) -> messages.Message:
        """Any, with anything in it that has a form."""
        kind = self.random.choice(KINDS)
        made: messages.Message = self._made(kind)
        return made

    def _made(self, kind: Any) -> Any:
        hints = typing.get_type_hints(kind)
        names = kind._fields if hasattr(kind, "_fields") else [f.name for f in dataclasses.fields(kind)]
        return kind(**{name: self._value(name, hints[name]) for name in names})

    def _value(self, name: str, hint: Any) -> Any:
        random = self.random
        arguments = typing.get_args(hint)
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return random.choice(list(hint))
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            if set(arguments) == {IPv4Address, IPv6Address}:
                return self.address()
            return self._value(name, arguments[0]) if random.random() < 0.5 else None
        if typing.get_origin(hint) is tuple and arguments[-1] is Ellipsis:
            one = name.removesuffix("es") if name == "addresses" else name.removesuffix("s")
            return tuple(self._value(one, arguments[0]) for _ in range(random.choice((0, 1, 1, 2, 5, 12))))
        if typing.get_origin(hint) is tuple:  # of BIND_NUMBERS
            return tuple(self._value(part, each) for part, each in zip(("cid", "proof"), arguments, strict=True))
        if hint is SockAddr:
            return self.place()
        if hint is FourTuple:
            four = random.choice(self.tuples) if self.tuples else FourTuple(self.place(), self.place())
            return random.choice((four, four.mirrored))
        if hint is bool:
            return random.random() < 0.5
        if hint is int:
            return self._number(name)
        if hint is bytes:
            return self._bytes(name)
        return self._made(hint)

    def _number(self, name: str) -> int:
        seen = self.seen.get(name)
        most = {"epoch": 2**64, "start": 2**62, "connections": 2**32, "flows": 2**16}.get(name, 2**32) - 1
        if seen and self.random.random() < 0.6:
            return min(most, max(0, self.random.choice(seen) + self.random.choice((0, 0, 1, 2, -1))))
        return self.random.choice((1, self.random.randrange(2**16), self.random.randrange(most), most))

    def _bytes(self, name: str) -> bytes:
        if name == "cid" and self.cids and self.random.random() < 0.8:
            return self.random.choice(self.cids)
        if name == "datagram":
            recorded = [data for _, _, data in self.recorded if len(data) < 900]
            return self.random.choice(recorded) if recorded else b"none"
        seen = self.seen.get(name)
        if seen and self.random.random() < 0.7:
            return self.random.choice(seen)
        return self.random.randbytes({"tag": 16, "key": 16}.get(name, 8))


class Attack:
    """Goes on as long as the daemon."""

    def __init__(self, runtime: Runtime, orders: Path, told: Path, seed: int) -> None:
        """``orders``: what the soak knows, as JSON; ``told``: where the counts go."""
        self.runtime = runtime
        self.random = Random(seed)
        self.knows = Knowledge(self.random)
        self.counts: Counter[str] = Counter()
        self.strays: deque[str] = deque(maxlen=20)
        self._orders, self._told = orders, told
        self._read_at = float("-inf")
        self._port = 0
        self._over = False
        self._servers: list[IPAddress] = []
        self._here: set[bytes] = set()  # its addresses
        self._flows: set[int] = set()  # of connections of its own, ever
        self._ports: set[int] = set()
        self._streams: dict[asyncio.StreamWriter, float] = {}  # and since when
        self._wire: socket.socket | None = None
        self._raw = {4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
                     6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)}  # fmt: skip
        for raw in self._raw.values():
            raw.setblocking(False)
        self._do: list[tuple[Callable[[], None], int]] = [
            (self.say, 40),
            (self.redirect, 8),
            (self.replay, 12),
            (self.alter, 12),
            (self.garbage, 6),
            (self.greet, 4),
            (self.token, 6),
            (self.tunnel, 6),
        ]
        self._watch()

    def _watch(self) -> None:
        """What is said to it, and which flows are its own."""
        engine = self.runtime.engine
        received, make = engine._received, engine.offers.make

        def note(now: float, event: Received) -> None:
            self.knows.note(event.message)
            if self.random.random() >= LIES or not self._lie(event):
                received(now, event)

        def offer() -> tunnel.Offer:
            made = make()
            self._flows.add(made.flow)
            return made

        engine._received = note  # type: ignore[method-assign]
        engine.offers.make = offer  # type: ignore[method-assign]

    async def run(self) -> None:
        """Until the soak is over."""
        while not self._over:
            if not self._orders.exists():
                await asyncio.sleep(BEAT)
                continue
            if time.monotonic() - self._read_at > BEAT:
                self._read()
                await self._have_connections()
            self._listen()
            for stream in self._streams:
                if not stream.transport.get_write_buffer_size():
                    stream.write(self.random.randbytes(200))  # it is an echo
            for _ in range(A_ROUND):
                try:
                    self._something()
                except OSError as error:  # no way there at this moment
                    self.counts[f"not sent: {error.strerror}"] += 1
            await asyncio.sleep(PAUSE)
        for stream in self._streams:
            stream.transport.abort()

    def _something(self) -> None:
        if self.random.random() < FLOODS:
            self.flood()
            return
        self.counts["sent"] += 1
        (chosen,) = self.random.choices([do for do, _ in self._do], [weight for _, weight in self._do])
        chosen()
        self.counts[chosen.__name__] += 1

    # -- what it knows ------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        self._read_at = time.monotonic()
        orders = json.loads(self._orders.read_text())
        knows, engine = self.knows, self.runtime.engine
        own = list(engine.table)
        knows.hosts = [ip_address(a) for a in orders["hosts"]]
        knows.victims = [ip_address(a) for a in orders["victims"]]
        knows.own = self.runtime.network.addresses()
        self._here = {a.packed for a in knows.own}
        knows.cids = [bytes.fromhex(cid) for cid in orders["ids"]] + [c.cid for c in own]
        knows.tuples = [FourTuple(*map(SockAddr.parse, ends)) for ends in orders["tuples"]] + [c.socket for c in own]
        self._servers = [ip_address(a) for a in orders["servers"]]
        self._port = orders["port"]
        self._over = orders["over"]
        if self._wire is None:
            self._wire = _tapped(orders["router"])
        now = self.runtime.now
        for host in knows.hosts:
            if self.random.random() < 0.3:
                engine.meet(now, SockAddr(host, CONTROL))
        self.runtime.wake()
        self._tell()

    def _tell(self) -> None:
        sessions = sum(p.session(self.runtime.now) is not None for p in self.runtime.engine.peers.values())
        own = sum(c.movable for c in self.runtime.engine.table)
        told = {
            "counts": self.counts,
            "strays": list(self.strays),
            "sessions": sessions,
            "protected": own,
            "over": self._over,
        }
        fresh = self._told.with_suffix(".new")
        fresh.write_text(json.dumps(told))
        fresh.replace(self._told)

    async def _have_connections(self) -> None:
        """With a server, opted in by their port: they make it a peer that is of use."""
        now = time.monotonic()
        for stream, since in list(self._streams.items()):
            if stream.is_closing() or now - since > LIVES:
                stream.transport.abort()
                del self._streams[stream]
        if len(self._streams) >= OWN or not self._servers:
            return
        try:
            async with asyncio.timeout(0.5):
                reader, writer = await asyncio.open_connection(str(self.random.choice(self._servers)), self._port)
        except (OSError, TimeoutError):
            return
        self.runtime.tasks.start(_drained(reader), "echo")
        self._ports.add(writer.get_extra_info("sockname")[1])
        self._streams[writer] = now

    def _listen(self) -> None:
        """On the router: control datagrams are recorded; of others' traffic nothing may lead here."""
        for _ in range(2000):
            if self._wire is None:
                return
            try:
                packet, about = self._wire.recvfrom(4096)
            except BlockingIOError:
                return
            if about[2] == _OUTGOING and about[0].startswith("port"):  # a host's link: each packet once
                self._hear(packet)

    def _hear(self, packet: bytes) -> None:
        """By hand: there are thousands a second."""
        if len(packet) < 48 or packet[0] >> 4 not in (4, 6):
            return
        v4 = packet[0] >> 4 == 4
        protocol, at = (packet[9], (packet[0] & 15) * 4) if v4 else (packet[6], 40)
        addresses = packet[12:20] if v4 else packet[8:40]
        half = len(addresses) // 2
        here = addresses[half:] in self._here
        ports = int.from_bytes(packet[at : at + 2]), int.from_bytes(packet[at + 2 : at + 4])
        if protocol == _TCP and here:
            data = len(packet) - at - (packet[at + 12] >> 4) * 4
            if data > 0 and ports[1] not in self._ports:
                self._stray(f"TCP of {ip_address(addresses[:half])}, ports {ports}, {data} bytes")
        elif protocol == _UDP and (here or CONTROL in ports) and len(packet) > at + 16:
            source, to = (
                SockAddr(ip_address(each), port)
                for each, port in zip((addresses[:half], addresses[half:]), ports, strict=True)
            )
            self._overheard(source, to, packet[at + 8 :])

    def _overheard(self, source: SockAddr, to: SockAddr, data: bytes) -> None:
        if data[0] == tunnel.Type.TUNNEL:
            flow = int.from_bytes(data[4:8])
            if to.host in self.knows.own and flow not in self._flows:
                self._stray(f"tunnel {source} > {to} flow {flow:x}, {len(data)} bytes")
        elif data[0] in _CONTROL_TYPES and to.host not in self.knows.own:
            self.knows.recorded.append((source, to, data))
            self.counts["overheard"] += 1

    def _stray(self, what: str) -> None:
        self.counts["strays"] += 1
        self.strays.append(what)

    # -- what it sends ------------------------------------------------------------------------------------------------

    def _send(self, source: SockAddr, to: SockAddr, data: bytes) -> None:
        """From wherever it likes."""
        if source.host.version != to.host.version:
            return
        if source.host in self.knows.victims:
            self.counts["bytes as if from victims"] += len(data)
        head = source.port.to_bytes(2) + to.port.to_bytes(2) + (8 + len(data)).to_bytes(2)
        start = ip.pseudo_header_sum(source.host, to.host, _UDP, 8 + len(data))
        check = ip.checksum(head + bytes(2) + data, start) or 0xFFFF
        packet = ip.build_ip(source.host, to.host, _UDP, head + check.to_bytes(2) + data)
        self._raw[to.host.version].sendto(packet, (str(to.host), 0))

    def _source(self, to: SockAddr) -> SockAddr:
        """Its own address in half of the cases, else anybody's."""
        own = [a for a in self.knows.own if a.version == to.host.version]
        if own and self.random.random() < 0.5:
            return SockAddr(self.random.choice(own), CONTROL)
        others = [a for a in (*self.knows.hosts, *self.knows.victims) if a.version == to.host.version and a != to.host]
        return SockAddr(
            self.random.choice(others or own), self.random.choice((CONTROL, self.random.randrange(1, 65536)))
        )

    def _sealed(self, message: messages.Message, key: bytes | None = None) -> tuple[SockAddr, bytes] | None:
        """In a session with somebody, and where that is."""
        engine, now = self.runtime.engine, self.runtime.now
        peers = [
            p
            for p in engine.peers.values()
            if key in (None, p.key) and p.remote is not None and p.session(now) is not None
        ]
        if not peers:
            return None
        peer = self.random.choice(peers)
        session = peer.session(now)
        try:
            plaintext = messages.encode(message)
        except struct.error:  # made up at random: what no byte can say
            return None
        if session is None or peer.remote is None or len(plaintext) > messages.MAX_PLAINTEXT:
            return None
        shell = datagram.Transport(session.version, session.remote_index, session.counter, b"")
        session.counter += 1
        return peer.remote, shell.header + session.sealing.seal(shell.counter, plaintext, shell.header)

    def say(self) -> None:
        """Any message."""
        message = self.knows.message()
        if (sealed := self._sealed(message)) is not None:
            to, data = sealed
            self._send(self._source(to), to, data)
            self.counts[f"says {type(message).__name__}"] += 1

    def redirect(self) -> None:
        """A connection of its own is where somebody else is, it says, and confirms it without having heard anything."""
        own = [c for c in self.runtime.engine.table if c.movable and c.peer is not None]
        if not own:
            return
        self.counts["connections that it says are elsewhere"] += 1
        c, at = self.random.choice(own), self.knows.address()
        epoch = self.runtime.engine.host.next_epoch()
        self.knows.seen.setdefault("epoch", deque(maxlen=REMEMBERED)).append(epoch)
        moved = messages.Moved((c.socket.local.host,), (c.cid,))
        announced = messages.Acm(epoch, self.random.randbytes(8), at, moved, self.random.random() < 0.3)
        confirmed = messages.PathResponse(epoch, self.knows._bytes("data"))
        for message in (announced, confirmed):
            if (sealed := self._sealed(message, c.peer)) is not None:
                to, data = sealed
                source = SockAddr(at, CONTROL) if at.version == to.host.version and at != to.host else self._source(to)
                self._send(source, to, data)

    def _lie(self, event: Received) -> bool:
        """What asks where it is has come to it indeed, and is answered as if from somebody else's address."""
        message, answers = event.message, list[messages.Message]()
        if isinstance(message, messages.PathChallenge):
            answers.append(messages.PathResponse(message.epoch, message.data))
        elif isinstance(message, messages.Acm):
            where = SockAddr(event.source.host, event.source.port)
            answers.append(messages.PathChallenge(message.epoch, message.nonce, self.random.randbytes(8)))
            answers.append(messages.AcmAck(message.epoch, message.nonce, messages.AcmStatus.APPLIED, 1, where))
        places = [a for a in (*self.knows.victims, *self.knows.own) if a.version == event.source.host.version]
        for answer in answers if places else ():
            if (sealed := self._sealed(answer, event.key)) is not None:
                with suppress(OSError):
                    self._send(SockAddr(self.random.choice(places), CONTROL), event.source, sealed[1])
                self.counts[f"lies with {type(answer).__name__}"] += 1
        return bool(answers)

    def flood(self) -> None:
        """One kind of message, as fast as it can."""
        kind = self.random.choice(KINDS)
        for _ in range(FLOOD):
            if (sealed := self._sealed(self.knows._made(kind))) is None:
                continue
            to, data = sealed
            own = [a for a in self.knows.own if a.version == to.host.version]
            self._send(SockAddr(own[0], CONTROL), to, data)
        self.counts["floods"] += 1

    def replay(self) -> None:
        """To whom it was meant for, now from elsewhere."""
        if self.knows.recorded:
            source, to, data = self.random.choice(self.knows.recorded)
            self._send(self.random.choice((source, self._source(to))), to, data)

    def alter(self) -> None:
        """The same with a few bits changed, or cut, or to anybody."""
        if not self.knows.recorded:
            return
        source, to, recorded = self.random.choice(self.knows.recorded)
        data = bytearray(recorded)
        for _ in range(self.random.choice((1, 1, 3, 20))):
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        if self.random.random() < 0.2:
            del data[self.random.randrange(1, len(data)) :]
        self._send(source, to, bytes(data))

    def garbage(self) -> None:
        """With the beginning of something."""
        if self.knows.hosts:
            to = SockAddr(self.random.choice(self.knows.hosts), CONTROL)
            kind = bytes((self.random.choice((*datagram.Type, 0, 10, 255)), self.random.choice((0, 1, 2, 3))))
            data = kind + self.random.randbytes(self.random.randrange(MAX_DATAGRAM))
            self._send(self._source(to), to, data)

    def greet(self) -> None:
        """First message of a stranger, who has the address or has not."""
        if not self.knows.hosts:
            return
        to = SockAddr(self.random.choice(self.knows.hosts), CONTROL)
        key = StaticKey.from_private(self.random.randbytes(32))
        begin = prologue(_NEWEST, Pattern.XX, constants.VERSIONS)
        hello = Handshake(Noise.XX, True, key, self.random.randbytes, begin).write_message(bytes(constants.XX_PADDING))
        init = datagram.Init(_NEWEST, Pattern.XX, self.random.getrandbits(32), constants.VERSIONS, hello)
        self._send(self._source(to), to, CookieJar(None).stamp(init.body(), self.runtime.now))

    def token(self) -> None:
        """On a connection of others, as if from its other end."""
        if not self.knows.tuples:
            return
        four = self.random.choice(self.knows.tuples)
        source, to = self.random.choice((four, four.mirrored))
        seq, ack = (self.random.getrandbits(32) for _ in range(2))
        option = ip.options_with_token(b"", self.knows._bytes("token"))
        packet = ip.build_tcp(source, to, seq=seq, ack=ack, flags=ip.TcpFlags.ACK, window=9, options=option)
        self._raw[to.host.version].sendto(packet, (str(to.host), 0))

    def tunnel(self) -> None:
        """A datagram of a tunnel: of a flow of its own, with anything in it, or of one that it has guessed."""
        own = [c for c in self.runtime.engine.table if c.sending is not None]
        hosts = self.knows.hosts
        if not hosts:
            return
        flow, start = self.random.getrandbits(32), self.random.randrange(2**62)
        if own and self.random.random() < 0.5:
            sending = self.random.choice(own).sending
            flow, start = (sending.flow, sending.start + self.random.randrange(2**20)) if sending else (flow, start)
        kind = self.random.choice((tunnel.Type.TUNNEL, tunnel.Type.PROBE))
        head = tunnel.HEAD.pack(kind, tunnel.VERSION, self.random.choice((0, 0, 1, 255)), 0, flow, start)
        to = SockAddr(self.random.choice(hosts), CONTROL)
        self._send(self._source(to), to, head + self.random.randbytes(self.random.choice((4, 16, 40, 1200))))


async def _drained(reader: asyncio.StreamReader) -> None:
    """What comes back is read, until the connection ends."""
    with suppress(OSError):
        while await reader.read(1 << 16):
            pass


def _tapped(router: str) -> socket.socket:
    """What hears all packets of another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(router, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL))
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if libc.setns(here, _CLONE_NEWNET):
            os._exit(1)
        return wire
    finally:
        os.close(here)
        os.close(there)


def main() -> int:
    """As redirectd, with the attack beside it."""
    start = Runtime.start

    async def begin(runtime: Runtime) -> None:
        await start(runtime)
        attack = Attack(
            runtime,
            Path(os.environ["ATTACK_ORDERS"]),
            Path(os.environ["ATTACK_TOLD"]),
            int(os.environ.get("ATTACK_SEED", "1")),
        )
        runtime.tasks.start(attack.run(), "attack")

    Runtime.start = begin  # type: ignore[method-assign]
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
