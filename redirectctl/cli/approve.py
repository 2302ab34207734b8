"""redirectctl approve."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import ApproveRequest, PeerReply
from redirectctl.cli.common import ask
from redirectctl.cli.peers import add_peer, show_decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which peer."""
    add_peer(parser)
    parser.add_argument("--name", metavar="NAME", help="give the peer this name")


def run(args: argparse.Namespace) -> int:
    """Trust a peer's key."""
    return show_decision(args, "approved", ask(args, ApproveRequest(args.peer, args.name), PeerReply))
