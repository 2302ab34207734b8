"""What the engine reports, for the event log: with whose share of the log it is written."""

from __future__ import annotations

from redirectctl.api import schema
from redirectctl.daemon.eventlog import AT_WILL, STRANGERS, Cause, EventFields, EventLog, network_of
from redirectctl.flows.commands import Notice
from redirectctl.flows.connection import Table
from redirectctl.proto.fingerprint import fingerprint


def record(log: EventLog, table: Table, notice: Notice) -> None:
    """Write it down."""
    details = dict(notice.details)
    if notice.name == "peer.first_contact":
        known = fingerprint(notice.peer) if notice.peer is not None else "PEER"
        details = {"detail": _met(known, initiator=details["initiator"], trust=details["trust"])}
    fields: EventFields = details  # type: ignore[assignment]
    allowed = EventFields.__annotations__
    extra = {name: fields.pop(name) for name in list(fields) if name not in allowed}  # type: ignore[misc]
    if extra:
        fields["detail"] = ", ".join(f"{name} {value}" for name, value in extra.items())
    if notice.connection is not None:
        fields["connection"] = notice.connection.hex()
    if notice.peer is not None:
        fields["peer"] = fingerprint(notice.peer)
    if notice.reason is not None:
        fields["reason"] = notice.reason
    if notice.address is not None:
        fields["address"] = str(notice.address)
    log.record(schema.EventName(notice.name), **_cause(table, notice), **fields)


def _cause(table: Table, notice: Notice) -> Cause:
    """Whose share of the log an event is written on."""
    connection = table.get(notice.connection) if notice.connection is not None else None
    if notice.name in ("peer.approved", "peer.rejected") and notice.reason is None:
        return Cause(who=None)  # a person has
    if notice.peer is not None and notice.name not in ("peer.first_contact", "peer.key_changed", "peer.approved"):
        return Cause(who=fingerprint(notice.peer))
    if connection is not None and connection.uid is not None:
        return Cause(who=f"user {connection.uid}")
    if notice.name.startswith("connection."):
        return Cause(who="users")
    if notice.name in AT_WILL and notice.reason != "kernel":
        return Cause(who=STRANGERS, where=network_of(notice.address))
    return Cause(who=None)


def _met(peer: str, *, initiator: bool, trust: str) -> str:
    """How a host was met, and what becomes of it."""
    how = "this host called it" if initiator else "it called this host"
    if trust == "approved":
        return f"{how}; its key is accepted without a question (trust.first_contact)"
    return f"{how}; it waits until a person approves it: `redirectctl approve {peer}`"
