"""redirectctl announce."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import AnnounceReply, AnnounceRequest
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Announce this host's addresses to all peers now."""
    peers = ask(args, AnnounceRequest(), AnnounceReply).peers
    if args.json:
        print_json({"peers": peers})
    else:
        print(f"announced this host's addresses to {peers} peer{'' if peers == 1 else 's'}")
    return ExitCode.DONE
