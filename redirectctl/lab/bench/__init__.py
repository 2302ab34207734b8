"""The measurements of docs/measurements.md: each a module with options and a table."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from redirectctl.lab.namespaces import LabError, close_all, ended_by_signals

Figures = dict[str, str | float | bool | None]  # of one row; seconds, bits a second, ratios


class AbsentError(Exception):
    """Something that this measurement needs is not installed: what, and how to get it."""


@dataclass(frozen=True)
class Outcome:
    """What was measured."""

    title: str  # what, how often, on what
    table: str  # Markdown
    figures: list[Figures]  # the same, for programs


class Measurement(Protocol):
    """A module of this package."""

    __doc__: str | None
    QUICK: Sequence[str]  # options for a first impression

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Its options."""

    def measure(self, options: argparse.Namespace) -> Outcome:
        """Do it; progress goes to stderr.  Raises AbsentError, LabError."""


# In the order of docs/measurements.md; what each compares.
MEASUREMENTS: Final = {
    "gap": "silence after an outage, with and without undoing TCP's back-off",
    "protected": "throughput of a connection before protection, protected, after a move",
    "ways": "throughput plain, rewritten, in the tunnel, with integrity, and of wireguard-go",
    "suspended": "memory and processor time of a daemon that holds 5,000 connections without a path",
    "crowd": "2,000 to 10,000 connections: how soon they are protected, and moved, and what that takes",
    "stays": "address stays: with the other daemon gone, plain TCP beside it",
    "uplinks": "address stays and does not carry (dead uplink, VPN, new prefix), plain TCP beside it",
    "start": "what redirect-run adds to the start of a command",
    "terminal": "what redirect-run adds on a terminal: to the start, and to each byte",
}

_MODULES: Final = {"stays": "without"}  # of those that are not named as their module

WITHOUT_ROOT: Final = frozenset({"start", "terminal"})


def load(name: str) -> Measurement:
    """One of MEASUREMENTS; each imports what it needs, the others nothing."""
    return cast(Measurement, importlib.import_module(f"redirectctl.lab.bench.{_MODULES.get(name, name)}"))


def options_of(measurement: Measurement, arguments: Sequence[str]) -> argparse.Namespace:
    """Its options as the command of its own takes them.  Exits with what is wrong with them."""
    parser = argparse.ArgumentParser(
        description=measurement.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measurement.add_arguments(parser)
    return parser.parse_args(arguments)


def measured(measurement: Measurement, options: argparse.Namespace) -> Outcome:
    """Measure; whatever happens, nothing is left behind.  Raises AbsentError, LabError."""
    try:
        with ended_by_signals():
            return measurement.measure(options)
    finally:
        close_all()


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """A measurement as a command of its own; the exit status."""
    measurement = load(name)
    options = options_of(measurement, sys.argv[1:] if arguments is None else arguments)
    try:
        outcome = measured(measurement, options)
    except (AbsentError, LabError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{outcome.title}:\n\n{outcome.table}")
    return 0


def tell(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table in Markdown.  words: so many columns, from the left, have words; the others figures."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    lines.insert(1, f"|{'---|' * words}{'--:|' * (len(columns) - words)}")
    return "\n".join(lines)


def need(*tools: str) -> None:
    """Programs that have to be there, as Debian names them.  Raises AbsentError."""
    if absent := [tool for tool in tools if shutil.which(tool) is None]:
        raise AbsentError(f"not installed: {', '.join(absent)}; apt install {' '.join(absent)}")


def machine(ipv6: bool | None = None) -> str:
    """On what it was measured.  ipv6: None where that does not matter."""
    family = "" if ipv6 is None else "IPv6, " if ipv6 else "IPv4, "
    return f"{family}Linux {platform.release()}, {os.cpu_count()} processors for all of it"
