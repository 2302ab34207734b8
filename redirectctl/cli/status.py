"""redirectctl status."""

from __future__ import annotations

import argparse
from typing import Final

from msgspec import UnsetType

from redirectctl.api.schema import Status, StatusReply, StatusRequest
from redirectctl.api.text import duration
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.output import print_json, print_pairs

FEW: Final = 3  # peers that wait, named one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Once, or as it changes."""
    parser.add_argument(
        "--watch", "-w", action="store_true", help="go on, with a line for each change: for screen readers and logs"
    )


def _addresses(status: Status) -> list[str]:
    if isinstance(status.networks, UnsetType):
        return status.addresses
    return [f"{n.address}/{n.prefix} on {n.interface}" for n in status.networks]


def run(args: argparse.Namespace) -> int:
    """Show the daemon in a few lines; with --watch what changes, too, until interrupted."""
    if args.watch:
        from redirectctl.cli.watch import watch

        watch(args)
    status = ask(args, StatusRequest(), StatusReply).status
    if args.json:
        print_json(status)
        return ExitCode.DONE
    counts = [f"{count} {state}" for state, count in status.connections.items() if count]
    print_pairs(
        (
            ("redirectd", f"{status.version}, process {status.pid}, up {duration(status.uptime)}"),
            ("identity", status.identity),
            ("addresses", ", ".join(_addresses(status)) or "none"),
            ("control port", f"UDP {status.control_port}"),
            ("connections", ", ".join(counts) or "none"),
            ("peers", str(status.peers)),
            *_waiting(status),
        )
    )
    return ExitCode.DONE


def _waiting(status: Status) -> list[tuple[str, str]]:
    """Who waits for a decision, and how it is made."""
    waiting = [] if isinstance(status.waiting, UnsetType) else status.waiting
    what = "waits for you: compare with `redirectctl identity` there, then `redirectctl approve PEER` (or reject)"
    more = [("", f"and {len(waiting) - FEW} more: `redirectctl peers`")] if len(waiting) > FEW else []
    return [("waiting", f"{fingerprint} {what}") for fingerprint in waiting[:FEW]] + more
