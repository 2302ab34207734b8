import msgspec
import pytest

from redirectctl.api import schema
from redirectctl.api.schema import (
    Connection,
    ConnectionState,
    Event,
    EventName,
    PathName,
    Peer,
    PeerState,
    RequestError,
    Status,
)

CONNECTION = Connection(
    id="c1",
    state=ConnectionState.PROTECTED,
    path=PathName.REWRITTEN,
    local="192.0.2.1:40000",
    remote="[2001:db8::1]:22",
    wire_local="203.0.113.1:40000",
    wire_remote="[2001:db8::1]:22",
    age=12.5,
    peer=None,
    pid=None,
    command=None,
    moves=1,
    integrity=False,
    suspended_for=None,
    reason=None,
)


def keys(value: object) -> set[str]:
    return set(msgspec.json.decode(msgspec.json.encode(value)))


def test_what_scripts_read_has_every_key_they_rely_on():
    assert keys(CONNECTION) == {
        "id", "state", "path", "local", "remote", "wire_local", "wire_remote", "age", "peer", "pid", "command",
        "moves", "integrity", "suspended_for", "reason",
    }  # fmt: skip
    status = Status(
        version="1", uptime=1.0, identity="SHA256:x", addresses=["192.0.2.1"], control_port=7747,
        connections={ConnectionState.SHORT: 2}, peers=1, pid=5,
    )  # fmt: skip
    assert keys(status) >= {"version", "uptime", "identity", "addresses", "connections", "peers"}
    assert msgspec.json.decode(msgspec.json.encode(status))["connections"] == {"short": 2}
    peer = Peer(
        fingerprint="SHA256:x", name=None, state=PeerState.PENDING, addresses=[], first_seen=1.0, last_contact=None,
        connections=0,
    )  # fmt: skip
    assert keys(peer) == {
        "fingerprint", "name", "state", "addresses", "first_seen", "last_contact", "connections",
    }  # fmt: skip
    assert keys(Event(time=1.0, event=EventName.RST_HELD)) == {"time", "event"}


def test_names_are_the_documented_ones():
    assert {state.value for state in ConnectionState} == {
        "short",
        "negotiating",
        "pending",
        "unsupported",
        "refused",
        "protected",
        "suspended",
        "released",
        "closed",
    }
    assert {path.value for path in PathName} == {"original", "rewritten", "tunnel", "settled"}
    assert {state.value for state in PeerState} == {"pending", "approved", "rejected", "changed"}
    assert {name.value for name in EventName} - {"events.missed"} == {
        "daemon.started",
        "daemon.stopped",
        "address.added",
        "address.removed",
        "connection.found",
        "connection.long",
        "connection.protected",
        "connection.unsupported",
        "connection.refused",
        "connection.released",
        "connection.suspended",
        "connection.resumed",
        "connection.closed",
        "peer.first_contact",
        "peer.approved",
        "peer.rejected",
        "peer.key_changed",
        "move.started",
        "move.finished",
        "move.received",
        "path.changed",
        "redirect.refused",
        "packet.refused",
        "rst.held",
        "dns.updated",
        "dns.failed",
        "rendezvous.reached",
        "rendezvous.lost",
        "kernel.repaired",
        "kernel.contested",
        "kernel.refused",
        "store.failed",
        "store.restored",
    }


@pytest.mark.parametrize("kind", schema.Request.__args__)
def test_every_request_survives_the_line(kind: type[schema.Request]):
    values = {bytes: b"\x00\xff", list[str]: ["x"], int: 1, bool: True}
    request = kind(*(values.get(field.type, "x") for field in msgspec.structs.fields(kind) if field.required))
    line = schema.encode(request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert schema.decode_request(line) == request


def test_a_line_break_in_text_stays_inside_the_line():
    request = schema.ApproveRequest("a\nb\u2028", name="\x1b[31m")
    line = schema.encode(request)
    assert line.count(b"\n") == 1
    assert schema.decode_request(line) == request


def test_replies():
    reply = schema.ConnectionsReply([CONNECTION])
    assert schema.decode_reply(schema.encode(reply)) == reply
    with pytest.raises(ValueError, match="unknown field `new`"):
        schema.decode_reply(b'{"type":"opted-in","new":1}')


def test_a_request_error_is_a_line_for_people():
    error = RequestError("approve", "no such peer", "see redirectctl peers")
    assert str(error) == "approve: no such peer; see redirectctl peers"
    assert str(RequestError("approve", "no such peer")) == "approve: no such peer"
    assert schema.decode_reply(schema.encode(error.error)) == error.error
