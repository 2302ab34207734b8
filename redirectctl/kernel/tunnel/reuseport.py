"""The control port has two sockets: the daemon's, and the carrier's for what the tunnel carries.

Both are in one SO_REUSEPORT group, whose BPF program looks at the first byte of a datagram.  A second daemon binds
without SO_REUSEPORT first, and fails; so do other users.  The flag must stay on both: `inet_lookup_reuseport` asks the
program only for a socket that has it.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from redirectctl.kernel.datagrams import (
    IP_MTU_DISCOVER,
    IP_PMTUDISC_PROBE,
    IPV6_MTU_DISCOVER,
    IPV6_PMTUDISC_PROBE,
    UDP_GRO,
    udp_socket,
)
from redirectctl.wire.tunnel import Type

_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h
# What waits in the interface's queue, where TCP's own limit (TSQ) does not see it: 676 ms at 10 Mbit/s with four times
# as much, and 190 ms instead of 53 at 100 Mbit/s (cubic, a queue that drops nothing itself).
_SEND_BUFFER = 1 << 20
_RECEIVE_BUFFER = 8 << 20


def share_port(control: socket.socket) -> socket.socket:
    """A socket for the tunnel on a control socket's port, which must have been bound without SO_REUSEPORT.

    From now on datagrams of the tunnel come to the new socket, all others to ``control``.  Raises OSError.
    """
    sock = udp_socket(control.family, _RECEIVE_BUFFER, _SEND_BUFFER)
    try:
        # A path MTU that the kernel has learned is that of the connection's own packets as well; we find our own.
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE)
        sock.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Before the bind no datagram comes to it, after it none may come to the wrong one for longer than need be.
        sock.bind(control.getsockname())
        _attach_selector(control)
    except OSError:
        sock.close()
        raise
    return sock


def _attach_selector(control: socket.socket) -> None:
    """First byte 8 or 9: the second socket of the group, which is ours; else the first (SO_ATTACH_REUSEPORT_CBPF)."""
    load_byte, jump_equal, give = 0x30, 0x15, 0x06  # BPF_LD|B|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load_byte, 0, 0, 0),
            (jump_equal, 1, 0, Type.TUNNEL),
            (jump_equal, 0, 1, Type.PROBE),
            (give, 0, 0, 1),
            (give, 0, 0, 0),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("HL", len(program) // 8, ctypes.addressof(code))
    control.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, filter_program)
