"""Every named reason is in docs/protocol.md, and has words, which doctor and the UI show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from redirectctl.api.reasons import advice, explain, in_words
from redirectctl.flows.claims.incoming import REASONS
from redirectctl.wire.message import AcmStatus
from redirectctl.wire.tunnel import Refused

ROOT = Path(__file__).parents[3]
PURE = ("flows", "proto", "wire")
AS_A_REASON = re.compile(
    r"""(?:reason=|reason = |Refused\(source, |_refuse\(source, |raise \w+Error\()"([a-z0-9-]+)\""""
)


def documented() -> list[str]:
    section = (ROOT / "docs" / "protocol.md").read_text().split("## Reasons")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return sorted({reason for row in rows for reason in re.findall(r"`([a-z0-9-]+)(?:: …)?`", row)})


def in_the_code() -> set[str]:
    files = [file for layer in PURE for file in (ROOT / "redirectctl" / layer).glob("*.py")]
    return {reason for file in files for reason in AS_A_REASON.findall(file.read_text())}


@pytest.mark.parametrize("reason", documented())
def test_what_is_documented_is_explained(reason: str) -> None:
    words = in_words(reason)
    assert words is not None
    assert explain(reason) == f"{words} ({reason})"


def test_what_is_given_as_a_reason_is_documented() -> None:
    given = in_the_code() | {str(reason) for reason in Refused} | set(REASONS.values())
    given |= {f"{s.name.lower().replace('_', '-')}-there" for s in AcmStatus if s is not AcmStatus.APPLIED}
    assert len(given) > 50
    assert given - set(documented()) == set()


def test_an_integrity_that_only_one_end_has_on_is_told_with_the_way_out() -> None:
    assert 'mode = "on" in [integrity] here' in advice("integrity-required-there")
    assert 'mode = "on" in [integrity] there' in advice("integrity-refused-there")


def test_what_the_kernel_said_is_told_too() -> None:
    assert explain("kernel: out of memory") == "the kernel refused the rules: out of memory (kernel)"
    assert advice("kernel: out of memory") == "`redirectctl doctor`"
