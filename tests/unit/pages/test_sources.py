"""What pyproject.toml says of the sources."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_folder_with_modules_is_shipped() -> None:
    shipped = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "redirectctl").rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} <= shipped
