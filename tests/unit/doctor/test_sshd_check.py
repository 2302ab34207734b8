"""What sshd -T says, and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from redirectctl.api.schema import CheckStatus
from redirectctl.doctor.sshd import Answer, check, judge

OLD = "'Match User' in configuration but 'user' not in connection test specification.\n"


def config(interval: object, most: object) -> str:
    return f"port 22\nclientaliveinterval {interval}\nclientalivecountmax {most}\nusedns no\n"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (config(0, 3), CheckStatus.OK, "ends no session"),
        (config(15, 0), CheckStatus.OK, "ends no session"),  # 0 switches it off in sshd, unlike in ssh
        (config(15, 3), CheckStatus.WARN, "after 45s without an answer"),
        (config(120, 3), CheckStatus.WARN, "ClientAliveInterval 120, ClientAliveCountMax 3"),
        (config("x", 3), CheckStatus.SKIP, "does not name"),
        ("port 22\n", CheckStatus.SKIP, "does not name"),
        ("", CheckStatus.SKIP, "does not name"),
    ],
)
def test_judge(answer: str, status: CheckStatus, said: str):
    found = judge(answer)
    assert (found.status, said in found.found) == (status, True)
    assert (found.hint is not None) is (status is CheckStatus.WARN)
    assert all(len(line) <= 80 for line in found.found.splitlines())


def test_a_configuration_with_conditions_is_asked_about_somebody():
    """sshd before 8.x does not answer otherwise."""
    asked: list[list[str]] = []

    def ask(argv: Sequence[str]) -> Answer:
        asked.append(list(argv))
        return (0, config(15, 3), "") if "-C" in argv else (255, "", OLD)

    assert check("/usr/sbin/sshd", ask).status is CheckStatus.WARN
    assert [argv[1] for argv in asked] == ["-T", "-T"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Missing privilege separation directory: /run/sshd\r\n", "no sshd runs"),
        ("sshd: no hostkeys available -- exiting.\r\n", "sshd -T: sshd: no hostkeys available -- exiting."),
        ("\x1b[2J\n", "\\x1b[2J"),
        ("", "status 255"),
        (OLD, "connection test specification."),
    ],
)
def test_sshd_that_does_not_answer(error: str, said: str):
    found = check("/usr/sbin/sshd", lambda argv: (255, "", error))
    assert found.status is CheckStatus.SKIP
    assert found.found.endswith(said)
    assert found.found.isprintable()
