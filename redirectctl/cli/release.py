"""redirectctl release."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import ConnectionReply, ReleaseRequest
from redirectctl.cli.common import ask
from redirectctl.cli.connections import add_connection, show_end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which connection."""
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Stop protecting a connection."""
    return show_end(args, "released", ask(args, ReleaseRequest(args.connection), ConnectionReply))
