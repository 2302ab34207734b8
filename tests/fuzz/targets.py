"""What reads from the network, each as a function of bytes that tells what became of them.

A target may refuse an input with the exceptions that its docstring names, which it turns into the reason; whatever else
it raises is a fault.  Some know more of what must hold, and say so with Broken.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from random import Random
from types import ModuleType

from redirectctl.doctor import icmp
from redirectctl.flows import commands
from redirectctl.flows.policy import Policy
from redirectctl.kernel.tunnel.device import VNET_HEADER
from redirectctl.kernel.tunnel.segments import Inbound, Outbound
from redirectctl.proto import constants, events
from redirectctl.proto.cookie import CookieChecker, CookieJar
from redirectctl.proto.errors import CookieError, HandshakeError
from redirectctl.proto.initiate import prologue
from redirectctl.proto.noise import Handshake, Pattern, StaticKey
from redirectctl.proto.peer import Session
from redirectctl.wire import datagram, ip, meeting, message, tunnel
from redirectctl.wire.addr import FourTuple, SockAddr
from tests.fuzz.local import LOCAL
from tests.fuzz.target import ACCEPTED, Broken, Make, Target, table
from tests.sim import endpoints
from tests.sim.host import Host
from tests.sim.network import PORT
from tests.sim.network import ip as address
from tests.sim.world import World


def _hexed(module: ModuleType) -> list[bytes]:
    return [bytes.fromhex(text) for _, text in module.TABLE] + [bytes.fromhex(text) for text, _ in module.REFUSED]


# -- layouts -----------------------------------------------------------------------------------------------------------


def datagrams(_: Random) -> Target:
    """wire/datagram.py"""

    def feed(data: bytes) -> str:
        try:
            found = datagram.decode(data)
        except datagram.MalformedError as error:
            return error.reason
        if found.encode() != data:
            raise Broken("encodes to other bytes")
        return ACCEPTED

    return Target(_hexed(table("wire/test_datagram.py")), feed)


def session_messages(_: Random) -> Target:
    """wire/message.py"""

    def feed(data: bytes) -> str:
        try:
            found = message.decode(data)
        except datagram.MalformedError as error:
            return error.reason
        if message.decode(message.encode(found)) != found:  # addresses have more than one form
            raise Broken("reads as another message when it is encoded again")
        return ACCEPTED

    return Target(_hexed(table("wire/test_message.py")), feed)


def tunnel_datagrams(_: Random) -> Target:
    """wire/tunnel.py"""
    known = table("wire/test_tunnel.py")

    def feed(data: bytes) -> str:
        try:
            found = tunnel.decode(data)
        except tunnel.TunnelError as error:
            return str(error.reason)
        if isinstance(found, tunnel.Segment) and tunnel.encode(found) != data:
            raise Broken("encodes to other bytes")
        return ACCEPTED

    return Target([bytes.fromhex(text) for _, text in known.MESSAGES.values()], feed)


# -- the tunnel's hot path ---------------------------------------------------------------------------------------------

_OFFER = tunnel.Offer(0xA1B2C3D4, bytes(range(16)), 1 << 60)
_V4 = FourTuple(SockAddr.parse("192.0.2.1:40000"), SockAddr.parse("203.0.113.9:22"))
_V6 = FourTuple(SockAddr.parse("[2001:db8::1]:40000"), SockAddr.parse("[2001:db8:9::2]:22"))
_STREAM = Random(7).randbytes(1 << 16)  # byte n of the connection is here, so that what is accepted can be checked
_SIZE = struct.Struct("!H")


def _run(outbound: Outbound, seq: int, length: int, flags: int, options: bytes, room: int) -> bytes:
    """Datagrams of a packet, and before them the size of each: an input of `joining`."""
    tcp = struct.pack("!HHIIHHHH", 0, 0, seq, 0, 20 + len(options) << 10 | flags, 1000, 0, 0)
    packet = memoryview(bytes(20) + tcp + options + _STREAM[seq : seq + length])
    buffers, _, size = outbound.cut(packet, 20, 0, room, cwr_once=False)
    return _SIZE.pack(size) + b"".join(buffers)


def joining(integrity: bool, socket: FourTuple) -> Make:
    """kernel/tunnel/segments.py"""

    def make(_: Random) -> Target:
        outbound = Outbound(_OFFER, _OFFER.start, integrity)
        runs = [
            _run(outbound, seq, length, flags, options, room)
            for seq, length, flags, options, room in (
                (0, 0, 0x10, b"", 500),
                (0, 100, 0x18, b"", 500),
                (100, 900, 0x10, bytes(12), 200),
                (1000, 1000, 0x11, b"\1" * 4, 120),
                (2000, 60, 0xB0, bytes(40), 100),
                (3000, 4000, 0x18, b"", 600),
            )
        ]
        runs += [_run(Outbound(tunnel.Offer(9, bytes(16), 5), 5, integrity), 0, 300, 0x10, b"", 200)]
        runs += [runs[2] + runs[2][2:], runs[5][:-50] + runs[3][2:]]
        inbound, left = Inbound(_OFFER, integrity, socket), 0

        def feed(data: bytes) -> str:
            nonlocal inbound, left
            chunk = memoryview(data)[2:]
            size = _SIZE.unpack_from(data)[0] if len(data) > 2 else 0
            if not 0 < size <= len(chunk):
                return "no such size"  # the carrier drops it
            if not left:  # a window that has seen the examples refuses them
                inbound, left = Inbound(_OFFER, integrity, socket), 3
            left -= 1
            refused: list[tunnel.Refused] = []
            at = 0
            while at < len(chunk):
                writes, taken = inbound.take(chunk[at:], size, refused.append)
                if taken <= 0:
                    raise Broken("does not get on")
                for buffers in writes:
                    _check_packet(b"".join(buffers), socket, integrity)
                at += taken
            return str(refused[0]) if refused else ACCEPTED

        return Target(runs, feed, longest=9000)

    return make


def _check_packet(whole: bytes, socket: FourTuple, integrity: bool) -> None:
    """What is written to the TUN device is a packet of this connection, and with integrity what was sent."""
    segment = ip.parse_tcp(whole[VNET_HEADER.size :])
    if segment.sender_tuple != socket.mirrored:
        raise Broken(f"a packet of another connection: {segment.sender_tuple}")
    if segment.flags & ip.TcpFlags.SYN:
        raise Broken("a SYN")
    data = whole[len(whole) - segment.data_length :]
    if integrity and data != _STREAM[segment.seq : segment.seq + len(data)]:
        raise Broken("data that nobody sent")


# -- packets -----------------------------------------------------------------------------------------------------------

_TOKEN = bytes.fromhex("fd0c7747 0102030405060708")
_TIMES = bytes.fromhex("0101080a1111111122222222")


def _packets() -> list[bytes]:
    found = []
    for local, remote in (_V4, _V6):
        for options in (b"", _TIMES, _TOKEN, _TIMES + _TOKEN, _TOKEN + bytes(4)):
            for data in (b"", b"data"):
                found.append(
                    ip.build_tcp(local, remote, seq=1, ack=2, flags=ip.TcpFlags.ACK, options=options, data=data)
                )
    return found


def _errors() -> list[bytes]:
    """ICMP errors, with their IP headers."""
    return [f(c, 5) for c in (_V4, _V6) for f in (ip.build_unreachable, lambda c, seq: ip.build_too_big(c, seq, 1400))]


def mend_packet(data: bytes) -> bytes:
    """With right checksums of the IPv4 headers, and of ICMP in IPv4."""
    if len(data) < 20 or data[0] >> 4 != 4:
        return data
    head = (data[0] & 0xF) * 4
    if head < 20 or head > len(data):
        return data
    made = bytearray(data)
    made[10:12] = bytes(2)
    made[10:12] = ip.checksum(bytes(made[:head])).to_bytes(2)
    end = int.from_bytes(made[2:4])
    if made[9] == ip.Protocol.ICMP and end - head >= 8 and len(made) >= end:
        inner = bytearray(made[head:end])
        inner[8:] = mend_packet(bytes(inner[8:]))
        inner[2:4] = bytes(2)
        inner[2:4] = ip.checksum(bytes(inner)).to_bytes(2)
        made[head:end] = inner
    return bytes(made)


def packets(read: Callable[[bytes], object], examples: Callable[[], list[bytes]]) -> Make:
    """wire/ip.py"""

    def make(_: Random) -> Target:
        def feed(data: bytes) -> str:
            try:
                read(data)
            except ip.PacketError as error:
                return str(error.reason)
            return ACCEPTED

        return Target(examples(), feed, mend_packet)

    return make


def _too_big(data: bytes) -> None:
    """As kernel/tcp/path_mtu.py reads raw sockets."""
    version = data[0] >> 4 if data else 4
    ip.parse_too_big(ip.parse_ip(data).payload if version == 4 else data[40:], 4 if version == 4 else 6)


def _token(data: bytes) -> None:
    """As kernel/tcp/inband.py reads its queue, and what it makes of an ACK."""
    options = ip.parse_tcp(data).options
    if len(ip.token_of(options)) != ip.TOKEN_SIZE:
        raise Broken("a token of another size")
    try:
        instead = ip.replace_options(data, ip.options_with_token(options, bytes(8)))
    except ip.PacketError:
        return  # no room, or not the whole packet
    if ip.token_of(ip.parse_tcp(instead).options) != ip.token_of(options):  # the first counts
        raise Broken("the token has changed")


def icmp_reports(_: Random) -> Target:
    """doctor/icmp.py"""
    target = SockAddr(_V4.remote.host, 22)

    def feed(data: bytes) -> str:
        return ACCEPTED if icmp.report(data, target) is not None else "about something else"

    udp = ip.build_ip(_V4.local.host, _V4.remote.host, 17, struct.pack("!HHHH", 7747, 22, 8, 0))
    about = [
        ip.build_ip(_V4.remote.host, _V4.local.host, 1, bytes((3, code, 0, 0)) + bytes(4) + udp) for code in (1, 3)
    ]
    return Target(about + _errors(), feed, mend_packet)


# -- handshakes --------------------------------------------------------------------------------------------------------

_NOISE = ((Pattern.XX, 3), (Pattern.IKPSK2, 2))


def noise(random: Random) -> Target:
    """proto/noise.py.  The first byte of an input says which message it is."""
    readers: list[Handshake] = []
    examples: list[bytes] = []
    alice, bob = (StaticKey.from_private(random.randbytes(32)) for _ in range(2))
    for pattern, count in _NOISE:
        known = pattern is Pattern.IKPSK2
        psk = bytes(32) if known else None
        ends = [
            Handshake(
                pattern, True, bob, random.randbytes, b"x", remote_static=alice.public if known else None, psk=psk
            ),
            Handshake(pattern, False, alice, random.randbytes, b"x", psk=psk),
        ]
        for number in range(count):
            written = ends[number % 2].write_message(b"payload")
            reader = ends[1 - number % 2]
            readers.append(copy.copy(reader))
            examples.append(bytes((len(readers) - 1,)) + written)
            reader.read_message(written)
    low_order = [example[:1] + bytes(32) + example[33:] for example in examples]

    def feed(data: bytes) -> str:
        which = data[0] % len(readers) if data else 0
        reader = copy.copy(readers[which])
        try:
            reader.read_message(data[1:])
        except HandshakeError as error:
            return str(error.reason)
        if which and data[1:] != examples[which][1:]:  # the first message of XX is in the clear
            raise Broken("an altered message is taken for good")
        return ACCEPTED

    return Target(examples + low_order, feed)


def cookies(random: Random) -> Target:
    """proto/cookie.py"""
    public = StaticKey.from_private(random.randbytes(32)).public
    jar = CookieJar(public)
    stamped = jar.stamp(b"a handshake message" * 5, 0.0)
    reply = CookieChecker(public, random.randbytes).make_reply(stamped, _V4.local, 0.0)

    def feed(data: bytes) -> str:
        try:
            copy.copy(jar).consume_reply(data, 0.0)
        except CookieError as error:
            return str(error.reason)
        if data != reply:
            raise Broken("an altered reply is taken for good")
        return ACCEPTED

    return Target([reply, reply[:40], bytes(56)], feed)


# -- whole ends --------------------------------------------------------------------------------------------------------

_STEP = 0.001  # seconds between inputs
_LASTS = 20_000  # inputs: sessions end after 180 s


def _sealed(session: Session, plaintext: bytes) -> bytes:
    """A TRANSPORT of this session's next counter."""
    session.counter += 1
    head = datagram.Transport(session.version, session.remote_index, session.counter, b"").header
    return head + session.sealing.seal(session.counter, plaintext, head)


def endpoint(random: Random) -> Target:
    """proto/endpoint.py: what anybody may send, and what comes in a session."""
    net, alice, bob = endpoints.met(random.randrange(1 << 30))
    examples: list[bytes] = []

    def keep(_: SockAddr, to: SockAddr, data: bytes) -> list[tuple[float, bytes]]:
        if to == alice.at():
            examples.append(data)
        return [(0.0, data)] if to == bob.at() else []

    session = bob.peer(alice).sessions[0]
    net.filter = keep
    alice.contact(bob, known=True)  # its answer is among the examples
    net.run(0.01)
    bob.contact(alice, known=True)
    bob.contact(alice)
    transport = datagram.Transport(2, session.remote_index, 1, b"").header
    examples += [transport + text + bytes(16) for text in _hexed(table("wire/test_message.py"))]  # to be mended
    waiting = next(data for data in alice.sent(datagram.Type.INIT) if data[2] == datagram.Pattern.IKPSK2)
    index = int.from_bytes(waiting[4:8])
    reply = CookieChecker(bob.static.public, random.randbytes).make_reply(waiting, alice.at(), net.now)
    examples.append(datagram.Cookie(2, index, reply[:24], reply[24:]).encode())
    examples += [datagram.Versions(index, (2,)).encode(), datagram.Unknown(2, index).encode()]
    examples += [datagram.Unknown(2, alice.peer(bob).sessions[0].remote_index).encode()]
    stranger = Handshake(
        Pattern.XX, True, StaticKey.from_private(random.randbytes(32)), random.randbytes,
        prologue(2, datagram.Pattern.XX, (2,)),
    ).write_message(bytes(constants.XX_PADDING))  # fmt: skip
    examples.append(CookieJar(None).stamp(datagram.Init(2, datagram.Pattern.XX, 7, (2,), stranger).body(), 0.0))
    now = net.now

    def mend(data: bytes) -> bytes:
        if data[:1] == bytes((datagram.Type.INIT,)) and len(data) > 50:
            jar = CookieJar(alice.static.public if data[2] == datagram.Pattern.IKPSK2 else None)
            return jar.stamp(data[:-32], now)
        if data[:1] == bytes((datagram.Type.TRANSPORT,)) and len(data) > 32:
            return _sealed(session, data[16:-16])
        return data

    def feed(data: bytes) -> str:
        nonlocal now
        now += _STEP
        source = SockAddr(address(f"198.51.100.{random.randrange(1, 5)}"), PORT)
        alice.endpoint.receive(now, data, source, alice.address)
        drained = alice.endpoint.drain()
        alice.endpoint.tick(now)
        alice.endpoint.drain()
        sent = sum(len(event.data) for event in drained if isinstance(event, events.Transmit) and event.to == source)
        if sent > max(len(data), 300):
            raise Broken(f"{sent} bytes in answer to {len(data)}")
        return next((event.reason for event in drained if isinstance(event, events.Refused)), ACCEPTED)

    return Target(examples, feed, mend, lasts=_LASTS)


def engine(random: Random) -> Target:
    """flows/engine.py: a peer that is approved, and means harm, has a connection; somebody else's stays as it is.

    It is a rendezvous of ours too, and we are one of its.
    """
    world = World(seed=random.randrange(1 << 30))
    serving = Policy(first_contact="accept-new", long_lived_after=1.0, serve=True)
    alice, bob = world.host("alice", "192.0.2.1", policy=serving), world.host("bob", "198.51.100.2")
    mallory = world.host("mallory", "203.0.113.66", policy=serving)
    alice.meets_at(mallory)
    mallory.meets_at(alice)
    _, victim = world.connect(bob, alice, 40000)
    _, own = world.connect(mallory, alice, 50000)
    world.run(5)
    session = mallory.engine.endpoint.peers[alice.static.public].sessions[0]
    it, now = alice.engine, world.now
    there = it.table.at(victim)
    mine = it.table.at(own)
    if there is None or mine is None or not there.movable or not mine.movable:
        raise Broken("the connections are not protected to begin with")
    before = there.flow
    tag = next(tag for tag, key in it.rendezvous.servers[0].tags.items() if key == bob.static.public)
    place = SockAddr(address("203.0.113.99"), PORT)
    moved = message.Moved((own.remote.host,))
    examples = [
        message.encode(one)
        for one in (
            message.Acm((1 << 32) + 1, bytes(8), own.remote.host, moved),
            message.Acm(
                (1 << 32) + 2, bytes(8), victim.remote.host, message.Moved((victim.remote.host,), (there.cid,))
            ),
            message.Acm((1 << 32) + 3, bytes(8), address("203.0.113.67"), moved, stalled=True),
            message.AcmAck(1, bytes(8), message.AcmStatus.APPLIED, 1, SockAddr(own.local.host, PORT)),
            message.PathChallenge((1 << 32) + 1, bytes(8), bytes(8)),
            message.PathResponse((1 << 32) + 1, bytes(8)),
            message.RstQuery(1, there.cid),
            message.RstReply(1, alive=False),
            message.EndOf(1, message.End.KILL, (there.cid,)),
            message.EndOf(2, message.End.RELEASED, (there.cid, bytes(8))),
            message.Done(1),
            message.Sync(1, (there.cid, mine.cid)),
            message.SyncReply(1, (there.cid,)),
            message.Seen((bytes(8),)),
            message.PathProbe(bytes(8)),
            message.PathProbed(bytes(8)),
            meeting.Registered(it.rendezvous.servers[0].request, meeting.Registration.PROVE, place, bytes(8)),
            meeting.Found(tag, place, (place.host,)),
            meeting.Forwarded(tag, bytes(64)),
            meeting.Register(1, (place.host,), (tag, bytes(16))),
            meeting.Lookup(tag),
            meeting.Forward(tag, bytes(64)),
            meeting.Relay(1, tag, (1, 2, 3)),
        )
    ]
    known = table("wire/test_message.py")
    for text in _hexed(known):
        examples.append(text)
        for cid, socket in ((there.cid, victim), (mine.cid, own)):  # claims, and answers to ours
            swapped = text.replace(known._CID, cid)
            for ours, host in zip(known._TUPLE, (socket.remote.host, socket.local.host), strict=True):
                swapped = swapped.replace(message.pack_ip(ours.host), message.pack_ip(host))
            examples.append(swapped.replace((40000).to_bytes(2), socket.remote.port.to_bytes(2)))
    sources = [SockAddr(address(text), PORT) for text in ("203.0.113.66", "203.0.113.67", "198.51.100.2")]

    def feed(data: bytes) -> str:
        nonlocal now
        now += _STEP
        it.receive(now, _sealed(session, data), random.choice(sources), alice.addresses[0])
        it.tick(now)
        reason = ACCEPTED
        while todo := it.drain():
            for command in todo:
                reason = _carry_out(alice, command, now) or reason
        if it.table.at(victim) is not there or there.flow != before or not there.movable:
            raise Broken("it has changed another host's connection")
        return reason

    return Target(examples, feed, longest=1200, same_length=True, lasts=_LASTS)


def _carry_out(host: Host, command: commands.Command, now: float) -> str | None:
    """What the shell answers; the reason of a refusal."""
    it = host.engine
    match command:
        case commands.Rewrite():
            it.rewritten(now, command, None)
        case commands.CheckSockets(purpose, asked):
            it.checked(now, purpose, frozenset(asked) & host.sockets)
        case commands.AskNumbers(purpose, asked):
            it.numbers(now, purpose, {socket: host.bases(socket) for socket in asked if socket in host.sockets})
        case commands.FindNumbers(purpose, port, remote):
            found = [one for one in host.sockets if (one.local.port, one.remote.host) == (port, remote)]
            it.numbers(now, purpose, {socket: host.bases(socket) for socket in found})
        case commands.Notice("packet.refused" | "redirect.refused" | "connection.refused"):
            return command.reason
    return None


TARGETS: dict[str, Make] = {
    "datagram": datagrams,
    "message": session_messages,
    "tunnel": tunnel_datagrams,
    "joining-v4": joining(False, _V4),
    "joining-v6": joining(False, _V6),
    "joining-tagged": joining(True, _V4),
    "tcp": packets(ip.parse_tcp, _packets),
    "token": packets(_token, _packets),
    "unreachable": packets(ip.parse_unreachable, _errors),
    "too-big": packets(_too_big, _errors),
    "icmp-report": icmp_reports,
    "cookie": cookies,
    "noise": noise,
    "endpoint": endpoint,
    "engine": engine,
} | LOCAL
