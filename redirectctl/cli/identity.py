"""redirectctl identity."""

from __future__ import annotations

import argparse
import socket

from redirectctl.api.schema import IdentityReply, IdentityRequest
from redirectctl.api.text import clean
from redirectctl.cli.common import ExitCode, Failure, ask
from redirectctl.cli.output import print_json
from redirectctl.config import is_host_name
from redirectctl.names.published import LONGEST, record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None, or the name under which DNS is to have it."""
    parser.add_argument(
        "--dns",
        metavar="NAME",
        nargs="?",
        const="",
        help="print the record of a zone file that publishes the key for trust.dns (default NAME: this host's name)",
    )


def run(args: argparse.Namespace) -> int:
    """Show the own fingerprint and its picture, to compare with what another host shows."""
    reply = ask(args, IdentityRequest(), IdentityReply)
    if args.dns is not None:
        return _record(args, reply.fingerprint)
    if args.json:
        print_json({"fingerprint": reply.fingerprint, "picture": reply.picture})
        return ExitCode.DONE
    print(clean(reply.fingerprint))
    for line in reply.picture.splitlines():
        print(clean(line))
    return ExitCode.DONE


def _record(args: argparse.Namespace, fingerprint: str) -> int:
    name = args.dns or socket.gethostname()
    if not is_host_name(name) or len(name) > LONGEST:
        raise Failure(f"{clean(repr(name))} is not a name; write a name as in server.example.net")
    if args.json:
        print_json({"record": record(name, fingerprint)})
    else:
        print(record(name, fingerprint))
    return ExitCode.DONE
