"""redirect-run as installed, with a daemon and without."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon

from redirectctl_wrappers import launcher


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "redirectd.sock")
    monkeypatch.setenv("REDIRECTCTL_SOCKET", str(fake.path))
    yield fake
    fake.close()


@pytest.fixture
def no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIRECTCTL_SOCKET", str(tmp_path / "nobody.sock"))


@pytest.fixture(scope="session")
def redirect_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The start script that `make install` puts into place of pip's."""
    path = tmp_path_factory.mktemp("bin") / "redirect-run"
    path.write_text(launcher.script(sys.executable))
    path.chmod(0o755)
    return os.fspath(path)
