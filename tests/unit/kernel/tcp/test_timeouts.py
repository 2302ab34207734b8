"""How long this host's TCP bears silence: against the times that the kernel's own documentation gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from redirectctl.kernel.tcp.timeouts import keepalive_limit, retransmission_limit


def sysctls(path: Path, **values: object) -> Path:
    for name, value in values.items():
        (path / name).write_text(f"{value}\n")
    return path


@pytest.mark.parametrize(
    ("retries", "seconds"),
    [
        (0, 0.2),
        (1, 0.6),
        (4, 6.2),
        (8, 102.2),  # "at least 100 seconds", RFC 1122
        (9, 204.6),
        (10, 324.6),
        (15, 924.6),  # Documentation/networking/ip-sysctl.rst, tcp_retries2
    ],
)
def test_retransmissions(tmp_path: Path, retries: int, seconds: float) -> None:
    assert retransmission_limit(sysctls(tmp_path, tcp_retries2=retries)) == pytest.approx(seconds)


@pytest.mark.parametrize(("interval", "probes", "seconds"), [(75, 9, 600), (3, 3, 6), (10, 1, 0), (10, 0, 0)])
def test_keepalives(tmp_path: Path, interval: int, probes: int, seconds: float) -> None:
    assert keepalive_limit(sysctls(tmp_path, tcp_keepalive_intvl=interval, tcp_keepalive_probes=probes)) == seconds


def test_what_cannot_be_read_is_as_linux_has_it(tmp_path: Path) -> None:
    assert retransmission_limit(tmp_path) == pytest.approx(924.6)
    assert keepalive_limit(tmp_path) == 600
    assert keepalive_limit(sysctls(tmp_path, tcp_keepalive_probes="many", tcp_keepalive_intvl=3)) == 24


def test_this_host_has_settings() -> None:
    assert retransmission_limit() > 0
    assert keepalive_limit() >= 0
