"""What there is to be fed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType

ACCEPTED = "accepted"
_UNIT = Path(__file__).parents[1] / "unit"


class Broken(Exception):
    """A target did what it must never do."""


@dataclass
class Target:
    """Something to feed."""

    examples: list[bytes]
    feed: Callable[[bytes], str]  # ACCEPTED, or the reason of the refusal
    mend: Callable[[bytes], bytes] | None = None  # makes checksums and the like right, so that more is read
    longest: int = 2048  # bytes
    same_length: bool = False  # lengths have been checked by the time that it matters
    words: Sequence[bytes] = ()  # what a text of this kind is made of
    lasts: int = 50_000  # so many inputs until it is made anew; a multiple of decoders.BATCH


Make = Callable[[Random], Target]


def table(path: str) -> ModuleType:
    """A module of unit tests, for its table of examples."""
    spec = importlib.util.spec_from_file_location("examples", _UNIT / path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
