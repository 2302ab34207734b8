import random
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from redirectctl.proto.constants import HANDSHAKE_BURST, HANDSHAKES_PER_SECOND, RATE_LIMIT_SOURCES
from redirectctl.proto.ratelimit import RateLimiter
from redirectctl.wire.addr import IPAddress

HOST = IPv4Address("192.0.2.1")
BURST = int(HANDSHAKE_BURST)
REFILL = HANDSHAKE_BURST / HANDSHAKES_PER_SECOND  # seconds from empty to full


def burst(limiter: RateLimiter, source: IPAddress, now: float, tries: int = 3 * BURST) -> int:
    return sum(limiter.allow(source, now) for _ in range(tries))


@pytest.mark.parametrize("start", [0.0, 1e6 / 3, 1e9])
def test_a_burst_then_the_rate(start: float) -> None:
    limiter = RateLimiter()
    assert burst(limiter, HOST, start) == BURST
    half_second = [start + n / 1000 for n in range(1, 501)]
    assert sum(limiter.allow(HOST, now) for now in half_second) in (
        HANDSHAKES_PER_SECOND / 2,
        HANDSHAKES_PER_SECOND / 2 - 1,
    )
    assert burst(limiter, HOST, start + 10) == BURST


def test_being_refused_does_not_cost_more() -> None:
    limiter = RateLimiter()
    assert burst(limiter, HOST, 0.0, tries=1000) == BURST
    assert limiter.allow(HOST, 1.01 / HANDSHAKES_PER_SECOND)


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "c000:201::", False),
    ],
)
def test_what_counts_as_one_source(one: str, two: str, shared: bool) -> None:
    limiter = RateLimiter()
    assert burst(limiter, ip_address(one), 0.0) == BURST
    assert burst(limiter, ip_address(two), 0.0) == (0 if shared else BURST)


def test_memory_is_bounded_under_a_flood_of_sources() -> None:
    limiter = RateLimiter()
    rng = random.Random(0)
    for n in range(3 * RATE_LIMIT_SOURCES):
        limiter.allow(IPv6Address(rng.getrandbits(128)), n * 1e-5)
        assert len(limiter) <= RATE_LIMIT_SOURCES


def test_a_full_table_lets_nobody_evade_the_limit_and_takes_new_sources_when_old_ones_have_refilled() -> None:
    limiter = RateLimiter()
    sources = [IPv4Address(n) for n in range(RATE_LIMIT_SOURCES)]
    for source in sources:
        burst(limiter, source, 0.0)
    assert not limiter.allow(HOST, REFILL / 2)
    # The bucket first in line, still empty by half, was not forgotten for the sake of the newcomer.
    assert burst(limiter, sources[0], REFILL / 2) == BURST // 2
    assert limiter.allow(HOST, REFILL)
    assert len(limiter) == RATE_LIMIT_SOURCES


def test_a_source_in_use_outlives_idle_ones() -> None:
    limiter = RateLimiter()
    busy = IPv4Address("198.51.100.1")
    limiter.allow(busy, 0.0)
    for n in range(RATE_LIMIT_SOURCES - 1):
        limiter.allow(IPv4Address(n), 0.0)
    assert burst(limiter, busy, 10.0) == BURST
    for n in range(RATE_LIMIT_SOURCES - 1):
        assert limiter.allow(IPv6Address(n << 64), 10.0)
    assert not limiter.allow(busy, 10.0)
