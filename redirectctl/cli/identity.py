"""redirectctl identity."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import IdentityReply, IdentityRequest
from redirectctl.api.text import clean
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Show the own fingerprint and its picture, to compare with what another host shows."""
    reply = ask(args, IdentityRequest(), IdentityReply)
    if args.json:
        print_json({"fingerprint": reply.fingerprint, "picture": reply.picture})
        return ExitCode.DONE
    print(clean(reply.fingerprint))
    for line in reply.picture.splitlines():
        print(clean(line))
    return ExitCode.DONE
