"""redirectctl forget."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import ForgetRequest, PeerReply
from redirectctl.cli.common import ask
from redirectctl.cli.peers import show_decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which peer."""
    parser.add_argument("peer", metavar="PEER", help="fingerprint, unique prefix of it, name or address")


def run(args: argparse.Namespace) -> int:
    """Remove what is known of a peer."""
    return show_decision(args, "forgot", ask(args, ForgetRequest(args.peer), PeerReply))
