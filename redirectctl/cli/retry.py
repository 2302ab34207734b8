"""redirectctl retry."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import RetryReply, RetryRequest
from redirectctl.api.text import clean
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All hosts, or one."""
    parser.add_argument(
        "host", metavar="HOST", nargs="?", help="only this one: a peer, or any name or address; else all of them"
    )


def run(args: argparse.Namespace) -> int:
    """Ask hosts that did not answer again, now."""
    hosts = ask(args, RetryRequest(args.host), RetryReply).hosts
    if args.json:
        print_json({"hosts": hosts})
    elif hosts:
        print(f"asked again: {clean(', '.join(hosts))}")
    else:
        print("no connection waits for a host that did not answer")
    return ExitCode.DONE
