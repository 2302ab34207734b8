"""Whose connections somebody who watches is told about."""

from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest

from redirectctl.daemon.finder import Finder, _Group
from redirectctl.kernel.processes import procfs
from redirectctl.kernel.processes.cgroup import Cgroup
from redirectctl.wire.addr import FourTuple, SockAddr

ROOT, ANNA, BERT = 0, 1000, 1001
OWNER = 4711  # the process that the cgroup was made for
BEGAN = 500  # when it was started


def socket(port: int) -> FourTuple:
    return FourTuple(SockAddr(IPv4Address("192.0.2.1"), port), SockAddr(IPv4Address("192.0.2.2"), 22))


@pytest.mark.parametrize(
    ("pid", "uid", "began", "ports"),
    [
        (OWNER, ANNA, BEGAN, [1, 2, 3]),  # `redirect-run sudo ...`: all are of her command
        (OWNER, ANNA, BEGAN + 1, [2]),  # another process has that number by now
        (OWNER + 1, ANNA, BEGAN, [2]),  # somewhere in that cgroup: her own
        (OWNER + 1, BERT, BEGAN, [3]),  # `redirect-run su bert`: nothing of hers
        (OWNER + 1, ROOT, BEGAN, [1, 2, 3]),
        (OWNER + 2, ANNA, BEGAN, []),  # in no cgroup of ours
    ],
)
def test_sockets_with(monkeypatch: pytest.MonkeyPatch, pid: int, uid: int, began: int, ports: list[int]):
    monkeypatch.setattr(procfs, "start_time", lambda pid: began)
    group = Cgroup(77, Path(f"/sys/fs/cgroup/redirectctl-{OWNER}"))
    finder = Finder.__new__(Finder)
    finder._tree = SimpleNamespace(group_of=lambda pid: group if pid < OWNER + 2 else None)  # type: ignore[assignment]
    owned = {socket(1): ROOT, socket(2): ANNA, socket(3): BERT}
    other = _Group(Cgroup(78, Path("/other")), 0.0, None, {socket(4): ANNA})
    finder._groups = {77: _Group(group, 0.0, BEGAN, owned), 78: other}
    assert [each.local.port for each in finder.sockets_with(pid, uid)] == ports
