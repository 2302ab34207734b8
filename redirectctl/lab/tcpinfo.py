"""What a host's TCP thinks of a connection, as ss(8) shows it."""

from __future__ import annotations

import re
from typing import NamedTuple

from redirectctl.lab.namespaces import LabError, Namespace

_FIELD = re.compile(r"\b(rtt|rto|backoff|unacked|retrans|lost|lastsnd|lastrcv):([\d./]+)")


class TcpInfo(NamedTuple):
    """Of one socket.  Times are seconds."""

    rtt: float
    rto: float  # with its back-off
    backoff: int
    unacked: int  # segments in flight
    retransmitted: int  # in all
    text: str  # all that ss says


def tcp_info(host: Namespace, port: int) -> TcpInfo:
    """Of the only connected socket of this host with that port at either end.  Raises LabError."""
    argv = ["ss", "-tinHO", "state", "connected", f"( sport = :{port} or dport = :{port} )"]
    lines = host.run(argv).stdout.splitlines()
    if len(lines) != 1:
        raise LabError(f"{host.name}: {len(lines)} sockets with port {port}")
    found = dict(_FIELD.findall(lines[0]))
    return TcpInfo(
        float(found.get("rtt", "0").split("/")[0]) / 1000,
        float(found.get("rto", "0")) / 1000,
        int(found.get("backoff", "0")),
        int(found.get("unacked", "0")),
        int(found.get("retrans", "0/0").split("/")[1]),
        " ".join(lines[0].split()),
    )
