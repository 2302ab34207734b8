"""Bodies of messages, by what their fields are called and how each stands on the wire.

A body is its fields one after the other, big endian.  A list is a byte with the number of its items, then the items;
it can only be followed by lists.  Lengths are looked at before values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import starmap
from typing import Any, ClassVar, Final, NamedTuple, Self

from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.datagram import MalformedError
from redirectctl.wire.fields import need_ip, pack_ip


class Field(NamedTuple):
    """One value."""

    codes: str  # of struct, for what it is made of
    pack: Callable[[Any], tuple[Any, ...]]
    unpack: Callable[..., Any]  # raises MalformedError, or ValueError for an enum value that we do not know
    as_it_is: bool = False  # the value is what struct has

    @property
    def parts(self) -> int:
        """Of how many values of struct it is made."""
        return sum(map(str.isalpha, self.codes))


class Many(NamedTuple):
    """A list of items."""

    item: Field
    most: int


def plain(codes: str) -> Field:
    """A number, or so many bytes."""
    return Field(codes, lambda value: (value,), lambda value: value, as_it_is=True)


def one_of(kind: type[IntEnum]) -> Field:
    """A byte."""
    return Field("B", lambda value: (value,), kind)


def record(make: Callable[..., Any], **fields: Field) -> Field:
    """Several values that belong together, in the order of the arguments of ``make``."""
    each = [(name, field, field.parts) for name, field in fields.items()]

    def pack(value: Any) -> tuple[Any, ...]:
        return tuple(part for name, field, _ in each for part in field.pack(getattr(value, name)))

    def unpack(*parts: Any) -> Any:
        values, at = [], 0
        for _, field, length in each:
            values.append(field.unpack(*parts[at : at + length]))
            at += length
        return make(*values)

    return Field("".join(field.codes for field in fields.values()), pack, unpack)


def _flag(value: int) -> bool:
    if value > 1:
        raise MalformedError("bad-value")
    return bool(value)


def _four(local: bytes, lport: int, remote: bytes, rport: int) -> FourTuple:
    here, there = need_ip(local), need_ip(remote)
    if here.version != there.version or not lport or not rport:
        raise MalformedError("bad-tuple")
    return FourTuple(SockAddr(here, lport), SockAddr(there, rport))


FLAG: Final = Field("B", lambda value: (value,), _flag)
IP: Final = Field("16s", lambda address: (pack_ip(address),), need_ip)
SOCKADDR: Final = record(SockAddr, host=IP, port=plain("H"))
FOUR_TUPLE: Final = Field("16sH16sH", lambda four: (*SOCKADDR.pack(four.local), *SOCKADDR.pack(four.remote)), _four)


class Layout:
    """The fields of one message."""

    def __init__(self, **fields: Field | Many) -> None:
        single = {name: field for name, field in fields.items() if isinstance(field, Field)}
        self._head = struct.Struct("!" + "".join(field.codes for field in single.values()))
        self._single = [(name, field, field.parts) for name, field in single.items()]
        lists = {name: field for name, field in fields.items() if isinstance(field, Many)}
        self._lists = [(name, many, struct.Struct("!" + many.item.codes)) for name, many in lists.items()]

    def pack(self, message: object) -> bytes:
        """The body."""
        single = (part for name, field, _ in self._single for part in field.pack(getattr(message, name)))
        parts = [self._head.pack(*single)]
        for name, many, item in self._lists:
            values = getattr(message, name)
            parts += [bytes((len(values),)), *(item.pack(*many.item.pack(value)) for value in values)]
        return b"".join(parts)

    def unpack(self, body: bytes) -> dict[str, Any]:
        """Values by name.  Raises MalformedError, ValueError."""
        at = self._head.size
        spans: list[tuple[int, int]] = []
        for _, many, item in self._lists:
            if at >= len(body) or body[at] > many.most:
                raise MalformedError("bad-length")
            spans.append((at + 1, at + 1 + body[at] * item.size))
            at = spans[-1][1]
        if at != len(body):
            raise MalformedError("bad-length")
        parts, values, n = self._head.unpack_from(body), {}, 0
        for name, field, length in self._single:
            values[name] = field.unpack(*parts[n : n + length])
            n += length
        for (name, many, item), (start, end) in zip(self._lists, spans, strict=True):
            items = item.iter_unpack(body[start:end])
            values[name] = tuple(v for (v,) in items) if many.item.as_it_is else tuple(starmap(many.item.unpack, items))
        return values


@dataclass(frozen=True, slots=True)
class Body:
    """A message whose body is as its layout says."""

    TYPE: ClassVar[int]
    LAYOUT: ClassVar[Layout]

    def pack(self) -> bytes:
        """Body without the type byte."""
        return self.LAYOUT.pack(self)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises MalformedError, ValueError."""
        return cls(**cls.LAYOUT.unpack(body))
