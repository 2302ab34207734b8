"""redirectctl reject."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import PeerReply, RejectRequest
from redirectctl.cli.common import ask
from redirectctl.cli.peers import add_peer, show_decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which peer."""
    add_peer(parser)


def run(args: argparse.Namespace) -> int:
    """Never trust a peer's key."""
    return show_decision(args, "rejected", ask(args, RejectRequest(args.peer), PeerReply))
