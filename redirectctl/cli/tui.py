"""redirectctl tui."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from redirectctl.api.schema import PeersReply, PeersRequest
from redirectctl.cli.common import ExitCode, Failure, ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Show the terminal UI until the person quits.  It outlives the daemon, but wants one to begin with."""
    if args.json:
        raise Failure("tui: --json: it is for people; use `redirectctl status --watch --json`", ExitCode.USAGE)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Failure("tui: stdin and stdout are not a terminal; use `redirectctl status --watch`")
    if os.environ.get("TERM", "dumb") == "dumb":
        raise Failure("tui: this terminal cannot move its cursor (TERM); use `redirectctl status --watch`")
    ask(args, PeersRequest(), PeersReply)  # one that may not ask for them could not show anything
    from redirectctl_tui.app import RedirectApp
    from redirectctl_tui.feed import Feed

    RedirectApp(Feed(args.socket), socket.gethostname()).run()
    return ExitCode.DONE
