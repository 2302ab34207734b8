"""redirectctl forget."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import ForgetRequest, PeerReply
from redirectctl.cli.common import ask
from redirectctl.cli.peers import add_peer, show_decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which peer."""
    add_peer(parser)


def run(args: argparse.Namespace) -> int:
    """Remove what is known of a peer."""
    return show_decision(args, "forgot", ask(args, ForgetRequest(args.peer), PeerReply))
