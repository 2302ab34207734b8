"""redirectctl forget."""

from __future__ import annotations

import argparse
import sys

from redirectctl.api.schema import ForgetRequest, Peer, PeerReply, PeerRequest
from redirectctl.api.text import clean
from redirectctl.cli.common import ExitCode, Failure, ask
from redirectctl.cli.peers import add_peer, describe, show_decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which peer."""
    add_peer(parser)
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask, also if open connections are protected")


def run(args: argparse.Namespace) -> int:
    """Remove what is known of a peer; ask first if that ends the protection of open connections."""
    peer = args.peer
    if not args.yes:
        known = ask(args, PeerRequest(args.peer), PeerReply).peer
        peer = known.fingerprint  # what the person was told of, whatever has that name or address by then
        if known.connections:
            _confirm(known)
    return show_decision(args, "forgot", ask(args, ForgetRequest(peer), PeerReply))


def _confirm(peer: Peer) -> None:
    """Raises Failure unless a person says yes."""
    one = peer.connections == 1
    ends = f"{peer.connections} open connection{'' if one else 's'} with it will no longer be protected"
    if not sys.stdin.isatty():
        raise Failure(f"forget {describe(peer)}: {ends}; say --yes if that is meant")
    print(f"{clean(describe(peer))}: {ends}; {'it goes' if one else 'they go'} on as any other.", file=sys.stderr)
    print("Forget it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
        raise Failure("forget: nothing was done", ExitCode.FAILED)
