"""redirectctl kill."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import ConnectionReply, KillRequest
from redirectctl.cli.common import ask
from redirectctl.cli.connections import add_connection, show_end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which connection."""
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Close a connection on both hosts."""
    return show_end(args, "closed", ask(args, KillRequest(args.connection), ConnectionReply))
