"""TUN device `redirect0` with virtio headers: whole super-segments of up to 64 KiB come and go in one call.

The kernel puts a virtio_net_hdr (virtio 1.2, section 5.1.6) before each packet: whether its checksum is still to be
completed, and how it was to be cut into segments.

    | flags (1) | GSO type (1) | header length (2) | segment size (2) | checksum start (2) | checksum offset (2) |

The device is made by routing/old_addresses.py, or here, and stays when it is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Final

from redirectctl.kernel.constants import TUN_DEVICE
from redirectctl.kernel.errors import KernelError

VNET_HEADER: Final = struct.Struct("=BBHHHH")
NEEDS_CSUM: Final = 1
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4

LARGEST_PACKET: Final = 65535
READ_SIZE: Final = VNET_HEADER.size + LARGEST_PACKET

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454CB, 0x400454D0, 0x400454D8
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8
_SIOCSIFMTU, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8922, 0x8913, 0x8914
_IFF_UP = 0x1


def open_tun(name: str = TUN_DEVICE) -> int:
    """Attach to the device in the network namespace of this thread; a non-blocking file descriptor.

    It is made if it is not there, and taken up.  Raises KernelError; also if another process is attached.
    """
    what = f"attach to TUN device {name}"
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise KernelError(what, "there is no /dev/net/tun", "load the kernel module: modprobe tun") from error
    except OSError as error:
        raise KernelError(what, error.strerror or str(error), "redirectctl needs root and CAP_NET_ADMIN") from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER.size))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN)
        _configure(name)
    except OSError as error:
        os.close(fd)
        hint = "is another redirectd running?" if error.errno == errno.EBUSY else "redirectctl needs CAP_NET_ADMIN"
        raise KernelError(what, error.strerror or str(error), hint) from error
    return fd


def _configure(name: str) -> None:
    """Up, and so large an MTU that the kernel never cuts anything for it: the carrier does."""
    packed = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock, _SIOCSIFMTU, struct.pack("16si20x", packed, LARGEST_PACKET))
        flags: int = struct.unpack_from("16xH", fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16s24x", packed)))[0]
        if not flags & _IFF_UP:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", packed, flags | _IFF_UP))
