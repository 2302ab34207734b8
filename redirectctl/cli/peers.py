"""redirectctl peers."""

from __future__ import annotations

import argparse
import re
from typing import Final

from redirectctl import known_peers
from redirectctl.api.naming import named
from redirectctl.api.schema import Peer, PeerReply, PeersReply, PeersRequest, PeerState
from redirectctl.api.text import clean, moment
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.output import Column, print_done, print_json, print_table

WORD: Final = re.compile(r"[\w.-]+")  # what no shell does anything with
COLUMNS = (
    Column("FINGERPRINT"),
    Column("NAME", shorten=True, optional=True),
    Column("STATE"),
    Column("CONNECTIONS", right=True, below=True),
    Column("LAST CONTACT", below=True),
    Column("ADDRESSES", shorten=True, optional=True, below=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All, or only what names them."""
    parser.add_argument(
        "action",
        choices=("export",),
        nargs="?",
        help="fingerprints and names of the approved peers, a line each, as trust.known_peers reads them",
    )
    parser.add_argument(
        "--words",
        action="store_true",
        help="only what commands take for PEER, a line each: fingerprints without SHA256:, names without blanks",
    )


def run(args: argparse.Namespace) -> int:
    """List all peers."""
    peers = ask(args, PeersRequest(), PeersReply).peers
    if args.action == "export":
        approved = [(peer.fingerprint, peer.name or "") for peer in peers if peer.state is PeerState.APPROVED]
        print(known_peers.write(sorted(approved, key=lambda each: each[1])), end="")
    elif args.words:
        for peer in peers:
            print(clean(peer.fingerprint.removeprefix("SHA256:")))
        for name in sorted({peer.name for peer in peers if peer.name and WORD.fullmatch(peer.name)}):
            print(name)
    elif args.json:
        print_json(peers)
    elif peers:
        print_table(COLUMNS, [_row(peer) for peer in peers])
    else:
        print("no peers")
    return ExitCode.DONE


def add_peer(parser: argparse.ArgumentParser) -> None:
    """The argument that names one peer."""
    parser.add_argument("peer", metavar="PEER", help="fingerprint, unique prefix of it, name or address")


def show_decision(args: argparse.Namespace, verb: str, reply: PeerReply) -> int:
    """What was done to one peer."""
    print_done(reply.peer, f"{verb} {describe(reply.peer)}", json=args.json)
    return ExitCode.DONE


def describe(peer: Peer) -> str:
    """Fingerprint, and in brackets the name or an address."""
    label = named(peer)
    if not peer.name and peer.addresses:
        label = f"{label} at {peer.addresses[0]}" if label else peer.addresses[0]
    return f"{peer.fingerprint} ({label})" if label else peer.fingerprint


def _row(peer: Peer) -> tuple[str, ...]:
    return (
        peer.fingerprint,
        named(peer),
        peer.state,
        str(peer.connections),
        moment(peer.last_contact),
        ", ".join(peer.addresses),
    )
