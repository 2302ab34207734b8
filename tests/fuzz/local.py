"""What reads files and sockets of this host, and what the kernel hands over, as targets (targets.py).

Some of it only root writes: then a fault is a traceback where a sentence should be, for example after a disk's.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
import weakref
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import dns.exception
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import msgspec

from redirectctl import config
from redirectctl.api import schema
from redirectctl.api.schema import RequestError
from redirectctl.daemon import eventlog, records
from redirectctl.daemon import service as daemon_service
from redirectctl.kernel.netlink import HEADER, attribute, attributes, split
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.tcp.inband import Inband
from redirectctl.names import tsigkey
from redirectctl.names.words import host_words
from redirectctl.store import database
from redirectctl.store.records import ConnectionRecord, PeerAddress, PeerRecord, PeerState, StoreError
from redirectctl.store.store import Store
from redirectctl.wire import ip
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.tunnel import Offer
from tests.fuzz.target import ACCEPTED, Broken, Make, Target

_ROOT = Path(__file__).parents[2]
_V4 = FourTuple(SockAddr.parse("192.0.2.1:40000"), SockAddr.parse("203.0.113.9:22"))
_V6 = FourTuple(SockAddr.parse("[2001:db8::1]:40000"), SockAddr.parse("[2001:db8:9::2]:22"))
_JSON = (
    b'"', b"{", b"[", b"}", b"]", b",", b":", b"null", b"true", b"-1", b"1e999", b"0.1", b"9" * 400, b'"\\ud800"',
    b'"\\u0000"', b"[" * 300, b'{"a":' * 300,
)  # fmt: skip
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# -- the Unix socket ---------------------------------------------------------------------------------------------------


def _value(kind: msgspec.inspect.Type, *, whole: bool) -> Any:
    """One of this type, as JSON has it; ``whole``: with all that may be left out."""
    match kind:
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            return 7
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.StrType():
            return "192.0.2.1:22-192.0.2.2:22"
        case msgspec.inspect.EnumType():
            return next(iter(kind.cls)).value
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            return [_value(kind.item_type, whole=whole)]
        case msgspec.inspect.DictType():
            return {"some": _value(kind.value_type, whole=whole)}
        case msgspec.inspect.UnionType():
            return next(_value(t, whole=whole) for t in kind.types if not isinstance(t, msgspec.inspect.NoneType))
        case msgspec.inspect.StructType():
            tag = {kind.tag_field: kind.tag} if kind.tag_field is not None else {}
            return tag | {f.encode_name: _value(f.type, whole=whole) for f in kind.fields if whole or f.required}
    return None


def _lines(union: Any) -> list[bytes]:
    kinds = msgspec.inspect.type_info(union)
    if not isinstance(kinds, msgspec.inspect.UnionType):
        raise TypeError("not a union")
    return [msgspec.json.encode(_value(kind, whole=whole)) for kind in kinds.types for whole in (False, True)]


def requests(_: Random) -> Target:
    """api/schema.py, and what the daemon makes of the text in a request."""

    def feed(data: bytes) -> str:
        try:
            request = schema.decode_request(data)
            if isinstance(request, schema.ProtectRequest):
                daemon_service._connection("protect", request.target)
        except RequestError as error:
            return _kind(error.error.why)
        if schema.decode_request(schema.encode(request)) != request:
            raise Broken("reads as another request when it is encoded again")
        return ACCEPTED

    return Target(_lines(schema.Request), feed, words=_JSON, lasts=1_000_000)


def replies(_: Random) -> Target:
    """api/schema.py, as clients read what says that it is the daemon."""

    def feed(data: bytes) -> str:
        try:
            schema.decode_reply(data)
        except ValueError as error:
            return _kind(str(error))
        return ACCEPTED

    return Target(_lines(schema.Reply), feed, words=_JSON, lasts=1_000_000)


def _kind(why: str) -> str:
    """Of a reason that quotes the input, its first words."""
    return " ".join(re.sub("[^A-Za-z ]", " ", why).split()[:3]) or "other"


# -- files -------------------------------------------------------------------------------------------------------------


def event_log(_: Random) -> Target:
    """daemon/eventlog.py: lines of its file."""
    path = _directory() / "events.jsonl"
    event = msgspec.inspect.type_info(schema.Event)
    examples = [msgspec.json.encode(_value(event, whole=whole)) + b"\n" for whole in (False, True)]

    def feed(data: bytes) -> str:
        path.write_bytes(data)
        with eventlog.History(path, None) as history:
            return ACCEPTED if history.read(10) else "passed over"

    return Target(examples, feed, words=_JSON, lasts=1_000_000)


_TOML = (
    b"[", b"]", b"=", b'"', b"'''", b"\n", b".", b"{", b"}", b"[[", b"#", b"1979-05-27", b"inf", b"nan", b"-1", b"0x",
    b"9" * 5000, b"0x" + b"f" * 5000, b"[" * 1200, b"a." * 1200, b"\xff", b"\\u0000", b"[dns]\n", b"[path]\n", b'"10s"',
)  # fmt: skip


def configuration(_: Random) -> Target:
    """config.py: one sentence with a line's number, or a whole configuration."""
    whole = (_ROOT / "etc" / "redirectd.toml").read_text()
    lines = re.sub(r"^#(?=[a-z\[])", "", whole, flags=re.MULTILINE)
    sections = [f"[{part}" for part in lines.split("\n[")[1:]]

    def feed(data: bytes) -> str:
        try:
            config.parse(data.decode(errors="replace"))
        except config.ConfigError as error:
            if "\n" in str(error):
                raise Broken("more than a line") from error
            return _kind(error.args[0].split(": ")[-1])
        return ACCEPTED

    return Target([each.encode() for each in (whole, lines, *sections)], feed, words=_TOML, longest=8192)


def key_files(_: Random) -> Target:
    """names/tsigkey.py"""

    def feed(data: bytes) -> str:
        try:
            tsigkey.parse(data.decode(errors="replace"))
        except tsigkey.KeyFileError as error:
            return _kind(str(error).partition(": ")[2])
        return ACCEPTED

    examples = [
        b'key "laptop" {\n\talgorithm hmac-sha256;\n\tsecret "c2VjcmV0";\n};\n',
        b"// made by hand\nkey laptop { /* once */ algorithm hmac-sha512; secret c2VjcmV0Ly8=; }; # end\n",
    ]
    return Target(examples, feed, words=(b"/*", b"*/", b"//", b'"', b"{", b"}", b";", b"key ", b"secret ", b"="))


# -- the store ---------------------------------------------------------------------------------------------------------


def store_rows(_: Random) -> Target:
    """store/store.py and daemon/records.py: rows with anything in them, as a disk may give them back.

    An input: which column, which type, and the value.
    """
    store = Store.__new__(Store)
    store.path = Path("state.db")
    store._lock = -1
    store._database = sqlite3.connect(":memory:", isolation_level=None)
    for script in sorted(database._SCHEMA.glob("[0-9]*.sql")):
        rules = r"CHECK \((?:[^()]|\([^()]*\))*\)|STRICT, WITHOUT ROWID|STRICT| NOT NULL"
        store._database.executescript(re.sub(rules, "", script.read_text()))
    peer = PeerRecord(
        bytes(32), "SHA256:abc", PeerState.APPROVED, 1.0, secret=bytes(32), last_contact=2.0,
        addresses=(PeerAddress(ip_address("192.0.2.1"), 1.0, 2.0),),
    )  # fmt: skip
    offer = Offer(1, bytes(16), 2)
    connection = ConnectionRecord(
        bytes(8), bytes(32), _V4, _V4, True, 1, 2, 3.0, there=_V6, sending=offer, receiving=offer,
        outer_local=_V4.local.host, outer_remote=_V4.remote, lost_at=4.0, window=5, user_timeout=6, command="ssh",
        pid=7, state="suspended", reason="no-path", held=True,
    )  # fmt: skip
    store.put_peer(peer)
    store.put_connections([connection])
    tables = [("peers", "public"), ("peer_addresses", "public"), ("connections", "cid")]
    columns = [
        (table, column)
        for table, key in tables
        for _, column, *_ in store._database.execute(f"PRAGMA table_info({table})")
        if column != key and not (table == "connections" and column == "peer")
    ]
    examples = []
    true = {}
    for number, (table, column) in enumerate(columns):
        value = store._database.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()[0]
        true[number] = value
        kind = "nidtb".index({type(None): "n", int: "i", float: "d", str: "t", bytes: "b"}[type(value)])
        examples.append(bytes((number, kind)) + (value if isinstance(value, bytes) else str(value).encode()))

    def feed(data: bytes) -> str:
        number, kind, value = (*data[:2], *(0, 0))[0] % len(columns), (*data[:2], 0, 0)[1] % 5, data[2:]
        table, column = columns[number]
        made: Any = value
        if kind == 0:
            made = None
        elif kind == 1:
            made = int.from_bytes(value[:8], signed=True)
        elif kind == 2:
            made = float(int.from_bytes(value[:2])) if value[:1] != b"\xff" else float("inf")
        elif kind == 3:
            made = value.decode(errors="replace")
        store._database.execute(f"UPDATE {table} SET {column} = ?", (made,))
        try:
            with database.readable(store.path):  # as daemon/runtime.py has it
                for one in store.peers():
                    records.restored_peer(one, 7747)
                for each in store.connections():
                    records.restored_connection(each, 0.0)
        except StoreError as error:
            return _kind(error.why)
        finally:
            store._database.execute(f"UPDATE {table} SET {column} = ?", (true[number],))
        return ACCEPTED

    return Target(examples, feed, words=(b"192.0.2.1:22", b"[::1]:22", b"::", b":", b"\0"))


# -- what other users can name -----------------------------------------------------------------------------------------

_TICKS = 987654
_STAT = b"4711 (%s) S 1 4711 4711 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 %d 1 2 3\n"


def processes(_: Random) -> Target:
    """kernel/processes/procfs.py: a process whose user has chosen its name and arguments."""
    proc = _directory()
    (proc / "4711").mkdir()
    status = b"Name:\t%s\nUmask:\t0022\nState:\tS\nUid:\t1000\t1000\t1000\t1000\nGid:\t1 1 1 1\n"

    def feed(data: bytes) -> str:
        name = data.replace(b"\0", b"")[:15]
        (proc / "4711/stat").write_bytes(_STAT % (name, _TICKS))
        (proc / "4711/status").write_bytes(status % name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n"))
        (proc / "4711/cmdline").write_bytes(data)
        (proc / "4711/comm").write_bytes(name + b"\n")
        if procfs.start_time(4711, proc=proc) != _TICKS or procfs.users(4711, proc=proc) != {1000}:
            raise Broken("its name is taken for its numbers")
        if _UNSAFE.search(procfs.command_line(4711, proc=proc)):
            raise Broken("its command steers a terminal")
        return ACCEPTED if host_words(procfs.arguments(4711, proc=proc)) else "no host"

    examples = [b"ssh\0-p\0" + b"22\0alice@host.example.net\0", b"psql\0host=db.example port=5432\0", b"a) R 1 (b\0x\0",
                b"curl\0https://[::1]:80/x\0", b"\xe2\x80\xae\0\xff\0", b""]  # fmt: skip
    return Target(examples, feed, words=(b") S 1 ", b"\n", b"\0", b"://", b"[", b"=", b"@", b"\x1b[2J"))


# -- names -------------------------------------------------------------------------------------------------------------


def answers(_: Random) -> Target:
    """names/resolver.py: what says that it is a resolver."""
    name = dns.name.from_text("host.example.net.")
    query = dns.message.make_query(name, "A", id=7)
    examples = [query.to_wire()]
    for text in (
        "host.example.net. 30 IN A 192.0.2.1\nhost.example.net. 30 IN A 192.0.2.2",
        "host.example.net. 30 IN CNAME other.example.net.\nother.example.net. 5 IN A 192.0.2.3",
        "host.example.net. 30 IN AAAA 2001:db8::1",
    ):
        lines = (
            f"id 7\nopcode QUERY\nrcode NOERROR\nflags QR RD RA\n;QUESTION\nhost.example.net. IN A\n;ANSWER\n{text}\n"
        )
        examples.append(dns.message.from_text(lines).to_wire())

    def feed(data: bytes) -> str:
        try:
            message = dns.message.from_wire(data)
            if not query.is_response(message):
                return "no answer to our question"
            answer = dns.resolver.Answer(name, dns.rdatatype.A, dns.rdataclass.IN, message)
            found = [ip_address(record.address) for record in answer]
        except (dns.exception.DNSException, OSError, ValueError) as error:  # as resolver.py has it
            return type(error).__name__
        if not all(address.version == 4 for address in found):
            raise Broken("another kind of address")
        return ACCEPTED

    return Target(examples, feed)


# -- the kernel --------------------------------------------------------------------------------------------------------


class _Packet:
    """In NFQUEUE."""

    mark = 0

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.verdicts: list[str] = []

    def accept(self, instead: bytes | None = None) -> None:
        self.verdicts.append("accept")

    def drop(self) -> None:
        self.verdicts.append("drop")


def queued(_: Random) -> Target:
    """kernel/tcp/inband.py: what the kernel holds for us is decided about, once, and what has no token goes on."""
    tokens: list[bytes] = []
    reasons: list[str] = []
    inband = Inband(
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        on_token=lambda _, token, numbers: tokens.append(token),
        on_refused=lambda reason, _: reasons.append(reason),
    )

    def feed(data: bytes) -> str:
        tokens.clear()
        reasons.clear()
        packet = _Packet(data)
        inband.on_arrival(packet)
        if packet.verdicts != (["drop"] if tokens else ["accept"]):
            raise Broken(f"{packet.verdicts} for {len(tokens)} tokens")
        return ACCEPTED if tokens else reasons[0]

    options = [bytes.fromhex("fd0c7747 0102030405060708"), bytes.fromhex("0101080a1111111122222222"), b""]
    examples = [
        ip.build_tcp(*connection, seq=1, ack=2, flags=ip.TcpFlags.ACK, options=option, data=text)
        for connection in (_V4, _V6)
        for option in (*options, options[1] + options[0])
        for text in (b"", b"data")
    ]
    return Target(examples, feed)


def netlink(_: Random) -> Target:
    """kernel/netlink.py: ends, whatever lengths there are, and nothing is read twice."""

    def feed(data: bytes) -> str:
        at = 0
        for *_, start, end in split(data):
            if start <= at or end < start:
                raise Broken("does not get on")
            at = start
            for _ in attributes(data[start:end]):
                pass
        return ACCEPTED if at else "no message"

    body = bytes(12) + attribute(1, bytes(4)) + attribute(0x8002, attribute(3, b"name"))
    one = HEADER.pack(HEADER.size + len(body), 24, 0, 1, 2) + body
    return Target([one, one * 3, HEADER.pack(20, 2, 0, 1, 0) + bytes(4)], feed)


def _directory() -> Path:
    """One that goes when nobody needs it any more."""
    path = Path(tempfile.mkdtemp(prefix="redirectctl-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    weakref.finalize(_KEPT, shutil.rmtree, path, ignore_errors=True)
    return path


class _Kept:
    """Ends with this process."""


_KEPT = _Kept()

LOCAL: dict[str, Make] = {
    "api-request": requests,
    "api-reply": replies,
    "event-log": event_log,
    "configuration": configuration,
    "key-file": key_files,
    "store-row": store_rows,
    "process": processes,
    "dns-answer": answers,
    "queued": queued,
    "netlink": netlink,
}
