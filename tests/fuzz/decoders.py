#!/usr/bin/env python3
"""Feeds everything that reads from the network with bad bytes: python tests/fuzz/decoders.py [DECODER...]

An input that raises what it must not, or takes too long, ends the run; it is printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.mutate import Mutator
from tests.fuzz.target import ACCEPTED, Target
from tests.fuzz.targets import TARGETS

MOST_SECONDS = 2.0  # of CPU time an input may take
MOST_GROWTH = 64 << 20  # bytes of memory after the first tenth
BATCH = 1000  # inputs with one seed
_MENDED = 0.5  # of the inputs, where a target can mend them
_REASONS = 4  # that the table shows


class Failure(Exception):
    """A decoder did what it must not do."""


@dataclass
class Result:
    """What became of the inputs."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0  # seconds of CPU time that one input took
    growth: int = 0  # bytes of memory


class _TooLong(BaseException):
    """Not an Exception: no decoder may catch it."""


@contextmanager
def _watchdog() -> Iterator[None]:
    def bark(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGVTALRM, bark)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def fuzz(name: str, inputs: int, seconds: float = float("inf"), seed: int = 1, begin: int = 0) -> Result:
    """Feed one decoder, with inputs from number ``begin`` on.  Raises Failure."""
    result = Result()
    target = _made(name, seed, begin)
    started, baseline = time.monotonic(), 0
    gc.collect()
    gc.freeze()  # else a collection walks through every module's objects, and an input seems to take 100 ms
    with _watchdog():
        for first in range(begin, begin + inputs, BATCH):
            if first != begin and first % target.lasts == 0:
                target = _made(name, seed, first)
            random = Random(f"{seed} {name} {first}")
            mutator = Mutator(
                target.examples, target.longest, random, same_length=target.same_length, words=target.words
            )
            for number in range(first, min(first + BATCH, begin + inputs)):
                data = mutator.next()
                if target.mend is not None and random.random() < _MENDED:
                    data = target.mend(data)
                outcome, took = _feed(name, target, data, seed, number)
                result.outcomes[outcome] += 1
                result.slowest = max(result.slowest, took)
                result.inputs += 1
            result.seconds = time.monotonic() - started
            if baseline == 0 and max(result.inputs / inputs, result.seconds / seconds) >= 0.1:
                baseline = _memory()
            if result.seconds > seconds:
                break
    gc.unfreeze()
    result.growth = max(0, _memory() - baseline)
    if result.growth > MOST_GROWTH:
        raise Failure(f"{name}: memory has grown by {result.growth >> 20} MiB")
    return result


def _made(name: str, seed: int, first: int) -> Target:
    return TARGETS[name](Random(f"{seed} {name} from {first}"))


def _feed(name: str, target: Target, data: bytes, seed: int, number: int) -> tuple[str, float]:
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
        began = time.thread_time()
        outcome = target.feed(data)
        took = time.thread_time() - began
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except (Exception, _TooLong) as error:
        what = "takes too long" if isinstance(error, _TooLong) else f"{type(error).__name__}: {error}"
        since = number - number % target.lasts
        again = f"tests/fuzz/decoders.py --seed {seed} --begin {since} --inputs {number - since + 1} {name}"
        raise Failure(f"{name}: {what}\ninput {number}: {data.hex()}\nagain: {again}") from error
    return outcome, took


def _memory() -> int:
    """Bytes that are resident, after what is free has been given back: else growth may go there unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _line(name: str, result: Result) -> str:
    refused = result.outcomes.copy()
    accepted = refused.pop(ACCEPTED, 0)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in refused.most_common(_REASONS))
    more = f" and {len(refused) - _REASONS} more" if len(refused) > _REASONS else ""
    rate = result.inputs / result.seconds
    return (
        f"{name:15} {result.inputs:>11,} {accepted:>9,} {result.seconds:>8.1f} {rate:>9,.0f} "
        f"{result.slowest * 1000:>8.1f} {result.growth / (1 << 20):>6.1f}  {reasons}{more}"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("decoders", nargs="*", metavar="DECODER", help=f"default all: {', '.join(TARGETS)}")
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N", help="for each decoder (%(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="for each decoder at most")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="other inputs (%(default)s)")
    parser.add_argument("--begin", type=int, default=0, metavar="N", help="number of the first input, as told")
    options = parser.parse_args(arguments)
    for name in options.decoders:
        if name not in TARGETS:
            parser.error(f"there is no decoder {name!r}")
    heads = "decoder", "inputs", "accepted", "seconds", "inputs/s", "worst ms", "MiB"
    print("{:15} {:>11} {:>9} {:>8} {:>9} {:>8} {:>6}  refused".format(*heads), flush=True)
    failed = 0
    for name in options.decoders or TARGETS:
        try:
            print(_line(name, fuzz(name, options.inputs, options.seconds, options.seed, options.begin)), flush=True)
        except Failure as failure:
            failed += 1
            print(failure, file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
