"""Filters that the kernel applies while it lists sockets: byte code of inet_diag.

A program is a row of conditions; each says how far to jump when it holds and when it does not. Whoever arrives exactly
at the end passes, whoever jumps 4 bytes further is refused (`inet_diag_bc_run`). All jumps go forward, and every target
must be the start of a command (`inet_diag_bc_audit`).

::

    struct inet_diag_bc_op:  code (1) | yes (1) | no (2)   + arguments
    any of a, b, c:          a? -no-> b? -no-> c? -no-> refused
                             |yes     |yes     |yes
                             JMP end  JMP end  end
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from redirectctl.wire.addr import FourTuple, IPAddress

_OP = struct.Struct("=BBH")
_JMP, _S_COND, _D_COND, _S_EQ, _D_EQ, _CGROUP_COND = 1, 7, 8, 11, 12, 13
_HOST = struct.Struct("=BBxxi")  # family, prefix length, port (-1: any); then the address
_ANY_PORT = -1

# Above this many conditions it is quicker to list everything: each socket runs through all of them.
MAX_CONDITIONS = 128


@dataclass(frozen=True, slots=True)
class SocketFilter:
    """Which sockets to list.  Everything empty: all.

    A socket passes if it is opted in, by its cgroup or by its remote port (where any of the two is given), and each
    other of its ends that is asked for is one of those given.
    """

    cgroups: frozenset[int] = frozenset()  # cgroup v2 ids
    remote_ports: frozenset[int] = frozenset()
    local_addresses: frozenset[IPAddress] = frozenset()
    local_ports: frozenset[int] = frozenset()
    remote_addresses: frozenset[IPAddress] = frozenset()

    @property
    def in_kernel(self) -> bool:
        """Few enough conditions for the kernel."""
        ends = len(self.local_addresses) + len(self.local_ports) + len(self.remote_addresses)
        return len(self.cgroups) + len(self.remote_ports) + ends <= MAX_CONDITIONS

    def passes(self, connection: FourTuple, cgroup_id: int | None) -> bool:
        """The same filter in Python."""
        opted_in = (
            not (self.cgroups or self.remote_ports)
            or cgroup_id in self.cgroups
            or connection.remote.port in self.remote_ports
        )
        (here, port), (there, _) = connection
        return (
            opted_in
            and (not self.local_addresses or here in self.local_addresses)
            and (not self.local_ports or port in self.local_ports)
            and (not self.remote_addresses or there in self.remote_addresses)
        )

    def bytecode(self) -> bytes:
        """The program; empty where none is needed or it would be too long."""
        if not self.in_kernel:
            return b""
        opted_in = [(_CGROUP_COND, struct.pack("=Q", one)) for one in sorted(self.cgroups)]
        # The port of a comparison is the `no` of a second command (`inet_diag_bc_run`).
        opted_in += [(_D_EQ, _OP.pack(0, 0, port)) for port in sorted(self.remote_ports)]
        here = [(_S_COND, _host(address)) for address in sorted(self.local_addresses, key=lambda a: a.packed)]
        ports = [(_S_EQ, _OP.pack(0, 0, port)) for port in sorted(self.local_ports)]
        there = [(_D_COND, _host(address)) for address in sorted(self.remote_addresses, key=lambda a: a.packed)]
        groups = [group for group in (opted_in, here, ports, there) if group]
        program = b""
        for group in reversed(groups):
            program = _any_of(group, following=len(program)) + program
        return program


EVERYTHING = SocketFilter()


def _host(address: IPAddress) -> bytes:
    # The kernel compares an IPv4 condition with IPv4-mapped addresses, too.
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return _HOST.pack(family, address.max_prefixlen, _ANY_PORT) + address.packed


def _any_of(conditions: list[tuple[int, bytes]], *, following: int) -> bytes:
    """One group; ``following``: length of the program after it.  No way through leads 4 bytes past its end."""
    program = b""
    for index, (code, arguments) in enumerate(reversed(conditions)):
        size = _OP.size + len(arguments)
        if index == 0:
            program = _OP.pack(code, size, size + following + 4) + arguments
        else:
            jump = _OP.pack(_JMP, _OP.size, _OP.size + len(program))
            program = _OP.pack(code, size, size + _OP.size) + arguments + jump + program
    return program
