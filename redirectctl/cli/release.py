"""redirectctl release."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import ConnectionReply, ReleaseRequest
from redirectctl.api.text import clean
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which connection."""
    parser.add_argument("connection", metavar="CONN", help="id, unique prefix of it, or LOCAL-REMOTE")


def run(args: argparse.Namespace) -> int:
    """Stop protecting a connection."""
    connection = ask(args, ReleaseRequest(args.connection), ConnectionReply).connection
    if args.json:
        print_json(connection)
    else:
        print(clean(f"released {connection.id} ({connection.local}-{connection.remote})"))
    return ExitCode.DONE
