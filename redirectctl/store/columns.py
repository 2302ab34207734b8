"""How a ConnectionRecord lies in the table `connections`: the columns of each field follow from its type.

A new field is one of ConnectionRecord, and a column of its name in schema/.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import fields
from ipaddress import ip_address
from itertools import accumulate
from operator import attrgetter
from types import NoneType
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from redirectctl.store.records import CommandLine, ConnectionRecord, Unsigned64
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr
from redirectctl.wire.tunnel import Offer

_OFFER: Final = struct.Struct("!I16sQ")
_CALLED: Final = {"socket": "", "window": "send_window"}  # columns that do not have the name of their field
_BORN_WITH: Final = {"cid", "peer", "socket", "initiator", "opened_at"}  # kept from the first time


class AddressText:
    """str() of addresses, each host's text made once: the batch of a big move has few hosts.

    ipaddress formats at 1.5 us and hashes slowly; 1,000 connections took 10 ms for it, this way 1 ms.
    """

    def __init__(self) -> None:
        self._hosts: dict[int, tuple[IPAddress, str]] = {}  # by identity: kept, so that it stays theirs

    def __call__(self, address: SockAddr) -> str:
        """With the port."""
        host, port = address
        text = self.host(host)
        return f"[{text}]:{port}" if host.version == 6 else f"{text}:{port}"

    def host(self, host: IPAddress) -> str:
        """Without."""
        known = self._hosts.get(id(host))
        if known is None:
            known = self._hosts[id(host)] = host, str(host)
        return known[1]


Encode = Callable[[Any, AddressText], Any]


class _Codec(NamedTuple):
    """Of a type: its values have other forms in SQLite."""

    columns: dict[str, Encode | None]  # what is added to the name of the field; None: SQLite makes it of the value
    decode: Callable[..., Any]


class _Field(NamedTuple):
    name: str
    optional: bool
    columns: dict[str, Encode | None]  # by name
    decode: Callable[..., Any] | None  # None: it is as SQLite gives it


_FOUR: Final = _Codec(
    {"_local": lambda value, text: text(value.local), "_remote": lambda value, text: text(value.remote)},
    lambda local, remote: FourTuple(SockAddr.parse(local), SockAddr.parse(remote)),
)
_CODECS: Final[dict[Any, _Codec]] = {
    Unsigned64: _Codec({"": lambda value, _: value.to_bytes(8)}, int.from_bytes),
    bool: _Codec({"": None}, bool),
    CommandLine | None: _Codec({"": lambda value, _: value.encode(errors="replace").decode()}, str),
    FourTuple: _FOUR,
    FourTuple | None: _FOUR,
    IPAddress | None: _Codec({"": lambda value, text: text.host(value)}, ip_address),
    SockAddr | None: _Codec({"": lambda value, text: text(value)}, SockAddr.parse),
    Offer | None: _Codec(
        {"": lambda value, _: _OFFER.pack(value.flow, value.key, value.start)},
        lambda packed: Offer(*_OFFER.unpack(packed)),
    ),
}


def _field(name: str, kind: Any) -> _Field:
    columns, decode = _CODECS.get(kind, ({"": None}, None))
    called = {f"{_CALLED.get(name, name)}{ending}".removeprefix("_"): encode for ending, encode in columns.items()}
    return _Field(name, NoneType in get_args(kind), called, decode)


_KINDS: Final = get_type_hints(ConnectionRecord, include_extras=True)
_FIELDS: Final = [_field(field.name, _KINDS[field.name]) for field in fields(ConnectionRecord)]
_COLUMNS: Final = [(field.name, column, encode) for field in _FIELDS for column, encode in field.columns.items()]
_ENCODES: Final = [encode for _, _, encode in _COLUMNS]
# Where a field is in a row: from, to.
_ENDS: Final = list(accumulate(len(field.columns) for field in _FIELDS))
_PLACES: Final = [(end - len(f.columns), end, f.optional, f.decode) for f, end in zip(_FIELDS, _ENDS, strict=True)]
_values: Final = attrgetter(*(name for name, _, _ in _COLUMNS))

_LISTED: Final = ", ".join(column for _, column, _ in _COLUMNS)
SELECT: Final = f"SELECT {_LISTED} FROM connections ORDER BY opened_at"
UPSERT: Final = (
    f"INSERT INTO connections ({_LISTED}) VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT (cid) DO UPDATE SET "
    + ", ".join(f"{column} = excluded.{column}" for name, column, _ in _COLUMNS if name not in _BORN_WITH)
)


def encode(record: ConnectionRecord, text: AddressText) -> tuple[Any, ...]:
    """A row for UPSERT."""
    values = zip(_ENCODES, _values(record), strict=True)
    return tuple([value if to is None or value is None else to(value, text) for to, value in values])


def decode(row: Sequence[Any]) -> ConnectionRecord:
    """From a row of SELECT.  Raises ValueError, TypeError or AttributeError on what no daemon has written."""
    return ConnectionRecord(
        *(
            row[at] if from_columns is None or (optional and row[at] is None) else from_columns(*row[at:end])
            for at, end, optional, from_columns in _PLACES
        )
    )
