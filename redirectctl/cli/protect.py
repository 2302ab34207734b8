"""redirectctl protect."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import ConnectionsReply, ProtectRequest
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.connections import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to protect."""
    parser.add_argument(
        "target", metavar="PID|LOCAL-REMOTE", help="a process, or a connection as in 192.0.2.1:40000-198.51.100.1:22"
    )


def run(args: argparse.Namespace) -> int:
    """Opt a running process or one open connection in; shows the connections that are."""
    show(ask(args, ProtectRequest(args.target), ConnectionsReply).connections, json=args.json)
    return ExitCode.DONE
