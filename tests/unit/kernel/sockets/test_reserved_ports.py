"""The list in net.ipv4.ip_local_reserved_ports: ours and the administrator's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.sockets import reserved_ports as module
from redirectctl.kernel.sockets.reserved_ports import ReservedPorts, format_ports, parse_ports


@given(st.sets(st.integers(0, 65535)))
def test_text_and_back(ports: set[int]) -> None:
    assert parse_ports(",".join(format_ports(ports)) + "\n") == ports


def test_neighbours_are_ranges() -> None:
    assert list(format_ports({1, 3, 4, 5, 9, 10})) == ["1", "3-5", "9-10"]


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of the sysctl; it holds what was last written."""
    path = tmp_path / "ip_local_reserved_ports"
    path.write_text("5,100-102\n")

    def write(ports: set[int]) -> None:
        path.write_text(",".join(format_ports(ports)) + "\n")

    monkeypatch.setattr(module, "_FILE", path)
    monkeypatch.setattr(module, "_write_ports", write)
    return path


def test_the_administrators_ports_stay(sysctl: Path) -> None:
    reserved = ReservedPorts()
    reserved.reserve([6, 101])
    assert sysctl.read_text() == "5-6,100-102\n"
    assert reserved.ours == {6}
    reserved.release([5, 6, 101])
    assert sysctl.read_text() == "5,100-102\n"
    assert reserved.ours == frozenset()


def test_reconcile_after_a_restart(sysctl: Path) -> None:
    before = ReservedPorts()
    before.reserve([40000, 40001])
    after = ReservedPorts(inherited=before.ours)
    after.reconcile([40001, 40002])
    assert sysctl.read_text() == "5,100-102,40001-40002\n"
    after.reconcile([])
    assert sysctl.read_text() == "5,100-102\n"


def test_what_somebody_else_cleared_is_reserved_again(sysctl: Path) -> None:
    reserved = ReservedPorts()
    reserved.reserve([40000])
    sysctl.write_text("7\n")
    reserved.reconcile([40000])
    assert sysctl.read_text() == "7,40000\n"
    reserved.release([40000])
    assert sysctl.read_text() == "7\n"


def test_a_list_that_was_replaced_is_the_administrators(sysctl: Path) -> None:
    reserved = ReservedPorts()
    reserved.reserve([40000, 40001])
    assert reserved.restore([40000, 40001]) == set()
    sysctl.write_text("7,40001\n")
    assert reserved.restore([40000, 40001]) == {40000}
    assert sysctl.read_text() == "7,40000-40001\n"
    reserved.release([40000, 40001])
    assert sysctl.read_text() == "7,40001\n"


def test_killed_at_any_moment_a_port_of_ours_is_known_as_ours(sysctl: Path) -> None:
    """Noted before it is reserved, and until it is free."""
    noted: list[tuple[set[int], str]] = []
    reserved = ReservedPorts(note=lambda ports: noted.append((set(ports), sysctl.read_text())))
    reserved.reserve([40000])
    reserved.reconcile([40001])
    reserved.release([40001])
    assert noted == [
        ({40000}, "5,100-102\n"),
        ({40000, 40001}, "5,100-102,40000\n"),
        ({40001}, "5,100-102,40001\n"),
        (set(), "5,100-102\n"),
    ]


def test_a_missing_sysctl_is_a_kernel_error(sysctl: Path) -> None:
    sysctl.unlink()
    with pytest.raises(KernelError, match="ip_local_reserved_ports"):
        ReservedPorts()
