"""Makes bad inputs of good ones.  Everything comes from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_BYTES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
_NUMBERS = tuple(
    value.to_bytes(size, "big") for size in (2, 4, 8) for value in (0, 1, 1 << 8 * size - 1, (1 << 8 * size) - 1)
)
_STRANGE = 0.02  # of all inputs are random bytes, and as many are left as they are


class Mutator:
    """Endless bad inputs."""

    def __init__(
        self,
        examples: Sequence[bytes],
        longest: int,
        random: Random,
        *,
        same_length: bool = False,
        words: Sequence[bytes] = (),
    ) -> None:
        """``longest``: no input has more bytes.  ``same_length``: as many as the example as a rule.

        ``words``: what is put in, or over what is there, in a text.
        """
        self._changes = _SAME_LENGTH * 8 + _CHANGES if same_length else _CHANGES
        self._changes += (Mutator._put, Mutator._put_over) * len(_CHANGES) if words else ()
        self._words = words
        self._examples = examples
        self._longest = longest
        self._random = random

    def next(self) -> bytes:
        """One input: an example with a few changes."""
        random = self._random
        kind = random.random()
        if kind < _STRANGE:
            return random.randbytes(int(random.expovariate(1 / 60)))[: self._longest]
        data = bytearray(random.choice(self._examples))
        if kind < 2 * _STRANGE:
            return bytes(data)
        while True:
            random.choice(self._changes)(self, data)
            if random.random() < 0.5:
                return bytes(data[: self._longest])

    def _at(self, data: bytearray) -> int:
        """A place; heads and their fields more often than what follows."""
        place = self._random.random()
        return int((place * place) * len(data))

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] ^= 1 << self._random.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] = self._random.choice(_BYTES)

    def _random_byte(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] = self._random.randrange(256)

    def _number(self, data: bytearray) -> None:
        number = self._random.choice(_NUMBERS)
        at = self._at(data)
        data[at : at + len(number)] = number

    def _step(self, data: bytearray) -> None:
        """A length or a count that is a little wrong."""
        if data:
            at = self._at(data)
            data[at] = (data[at] + self._random.randint(-3, 3)) & 0xFF

    def _cut(self, data: bytearray) -> None:
        del data[int(self._random.random() * len(data)) :]

    def _shorten(self, data: bytearray) -> None:
        del data[len(data) - self._random.randint(1, 20) :]

    def _extend(self, data: bytearray) -> None:
        data += self._random.randbytes(self._random.randint(1, 40))

    def _remove(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._random.randint(1, 20)]

    def _repeat(self, data: bytearray) -> None:
        at = self._at(data)
        part = data[at : at + self._random.randint(1, 60)]
        data[at:at] = part * self._random.randint(1, 4)

    def _splice(self, data: bytearray) -> None:
        """The front of this with the end of another."""
        other = self._random.choice(self._examples)
        data[self._at(data) :] = other[int(self._random.random() * len(other)) :]

    def _put(self, data: bytearray) -> None:
        at = self._random.randint(0, len(data))
        data[at:at] = self._random.choice(self._words)

    def _put_over(self, data: bytearray) -> None:
        at, word = self._random.randint(0, len(data)), self._random.choice(self._words)
        data[at : at + self._random.choice((1, len(word)))] = word


_SAME_LENGTH = (
    Mutator._flip,
    Mutator._flip,
    Mutator._set,
    Mutator._random_byte,
    Mutator._number,
    Mutator._step,
)
_CHANGES = (
    *_SAME_LENGTH,
    *_SAME_LENGTH,
    Mutator._cut,
    Mutator._shorten,
    Mutator._extend,
    Mutator._remove,
    Mutator._repeat,
    Mutator._splice,
)
