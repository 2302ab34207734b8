"""``redirectctl bench``: the measurements of docs/measurements.md on this machine, and what they compare to.

Hosts are network namespaces; nothing is left behind.  Progress goes to stderr, tables (with --json: figures) to stdout.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap

from redirectctl.cli.common import ExitCode, Failure
from redirectctl.cli.output import print_json
from redirectctl.lab import bench
from redirectctl.lab.namespaces import LabError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which, and how long."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "measurements:\n" + textwrap.indent(
        "\n".join(f"{name:11} {what}" for name, what in bench.MEASUREMENTS.items()), "  "
    )
    parser.add_argument(
        "which", nargs="*", type=_which, metavar="WHICH", help="measure only these of the list below (default: all)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a first impression, in a few minutes instead of half an hour"
    )


def _which(text: str) -> str:
    if text not in bench.MEASUREMENTS:
        raise argparse.ArgumentTypeError(f"{text}: one of {', '.join(bench.MEASUREMENTS)}")
    return text


def run(args: argparse.Namespace) -> int:
    """Measure.  Raises Failure when something is missing or goes wrong."""
    if os.geteuid() != 0 and not (args.which and set(args.which) <= bench.WITHOUT_ROOT):
        raise Failure("bench: network namespaces need root; run it with sudo", ExitCode.DENIED)
    figures: dict[str, object] = {}
    failed = []
    for name in args.which or bench.MEASUREMENTS:
        measurement = bench.load(name)
        print(f"{name}: {bench.MEASUREMENTS[name]}", file=sys.stderr, flush=True)
        options = bench.options_of(measurement, measurement.QUICK if args.quick else ())
        try:
            outcome = bench.measured(measurement, options)
        except (bench.AbsentError, LabError) as error:
            why = str(error).strip().splitlines()[-1]
            failed.append(f"{name}: {why}")
            figures[name] = {"failed": why}
            continue
        figures[name] = {"title": outcome.title, "figures": outcome.figures}
        if not args.json:
            print(f"## {bench.MEASUREMENTS[name].capitalize()}\n\n{outcome.title}:\n\n{outcome.table}\n", flush=True)
    if args.json:
        print_json(figures)
    if failed:
        raise Failure(f"bench: {'; '.join(failed)}")
    return ExitCode.DONE
