"""redirectctl connections."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from redirectctl.api.schema import Connection, ConnectionReply, ConnectionsReply, ConnectionsRequest
from redirectctl.api.text import duration
from redirectctl.cli.common import ExitCode, ask
from redirectctl.cli.output import Column, print_done, print_json, print_table

COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("PATH"),
    Column("LOCAL", below=True),
    Column("REMOTE", below=True),
    Column("NOW", optional=True, below=True),
    Column("AGE", right=True),
    Column("MOVES", right=True),
    Column("PID", right=True, optional=True),
    Column("COMMAND", shorten=True, middle=True, optional=True),
    Column("NOTE", shorten=True, optional=True, below=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """List all connections."""
    show(ask(args, ConnectionsRequest(), ConnectionsReply).connections, json=args.json)
    return ExitCode.DONE


def show(connections: Sequence[Connection], *, json: bool) -> None:
    """As an array, or as a table."""
    if json:
        print_json(connections)
    elif connections:
        print_table(COLUMNS, [_row(connection) for connection in connections])
    else:
        print("no connections")


def add_connection(parser: argparse.ArgumentParser) -> None:
    """The argument that names one connection."""
    parser.add_argument("connection", metavar="CONN", help="id, unique prefix of it, or LOCAL-REMOTE")


def show_end(args: argparse.Namespace, verb: str, reply: ConnectionReply) -> int:
    """What was done to one connection."""
    connection = reply.connection
    print_done(connection, f"{verb} {connection.id} ({connection.local}-{connection.remote})", json=args.json)
    return ExitCode.DONE


def _row(connection: Connection) -> tuple[str, ...]:
    notes = []
    if connection.suspended_for is not None:
        notes.append(f"for {duration(connection.suspended_for)}")
    if connection.reason:
        notes.append(connection.reason)
    if connection.integrity:
        notes.append("integrity")
    wire = (connection.wire_local, connection.wire_remote)
    return (
        connection.id,
        connection.state,
        connection.path,
        connection.local,
        connection.remote,
        "" if wire == (connection.local, connection.remote) else "-".join(wire),
        duration(connection.age),
        str(connection.moves),
        "" if connection.pid is None else str(connection.pid),
        connection.command or "",
        ", ".join(notes),
    )
