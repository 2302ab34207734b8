"""The first hour of a newcomer: the README's Quick start, and all that can go wrong in it.

Who plays it knows nothing but the README and what the programs say.  Four minutes, one of them debootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Lab
from tests.packaging.newcomers import CLONE, PROTECTION, Machine, clean_hosts, connect, protected, quick_start

MOST_STEPS = 6


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    with clean_hosts(tmp_path_factory.mktemp("newcomer")) as hosts:
        yield hosts


def test_the_quick_start_of_the_readme(clean: dict[str, Machine]) -> None:
    """On a server with a firewall that is closed; the laptop then goes to another network."""
    steps = quick_start()
    assert len(steps) <= MOST_STEPS
    assert {step.host for step in steps} == set(clean)
    with Lab() as lab:
        connect(clean, lab)
        clean["server"].must("ufw allow 22/tcp && ufw --force enable", "root")
        for step in steps[:-1]:
            clean[step.host].must(f"cd {CLONE} && {step.command}")
        laptop = clean[steps[-1].host]
        session = laptop.terminal(steps[-1].command)
        try:
            wait_until(lambda: protected(laptop), PROTECTION, "a protected session")
            assert " protected " in laptop.must("redirectctl connections")
            session.answers()
            lab.client.move(lab.cafe, 77)
            session.answers()
            assert protected(laptop)
        finally:
            session.close()
