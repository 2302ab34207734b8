"""redirectctl pair."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from redirectctl.api.schema import (
    CheckStatus,
    ErrorCode,
    IdentityReply,
    IdentityRequest,
    RequestError,
    StatusReply,
    StatusRequest,
)
from redirectctl.api.text import clean, shortened
from redirectctl.cli.common import ExitCode, Failure, connect
from redirectctl.cli.output import print_json
from redirectctl.pairing import answerer, exchange, words
from redirectctl.pairing.asker import Paired, Target, pair

LONGEST_SAID = 200  # characters of what ssh or doctor say, in one line with what else there is to say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The other host, and how to get there."""
    parser.usage = "%(prog)s [-h] [--json] [--socket PATH] [--sudo] [USER@]HOST [-- SSH-ARGUMENT...]"
    parser.epilog = "What stands behind -- is for ssh, such as -p 2222 or -i KEY."
    parser.add_argument("host", metavar="[USER@]HOST", nargs="?", help="as for ssh, which is used to get there")
    parser.add_argument("--sudo", action="store_true", help="run redirectctl there with sudo -n")
    parser.add_argument("--answer", action="store_true", help="be the other host: what ssh runs there")


def run(args: argparse.Namespace) -> int:
    """Both hosts learn and approve each other's keys.  Exit code 0 only if both have."""
    if args.answer:
        return _answer(args)
    if args.host is None:
        raise Failure("pair: no host is named; name one as for ssh: `redirectctl pair HOST`", ExitCode.USAGE)
    if args.host.startswith("-") or not args.host:
        raise Failure(f"pair: {args.host!r} is no host; put what is for ssh behind --", ExitCode.USAGE)
    target = Target(args.host, args.rest, args.sudo)
    with connect(args) as daemon:
        own = daemon.call(IdentityRequest(), IdentityReply).fingerprint
        port = daemon.call(StatusRequest(), StatusReply).status.control_port
        try:
            paired = pair(daemon, target)
        except words.TroubleError as error:
            error.said = shortened(clean(error.said), LONGEST_SAID)
            why, what_to_do = words.explain(error, target, own, port)
            raise Failure(f"pair {target.name}: {why}; {what_to_do}") from None
        except RequestError as error:
            if error.error.code is not ErrorCode.DENIED:
                raise
            why = f"pair {target.name}: you may not approve keys on this host"
            raise Failure(f"{why}; {error.error.hint}; then pair again: `{target.again}`", ExitCode.DENIED) from None
    _show(args, target, paired, port)
    return ExitCode.DONE


def _show(args: argparse.Namespace, target: Target, paired: Paired, port: int) -> None:
    peer = paired.peer
    if args.json:
        print_json({
            "paired": True,
            "peer": peer.fingerprint,
            "name": peer.name,
            "addresses": paired.addresses,
            "called": paired.called or None,
            "firewall_here": paired.here,
            "firewall_there": paired.there,
        })  # fmt: skip
        return
    at = f" at {', '.join(paired.addresses)}" if paired.addresses else ""
    called = f"; it calls this host {paired.called}" if paired.called else ""
    print(f"paired     {peer.name or target.name} has the key {peer.fingerprint}{at}{clean(called)}")
    print(f"UDP {port}   {_ways(target, paired, port)}")
    print(f"try it     {shlex.join(['redirect-run', 'ssh', *target.arguments, target.text])}")


def _ways(target: Target, paired: Paired, port: int) -> str:
    """Who can call whom."""
    host, doctor = target.name, target.over_ssh("sudo", "redirectctl", "doctor")
    there = (
        f"{host} answers this host"
        if paired.addresses
        else f"{host} can call this host, and this host cannot call it: let UDP {port} in there (how: `{doctor}`)"
    )
    match paired.here:
        case CheckStatus.FAIL:
            here = "this host's packet filter drops it: see `redirectctl doctor`"
        case CheckStatus.WARN:
            here = "this host's packet filter lets answers in, not calls: enough where this host is the one that moves"
        case CheckStatus.OK:
            here = "this host's packet filter lets it in"
        case _:
            here = "whether this host lets it in is not known"
    return f"{there}; {here}"


def _answer(args: argparse.Namespace) -> int:
    """Over ssh: the other program reads what is said here."""
    if args.host is not None:
        raise Failure("pair --answer: takes no host", ExitCode.USAGE)
    if sys.stdin.isatty():
        raise Failure("pair --answer: is run by `redirectctl pair HOST` on the other host, over ssh", ExitCode.USAGE)
    channel = exchange.Channel(sys.stdin.fileno(), sys.stdout.fileno())
    came_from = os.environ.get("SSH_CONNECTION", "").partition(" ")[0] or None
    try:
        done = answerer.answer(channel, lambda: connect(args), came_from)
    except exchange.ExchangeError as error:
        raise Failure(f"pair --answer: {error}; the other host has ended") from None
    return ExitCode.DONE if done else ExitCode.FAILED
