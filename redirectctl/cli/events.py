"""redirectctl events."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from redirectctl.api.client import UnreachableError, Unseen
from redirectctl.api.naming import labels
from redirectctl.api.reasons import in_words
from redirectctl.api.schema import Event, PeersReply, PeersRequest, RequestError
from redirectctl.api.stories import Line, Stories, Tone
from redirectctl.api.text import clean, duration
from redirectctl.cli.common import ExitCode, ask, connect
from redirectctl.cli.output import Colour, print_json, tinted
from redirectctl.config import parse_duration

RETRY: Final = 0.5  # seconds between two attempts to find a daemon that is being restarted
BEAT: Final = 0.25  # seconds between looks whether something is over
SAID_AFTER: Final = 3.0  # seconds after which a loss that is not over is said
FEW: Final = 3  # peers named in a line
_COLOUR: Final = {Tone.BAD: Colour.BAD, Tone.WAITING: Colour.WAITING}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which events."""
    parser.add_argument("--follow", "-f", action="store_true", help="show new events as they happen")
    parser.add_argument(
        "--since",
        metavar="T",
        type=_since,
        help="begin at this time: seconds since 1970, or how long ago, as in 10m (default: all; with --follow: none)",
    )
    parser.add_argument(
        "--verbose", "-v", action="store_true", help="every event, also tries and confirmations, with all it says"
    )


def run(args: argparse.Namespace) -> int:
    """Show the event log.  With --follow it outlives the daemon, and misses nothing of the next one."""
    if args.json or args.verbose:
        for event in _events(args):
            _show(event, json=args.json)
    elif args.follow:
        _follow(args)
    else:
        _tell(args)
    return ExitCode.DONE


def _events(args: argparse.Namespace) -> Iterator[Event]:
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
                        yield event
                return
        except UnreachableError as error:
            if not (args.follow and connected):
                raise
            if not waiting:
                print(f"redirectctl: events: {clean(error.why)}; waiting for the next one", file=sys.stderr)
            waiting = True
            unseen.since = begun if unseen.since is None else unseen.since
            time.sleep(RETRY)


# -- one line a story -------------------------------------------------------------------------------------------------


def _tell(args: argparse.Namespace) -> None:
    """What happened until now, in the order in which it began."""
    stories, lines = Stories(), []
    for event in _events(args):
        stories.add(event)
        lines += [line for line in stories.finished() if not line.minor]
    stories.flush()
    lines += [line for line in (*stories.finished(), *stories.unfinished(time.time())) if not line.minor]
    names = _Names(args)
    for line in sorted(lines, key=lambda line: line.time):
        print(_text(line, names), flush=True)


def _follow(args: argparse.Namespace) -> None:
    """Each thing when it is over; a loss also while it lasts."""
    events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for event in _events(args):
                events.put(event)
            events.put(None)
        except BaseException as error:
            events.put(error)

    threading.Thread(target=read, daemon=True).start()
    stories, names = Stories(), _Names(args)
    while True:
        item: Event | BaseException | None
        try:
            item = events.get(timeout=BEAT)
        except queue.Empty:
            item = None
            stories.tick(time.time())
        else:
            if item is None:
                return
        if isinstance(item, BaseException):
            raise item
        if item is not None:
            stories.add(item)
        lines = [*stories.finished(), *stories.unfinished(time.time(), SAID_AFTER)]
        for line in lines:
            if not line.minor:
                print(_text(line, names), flush=True)


class _Names(dict[str, str]):
    """What peers are called: asked for once, and again when there is a new one."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self._args = args

    def __missing__(self, fingerprint: str) -> str:
        try:
            peers = ask(self._args, PeersRequest(), PeersReply).peers
        except (UnreachableError, RequestError):
            peers = []
        self.update(labels(peers))
        return self.setdefault(fingerprint, clean(fingerprint))


def _text(line: Line, names: _Names) -> str:
    return f"{_day(line.time)}  {told(line, names)}"


def told(line: Line, names: Mapping[str, str]) -> str:
    """For people: what, with whom, for how long nothing was heard, and why."""
    parts = [tinted(clean(line.what), _COLOUR.get(line.tone, Colour.PLAIN))]
    whom = ", ".join(names[peer] for peer in line.peers[:FEW])
    if len(line.peers) > FEW:
        whom += f" and {len(line.peers) - FEW} more"
    if line.connections:
        many = f"{line.connections} connection{'' if line.connections == 1 else 's'}"
        held = "" if line.over else " held"
        parts.append(f"{many} with {whom}{held}" if whom else many + held)
    elif whom:
        parts.append(whom)
    if line.move and line.over and line.gap is not None:
        parts.append(f"silent for {_took(line.gap)}")
    if not line.over:
        parts.append("not over")
    if not line.move and line.reason is not None:
        parts.append(clean(in_words(line.reason) or line.reason))
    if line.detail:
        parts.append(clean(line.detail))
    return "; ".join(parts)


# -- one line an event ------------------------------------------------------------------------------------------------


def _show(event: Event, *, json: bool) -> None:
    if json:
        print_json(event)
        return
    fields = msgspec.to_builtins(event)
    at, name = fields.pop("time"), fields.pop("event")
    for key in ("duration", "gap"):
        if key in fields:
            fields[key] = _took(fields[key])
    details = " ".join(f"{key}={_quoted(str(value))}" for key, value in fields.items())
    print(f"{_day(at)}.{int(at % 1 * 1000):03d}  {name:<22}  {details}".rstrip(), flush=True)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else duration(seconds)


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
