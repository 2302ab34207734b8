"""Links inside the documentation lead somewhere: to a file that exists, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tests/bench/README.md",
]


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text())
    for file, heading in links:
        target = page.parent / file if file else page
        assert target.exists(), file
        if heading:
            assert heading in anchors(target), f"{file}#{heading}"


def test_every_page_is_reachable_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
            waiting += [page.parent / link for link in links]
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} - seen == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    """As in `daemon/repair.py`: below redirectctl/, or from the root of the sources."""
    named = re.findall(r"`(?:python )?([\w-]+(?:/[\w-]+)*/[\w-]+\.(?:py|md|toml|service|svg))\b", page.read_text())
    assert len(named) > 20 or page.name != "architecture.md"
    assert [f for f in named if not (ROOT / f).exists() and not (ROOT / "redirectctl" / f).exists()] == []
