"""Whose connections somebody who watches is told about."""

from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest

from redirectctl.daemon.finder import Finder, _Group
from redirectctl.kernel.cgroup import Cgroup
from redirectctl.wire.addr import FourTuple, SockAddr

ROOT, ANNA, BERT = 0, 1000, 1001
OWNER = 4711  # the process that the cgroup was made for


def socket(port: int) -> FourTuple:
    return FourTuple(SockAddr(IPv4Address("192.0.2.1"), port), SockAddr(IPv4Address("192.0.2.2"), 22))


@pytest.mark.parametrize(
    ("pid", "uid", "ports"),
    [
        (OWNER, ANNA, [1, 2, 3]),  # `redirect-run sudo ...`: all are of her command
        (OWNER + 1, ANNA, [2]),  # somewhere in that cgroup: her own
        (OWNER + 1, BERT, [3]),  # `redirect-run su bert`: nothing of hers
        (OWNER + 1, ROOT, [1, 2, 3]),
        (OWNER + 2, ANNA, []),  # in no cgroup of ours
    ],
)
def test_sockets_with(pid: int, uid: int, ports: list[int]):
    group = Cgroup(77, Path(f"/sys/fs/cgroup/redirectctl-{OWNER}"))
    finder = Finder.__new__(Finder)
    finder._tree = SimpleNamespace(group_of=lambda pid: group if pid < OWNER + 2 else None)  # type: ignore[assignment]
    owned = {socket(1): ROOT, socket(2): ANNA, socket(3): BERT}
    finder._groups = {77: _Group(group, 0.0, owned), 78: _Group(Cgroup(78, Path("/other")), 0.0, {socket(4): ANNA})}
    assert [each.local.port for each in finder.sockets_with(pid, uid)] == ports
