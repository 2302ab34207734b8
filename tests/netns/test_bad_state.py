"""State that a disk has given back as it never was: the daemon says so in a sentence."""

from __future__ import annotations

import sqlite3

import pytest
from daemon_pair import FAST, Pair

from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import start_idle
from redirectctl.lab.topology import Lab


def test_a_record_that_makes_no_sense(lab: Lab) -> None:
    pair = Pair(lab, FAST)
    idle = start_idle(lab.server, lab.client, 1, wrap=pair.wrap)
    pair.wait_protected(1)
    pair.client.kill()
    database = sqlite3.connect(pair.client.state / "state.db")
    (true,) = database.execute("SELECT wire_remote FROM connections").fetchone()
    with database:
        database.execute("UPDATE connections SET wire_remote = '198.18'")
    with pytest.raises(LabError, match="ended with 1"):
        pair.client.start()
    last = pair.client.report().splitlines()[-1]
    assert "a record makes no sense" in last
    assert "198.18" in last
    assert "put back a copy" in last
    with database:
        database.execute("UPDATE connections SET wire_remote = ?", (true,))
    database.close()
    pair.client.start()
    pair.wait_protected(1)
    assert idle.ask(10) == {}
    idle.stop()
    pair.stop_without_a_trace()
