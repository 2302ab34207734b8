"""redirectctl events."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

import msgspec

from redirectctl.api.client import UnreachableError, Unseen
from redirectctl.api.schema import Event
from redirectctl.api.text import clean, duration
from redirectctl.cli.common import ExitCode, connect
from redirectctl.cli.output import print_json
from redirectctl.config import parse_duration

RETRY: Final = 0.5  # seconds between two attempts to find a daemon that is being restarted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which events."""
    parser.add_argument("--follow", "-f", action="store_true", help="show new events as they happen")
    parser.add_argument(
        "--since",
        metavar="T",
        type=_since,
        help="begin at this time: seconds since 1970, or how long ago, as in 10m (default: all; with --follow: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Show the event log.  With --follow it outlives the daemon, and misses nothing of the next one."""
    begun = time.time()
    unseen = Unseen(args.since)
    connected = waiting = False
    while True:
        try:
            with connect(args) as client:
                if waiting:
                    print("redirectctl: events: the daemon is back", file=sys.stderr)
                connected, waiting = True, False
                for event in client.events(follow=args.follow, since=unseen.since):
                    if unseen.take(event):
                        _show(event, json=args.json)
                return ExitCode.DONE
        except UnreachableError as error:
            if not (args.follow and connected):
                raise
            if not waiting:
                print(f"redirectctl: events: {clean(error.why)}; waiting for the next one", file=sys.stderr)
            waiting = True
            unseen.since = begun if unseen.since is None else unseen.since
            time.sleep(RETRY)


def _show(event: Event, *, json: bool) -> None:
    if json:
        print_json(event)
        return
    fields = msgspec.to_builtins(event)
    at, name = fields.pop("time"), fields.pop("event")
    if "duration" in fields:
        took = fields["duration"]
        fields["duration"] = f"{took * 1000:.0f}ms" if took < 1 else duration(took)
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    details = " ".join(f"{key}={_quoted(str(value))}" for key, value in fields.items())
    print(f"{day}.{int(at % 1 * 1000):03d}  {name:<22}  {details}".rstrip(), flush=True)


def _quoted(text: str) -> str:
    text = clean(text)
    return f'"{text}"' if " " in text or not text else text


def _since(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return time.time() - parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither seconds since 1970 nor a time such as 10m") from None
