"""Status as it changes: a line of plain text for each change, for screen readers, logs and slow lines.

Nothing is drawn over: whoever listens or scrolls back has every line once, in order.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from redirectctl.api import schema
from redirectctl.api.client import Client, UnreachableError
from redirectctl.api.naming import labels
from redirectctl.api.reasons import in_words
from redirectctl.api.schema import Connection, ConnectionState, Peer, PeerState
from redirectctl.api.text import clean, duration
from redirectctl.cli.common import connect
from redirectctl.cli.output import print_json

BEAT: Final = 1.0  # seconds between looks
FEW: Final = 5  # connections that get a line each; more of them in one state share a line


@dataclass(frozen=True)
class Seen:
    """What was said at one moment."""

    status: schema.Status
    connections: Mapping[str, Connection]  # by id
    peers: Mapping[str, Peer]  # by fingerprint


def watch(args: argparse.Namespace) -> None:
    """Until interrupted.  Outlives the daemon.  Raises UnreachableError when there is none to begin with."""
    before: Seen | None = None
    while True:
        try:
            with connect(args) as client:
                if before is not None:
                    print("redirectctl: status: the daemon is back", file=sys.stderr)
                while True:
                    now = _look(client)
                    if args.json:
                        _show_json(before, now)
                    else:
                        for line in changes(before, now):
                            print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
                    before = now
                    _pause()
        except UnreachableError as error:
            if before is None:
                raise
            print(f"redirectctl: status: {clean(error.why)}; waiting for the next one", file=sys.stderr)
            _wait(args)


def _pause() -> None:
    time.sleep(BEAT)


def _wait(args: argparse.Namespace) -> None:
    while True:
        _pause()
        try:
            connect(args).close()
        except UnreachableError:
            continue
        return


def _look(client: Client) -> Seen:
    status = client.call(schema.StatusRequest(), schema.StatusReply).status
    connections = client.call(schema.ConnectionsRequest(), schema.ConnectionsReply).connections
    peers = client.call(schema.PeersRequest(), schema.PeersReply).peers
    return Seen(status, {c.id: c for c in connections}, {p.fingerprint: p for p in peers})


def _show_json(before: Seen | None, now: Seen) -> None:
    """The status, whenever something in it has changed that is no clock."""

    def lasting(seen: Seen) -> tuple[object, ...]:
        s = seen.status
        counts = {state: n for state, n in s.connections.items() if n}
        return s.identity, s.addresses, s.control_port, counts, s.peers, s.pid

    if before is None or lasting(before) != lasting(now):
        print_json(now.status)


def changes(before: Seen | None, now: Seen) -> Iterator[str]:
    """What a person should hear."""
    if before is None or before.status.addresses != now.status.addresses:
        yield f"addresses: {', '.join(clean(a) for a in now.status.addresses) or 'none'}"
    yield from _of_peers(before.peers if before is not None else {}, now.peers)
    yield from _of_connections(before.connections if before is not None else {}, now.connections)


def _of_peers(before: Mapping[str, Peer], now: Mapping[str, Peer]) -> Iterator[str]:
    names = labels(now.values())
    for fingerprint, peer in now.items():
        if fingerprint in before and before[fingerprint].state is peer.state:
            continue
        name = names[fingerprint]
        match peer.state:
            case PeerState.PENDING:
                yield (
                    f"first contact: {name} waits for your decision; compare {clean(fingerprint)} with"
                    " `redirectctl identity` there, then `redirectctl approve PEER` or `redirectctl reject PEER`"
                )
            case PeerState.CHANGED:
                yield (
                    f"WARNING: the key of {name} has changed to {clean(fingerprint)}; connections go on, but"
                    " are not protected until you have asked there which is right"
                )
            case _:
                yield f"peer {name}: {peer.state.value}"


def _of_connections(before: Mapping[str, Connection], now: Mapping[str, Connection]) -> Iterator[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for cid, c in now.items():
        old = before.get(cid)
        what = f"{clean(c.command or 'connection')} with {clean(c.remote)}"
        if old is None or old.state is not c.state:
            back = old is not None and old.state is ConnectionState.SUSPENDED and c.state is ConnectionState.PROTECTED
            after = f", back after {duration(old.suspended_for)}" if old and back and old.suspended_for else ""
            reason = f", {clean(in_words(c.reason) or c.reason)}" if c.reason else ""
            groups[c.state.value].append(f"{what}: {c.state.value}{after}{reason}")
        if old is not None and (old.wire_local, old.wire_remote) != (c.wire_local, c.wire_remote):
            groups["moved"].append(f"{what}: moved, now {clean(c.wire_local)} to {clean(c.wire_remote)}")
    for state, lines in groups.items():
        if len(lines) <= FEW:
            yield from lines
        else:
            yield f"{len(lines)} connections: {state}"
