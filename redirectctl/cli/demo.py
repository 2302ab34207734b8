"""``redirectctl demo``: a real ssh session lives through address changes, in network namespaces of this machine.

The account goes to stdout as it happens (with --json to stderr, and the outcome to stdout).  Exit status 0 only if
everything lived; whatever happens, Ctrl-C included, nothing is left behind.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict

from redirectctl.cli.common import ExitCode
from redirectctl.cli.common import Failure as CommandFailure
from redirectctl.cli.output import print_json
from redirectctl.lab.account import GREEN, RED, Narrator, table
from redirectctl.lab.namespaces import LabError, ended_by_signals
from redirectctl.lab.story import Demo, Failure

OUTAGE = 2.0  # seconds without any address, unless asked otherwise
MEGABYTES = 250
LONGEST_OUTAGE = 600.0  # seconds; TCP itself gives up after some 15 minutes
LEGEND = (
    "offline: the host had no address. gap: from the moment when the new address could be used to the first data "
    "that a program received, in either direction. ssh answers: the same, for the answer to what was typed meanwhile."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``redirectctl demo``."""
    parser.add_argument("--ipv6", action="store_true", help="let the connections use IPv6 instead of IPv4")
    parser.add_argument(
        "--outage", type=_seconds, default=OUTAGE, metavar="SECONDS", help="time without an address (%(default)s)"
    )
    parser.add_argument(
        "--copy", type=_megabytes, default=MEGABYTES, metavar="MB", help="size of the file to copy (%(default)s)"
    )


def _seconds(text: str) -> float:
    if not 0.1 <= float(text) <= LONGEST_OUTAGE:
        raise argparse.ArgumentTypeError(f"{text}: from 0.1 to {LONGEST_OUTAGE:g} seconds")
    return float(text)


def _megabytes(text: str) -> int:
    if not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text}: from 1 to 100000 MB")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run the demo.  Returns 0 if everything lived, 1 if not, 130 after Ctrl-C.  Raises Failure without root."""
    if os.geteuid() != 0:
        raise CommandFailure("demo: network namespaces need root; run it with sudo", ExitCode.DENIED)
    narrator = Narrator(sys.stderr if args.json else sys.stdout)
    demo = Demo(narrator, 6 if args.ipv6 else 4, args.outage, args.copy)
    failure = None
    try:
        with ended_by_signals():
            demo.run()
    except (KeyboardInterrupt, SystemExit):
        what = f"left behind: {', '.join(demo.left)}" if demo.left else "everything that it made has been removed"
        print(f"redirectctl: demo: interrupted; {what}", file=sys.stderr)
        raise
    except (LabError, Failure) as error:
        failure = str(error).partition("\n")[0].rstrip(":")  # the account has the rest
    if demo.left:
        failure = f"{failure or 'everything lived'}; left behind: {', '.join(demo.left)}"
    _conclude(narrator, demo, failure)
    if args.json:
        moves = [asdict(move) for move in demo.moves]
        print_json({"lived": failure is None, "failure": failure, "moves": moves, "programs": demo.outcomes})
    if failure is not None:
        raise CommandFailure(f"demo: {failure}")
    return ExitCode.DONE


def _conclude(narrator: Narrator, demo: Demo, failure: str | None) -> None:
    narrator.chapter("The verdict")
    if demo.moves:
        narrator.show(table(demo.moves))
        narrator.say(LEGEND)
    for line in demo.outcomes:
        narrator.item(line)
    if failure is None:
        narrator.say("Everything lived. Nothing is left here: no namespace, process, file or rule.", GREEN)
    else:
        narrator.say("Not everything lived." if demo.moves else "The demo stopped before the first move.", RED)
