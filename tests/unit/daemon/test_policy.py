"""What the engine is told of the configuration and of this host's TCP."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from redirectctl.config import Config, Outage, parse
from redirectctl.daemon import runtime


@pytest.mark.parametrize(
    ("configured", "retransmissions", "keepalives", "used"),
    [
        (10.0, 924.6, 600.0, 10.0),
        (300.0, 924.6, 600.0, 150.0),
        (10.0, 6.2, 600.0, 1.55),  # tcp_retries2 = 4
        (10.0, 924.6, 6.0, 1.5),
        (10.0, 924.6, 0.0, runtime.SOON),  # tcp_keepalive_probes = 1: one lost probe is the end
        (10.0, 0.2, 600.0, runtime.SOON),
        (0.5, 0.2, 0.0, 0.5),
    ],
)
def test_connections_are_suspended_before_tcp_gives_up(
    monkeypatch: pytest.MonkeyPatch, configured: float, retransmissions: float, keepalives: float, used: float
) -> None:
    monkeypatch.setattr(runtime, "retransmission_limit", lambda: retransmissions)
    monkeypatch.setattr(runtime, "keepalive_limit", lambda: keepalives)
    config = Config(outage=Outage(suspend_after=configured))
    assert runtime.policy(config, {}).suspend_after == pytest.approx(used)


def test_where_connections_may_go() -> None:
    text = '[path]\nleave_vpn = true\nlast = ["wwan*"]\nnever = ["docker*"]\naccept_from = ["10.0.0.0/8", "192.0.2.7"]'
    policy = runtime.policy(parse(text), {})
    assert (policy.leave_vpn, policy.last, policy.never) == (True, ("wwan*",), ("docker*",))
    assert policy.accept_from == (ip_network("10.0.0.0/8"), ip_network("192.0.2.7/32"))
    assert not runtime.policy(Config(), {}).leave_vpn
