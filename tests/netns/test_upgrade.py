"""A newer daemon takes over what an older one has left: its database, with connections that live."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

import redirectctl.store.database
from redirectctl.lab.daemons import Daemon
from redirectctl.lab.streams import start_ticker, wait_until
from redirectctl.lab.topology import Lab
from redirectctl.store.database import DATABASE
from tests.netns.daemon_pair import FAST, PATIENCE, Pair
from tests.netns.test_restart import ways

SCHEMA = Path(redirectctl.store.database.__file__).with_name("schema")
NEWEST = max(int(path.stem) for path in SCHEMA.glob("[0-9]*.sql"))


def downgrade(daemon: Daemon, version: int) -> None:
    """Make of a database one that a daemon of an earlier version would have written."""
    path = daemon.state / DATABASE
    now, before = path.with_suffix(".now"), path.with_suffix(".before")
    database = sqlite3.connect(path)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    for left in path.parent.glob(f"{DATABASE}-*"):
        left.unlink()
    path.rename(now)
    database = sqlite3.connect(before)
    for number in range(1, version + 1):
        database.executescript((SCHEMA / f"{number:04}.sql").read_text())
    database.execute(f"PRAGMA user_version = {version}")
    database.execute("ATTACH ? AS now", (str(now),))
    database.execute("DELETE FROM own")
    for (table,) in database.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'").fetchall():
        columns = ", ".join(row[1] for row in database.execute(f"PRAGMA main.table_info({table})"))
        database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM now.{table}")
    database.commit()
    assert database.execute("SELECT count(*) FROM main.connections").fetchone() == (1,)
    database.close()
    now.unlink()
    before.rename(path)


@pytest.mark.parametrize(
    ("schema", "path", "version"),
    [(1, "rewritten", 4), (2, "rewritten", 6), (2, "tunnel", 4), (3, "tunnel", 6)],
)
def test_a_moved_connection_of_an_older_daemon(lab: Lab, schema: int, path: str, version: int) -> None:
    assert schema < NEWEST
    config = FAST if path == "rewritten" else FAST + '[path]\nprefer = "tunnel"\n'
    pair = Pair(lab, config, config)
    ticker = start_ticker(lab.server, lab.client, version=version, wrap=pair.wrap)
    (before,) = pair.wait_protected(1)
    link = lab.client.move(lab.cafe, 20)
    ticker.wait_both(link.usable_at, PATIENCE)
    wait_until(lambda: {way for way, _ in ways(pair)} == {path}, PATIENCE * 3, path, poll=0.1)
    for daemon in pair.daemons:
        daemon.kill()
        downgrade(daemon, schema)
    pair.start()
    ticker.wait_both(time.monotonic(), PATIENCE)
    (after,) = pair.wait_protected(1)
    assert {key: after[key] for key in ("id", "local", "remote", "peer")} == {
        key: before[key] for key in ("id", "local", "remote", "peer")
    }
    assert {way for way, _ in ways(pair)} == {path}
    link = lab.client.move(lab.office, 21)
    ticker.wait_both(link.usable_at, PATIENCE)
    pair.end(ticker)
