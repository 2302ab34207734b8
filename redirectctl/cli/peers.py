"""redirectctl peers."""

from __future__ import annotations

import argparse

from redirectctl.api.schema import Peer, PeerReply, PeersReply, PeersRequest
from redirectctl.api.text import moment
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.output import Column, print_done, print_json, print_table

COLUMNS = (
    Column("FINGERPRINT"),
    Column("NAME", shorten=True, optional=True),
    Column("STATE"),
    Column("CONNECTIONS", right=True, below=True),
    Column("LAST CONTACT", below=True),
    Column("ADDRESSES", shorten=True, optional=True, below=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """List all peers."""
    peers = ask(args, PeersRequest(), PeersReply).peers
    if args.json:
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
    label = peer.name or (peer.addresses[0] if peer.addresses else "")
    return f"{peer.fingerprint} ({label})" if label else peer.fingerprint


def _row(peer: Peer) -> tuple[str, ...]:
    return (
        peer.fingerprint,
        peer.name or "",
        peer.state,
        str(peer.connections),
        moment(peer.last_contact),
        ", ".join(peer.addresses),
    )
