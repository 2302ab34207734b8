"""The byte code, run and audited as the kernel would (net/ipv4/inet_diag.c)."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.kernel.sockets.bytecode import EVERYTHING, MAX_CONDITIONS, SocketFilter
from redirectctl.wire.addr import FourTuple, IPAddress, SockAddr

JMP, S_COND, D_COND, S_EQ, D_EQ, CGROUP = 1, 7, 8, 11, 12, 13


def boundaries(program: bytes) -> set[int]:
    """Where commands begin (`valid_cc`); fails where `inet_diag_bc_audit` would."""
    at, starts = 0, set()
    while at < len(program):
        starts.add(at)
        code, yes, no = struct.unpack_from("=BBH", program, at)
        least = {JMP: 4, S_COND: 12, D_COND: 12, S_EQ: 8, D_EQ: 8, CGROUP: 12}[code]
        if code in (S_COND, D_COND):
            least += {socket.AF_INET: 4, socket.AF_INET6: 16}[program[at + 4]]
        assert least <= yes <= len(program) - at + 4
        assert yes % 4 == no % 4 == 0
        if code != JMP:
            assert least <= no <= len(program) - at + 4
        at += yes
    assert at == len(program)
    return starts | {len(program)}


def passes(program: bytes, connection: FourTuple, cgroup: int) -> bool:
    """`inet_diag_bc_run`, with the audit's check of every target."""
    starts = boundaries(program)
    at = 0
    while at < len(program):
        assert at in starts
        code, yes, no = struct.unpack_from("=BBH", program, at)
        if code == JMP:
            holds = False
        elif code == D_EQ:
            holds = connection.remote.port == struct.unpack_from("=BBH", program, at + 4)[2]
        elif code == S_EQ:
            holds = connection.local.port == struct.unpack_from("=BBH", program, at + 4)[2]
        elif code == CGROUP:
            holds = cgroup == struct.unpack_from("=Q", program, at + 4)[0]
        else:
            length, port = struct.unpack_from("=xBxxi", program, at + 4)
            assert code in (S_COND, D_COND)
            packed = (connection.local if code == S_COND else connection.remote).host.packed
            assert port == -1
            assert length == {socket.AF_INET: 32, socket.AF_INET6: 128}[program[at + 4]]
            holds = packed == program[at + 12 : at + 12 + length // 8]
        at += yes if holds else no
    return at == len(program)


addresses: st.SearchStrategy[IPAddress] = st.sampled_from(
    [IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")]
)
ports = st.integers(1, 6)
groups = st.integers(1, 6)
filters = st.builds(
    SocketFilter,
    st.frozensets(groups, max_size=5),
    st.frozensets(ports, max_size=5),
    st.frozensets(addresses, max_size=4),
    st.frozensets(ports, max_size=5),
    st.frozensets(addresses, max_size=4),
)


@given(filters, st.tuples(addresses, addresses), st.tuples(ports, ports), groups)
def test_the_program_does_what_the_filter_says(
    wanted: SocketFilter, hosts: tuple[IPAddress, IPAddress], port: tuple[int, int], cgroup: int
) -> None:
    connection = FourTuple(SockAddr(hosts[0], port[0]), SockAddr(hosts[1], port[1]))
    assert passes(wanted.bytecode(), connection, cgroup) is wanted.passes(connection, cgroup)


def test_one_port_byte_for_byte() -> None:
    # D_EQ: 8 bytes if it holds, else 4 past the end; then a command whose `no` is the port.
    assert SocketFilter(remote_ports=frozenset({22})).bytecode() == struct.pack("=BBHBBH", D_EQ, 8, 12, 0, 0, 22)


@pytest.mark.parametrize("count", [MAX_CONDITIONS, MAX_CONDITIONS + 1])
def test_long_programs_are_left_to_python(count: int) -> None:
    wanted = SocketFilter(remote_ports=frozenset(range(1, count + 1)))
    assert wanted.in_kernel is (count <= MAX_CONDITIONS)
    if wanted.in_kernel:
        assert len(boundaries(wanted.bytecode())) == 2 * count  # a jump between two conditions, and the end
    else:
        assert wanted.bytecode() == b""


def test_no_condition_no_program() -> None:
    assert EVERYTHING.bytecode() == b""
    assert EVERYTHING.passes(FourTuple(SockAddr(IPv4Address(1), 1), SockAddr(IPv4Address(2), 2)), None)
