"""iptables rules to NFQUEUE, with programs that only pretend."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.queue_rules import IptablesQueues, nft_queue_commands

OURS = "-A PREROUTING -m mark --mark 0x40000000/0x40000000 -j NFQUEUE --queue-num 7748"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """iptables and ip6tables: -save prints the file PROGRAM.rules, -restore appends its input to PROGRAM.restored."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for program in ("iptables", "ip6tables"):
        (tmp_path / f"{program}.rules").write_text("*raw\nCOMMIT\n")
        for verb, script in (
            ("save", f"cat {tmp_path}/{program}.rules"),
            ("restore", f"cat >> {tmp_path}/{program}.restored"),
        ):
            path = tmp_path / f"{program}-{verb}"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def test_install_writes_each_rule_once_hold_first(programs: Path) -> None:
    IptablesQueues().install()
    lines = (programs / "iptables.restored").read_text().splitlines()
    assert lines == [
        "*raw",
        "-I OUTPUT -m mark --mark 0x1000000/0x1000000 -j NFQUEUE --queue-num 7751",
        "-I OUTPUT -m mark --mark 0x8000000/0x8000000 -j NFQUEUE --queue-num 7749 --queue-bypass",
        "-I PREROUTING -m mark --mark 0x1000000/0x1000000 -j NFQUEUE --queue-num 7752 --queue-bypass",
        "-I PREROUTING -m mark --mark 0x2000000/0x2000000 -j NFQUEUE --queue-num 7750 --queue-bypass",
        "-I PREROUTING -m mark --mark 0x20000000/0x20000000 -j NFQUEUE --queue-num 7747 --queue-bypass",
        "-I PREROUTING -m mark --mark 0x40000000/0x40000000 -j NFQUEUE --queue-num 7748",
        "COMMIT",
    ]
    assert (programs / "ip6tables.restored").read_text().splitlines() == lines


def test_what_is_there_is_not_written_again(programs: Path) -> None:
    (programs / "iptables.rules").write_text(
        f"*raw\n-A PREROUTING -p udp -j DROP\n{OURS}\n"
        "-A PREROUTING -m mark --mark 0x20000000/0x20000000 -j NFQUEUE --queue-num 7747 --queue-bypass\n"
        "-A PREROUTING -m mark --mark 0x2000000/0x2000000 -j NFQUEUE --queue-num 7750 --queue-bypass\n"
        "-A PREROUTING -m mark --mark 0x1000000/0x1000000 -j NFQUEUE --queue-num 7752 --queue-bypass\n"
        "-A OUTPUT -m mark --mark 0x8000000/0x8000000 -j NFQUEUE --queue-num 7749 --queue-bypass\n"
        "-A OUTPUT -m mark --mark 0x1000000/0x1000000 -j NFQUEUE --queue-num 7751\nCOMMIT\n"
    )
    IptablesQueues().install()
    assert not (programs / "iptables.restored").exists()


def test_remove_deletes_ours_only_however_often(programs: Path) -> None:
    (programs / "iptables.rules").write_text(f"*raw\n-A PREROUTING -p udp -j DROP\n{OURS}\n{OURS}\nCOMMIT\n")
    assert IptablesQueues().leftovers() == [f"iptables -t raw {OURS}"] * 2
    IptablesQueues().remove()
    delete = OURS.replace("-A", "-D", 1)
    assert (programs / "iptables.restored").read_text() == f"*raw\n{delete}\n{delete}\nCOMMIT\n"
    assert not (programs / "ip6tables.restored").exists()


def test_a_failing_program_says_why(programs: Path) -> None:
    (programs / "iptables-restore").write_text("#!/bin/sh\necho 'unknown option' >&2; exit 2\n")
    with pytest.raises(KernelError, match="run iptables-restore: unknown option"):
        IptablesQueues().install()


def test_a_missing_program_names_the_package(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs / "nowhere"))
    with pytest.raises(KernelError, match="install the package iptables"):
        IptablesQueues().install()
    assert IptablesQueues().leftovers() == []


def test_nft_rules_have_bypass_except_for_held_rsts_and_suspended_connections() -> None:
    rules = [command["add"]["rule"] for command in nft_queue_commands({"table": "t"}) if "rule" in command["add"]]
    assert [(rule["chain"], rule["expr"][1]["queue"]) for rule in rules] == [
        ("queue-prerouting", {"num": 7748}),
        ("queue-prerouting", {"num": 7747, "flags": ["bypass"]}),
        ("queue-prerouting", {"num": 7750, "flags": ["bypass"]}),
        ("queue-prerouting", {"num": 7752, "flags": ["bypass"]}),
        ("queue-output", {"num": 7749, "flags": ["bypass"]}),
        ("queue-output", {"num": 7751}),
    ]
