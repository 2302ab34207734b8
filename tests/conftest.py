"""For all tests: what comes first, and how many cases Hypothesis makes up.

`--hypothesis-profile long` is for a night, "quick" for every day.
"""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

LONGEST = ("test_first_hour.py", "test_sessions.py", "test_packages.py", "test_clean.py")

settings.register_profile(
    "quick", max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.register_profile(
    "long", max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def pytest_configure(config: pytest.Config) -> None:
    # Whoever runs us in the background or under nohup has these ignored, and every program that a test starts inherits
    # that; a handler of ours is not inherited.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if config.getoption("--hypothesis-profile", None) is None:
        settings.load_profile("quick")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: beside others they are over before the end, and nobody waits for them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
