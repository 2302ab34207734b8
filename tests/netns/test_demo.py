"""``redirectctl demo`` as a person runs it: to its end, and interrupted."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from redirectctl.cli.main import main
from redirectctl.kernel.constants import CGROUP_PREFIX
from redirectctl.lab.namespaces import NETNS_DIRECTORY, PREFIX, program
from redirectctl.lab.streams import wait_until

PATIENCE = 500.0  # seconds: more than the demo has for all that it waits for
MOVES = ["client: home → café", "client: café → office, stranger", "client: office → home", "server: dc1 → dc2"]


def start(*options: str, **streams: object) -> subprocess.Popen[str]:
    argv = [program("redirectctl"), *options]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **streams)  # type: ignore[call-overload, no-any-return]


def left_by(pid: int) -> list[str]:
    """Namespaces, directories and processes of a demo, by the name that it gives them."""
    name = f"{PREFIX}{pid}-"
    found = [str(path) for folder in (NETNS_DIRECTORY, Path(tempfile.gettempdir())) for path in folder.glob(f"{name}*")]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if name in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(f"process {entry.name}")
        except OSError:
            continue
    return found


def machine() -> dict[str, str]:
    """What the demo must not touch: this machine's own network."""
    commands = ("ip address", "ip rule", "ip -6 rule", "ip route show table all", "nft list ruleset")
    told = {}
    for command in commands:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=True)
        told[command] = "\n".join(line for line in done.stdout.splitlines() if "valid_lft" not in line)
    told["reserved ports"] = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text()
    return told


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup for a demo of which nothing else on this machine is part."""
    words = next(line.split() for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2")
    path = Path(words[1], f"test-demo-{os.getpid()}")
    path.mkdir()
    yield path
    for folder, _, _ in os.walk(path, topdown=False):
        os.rmdir(folder)


def opted_in(cgroup: Path) -> set[str]:
    """Cgroups of opted-in commands below this one."""
    return {name for _, folders, _ in os.walk(cgroup) for name in folders if name.startswith(CGROUP_PREFIX)}


@pytest.mark.parametrize("family", [[], ["--ipv6"]], ids=["ipv4", "ipv6"])
def test_everything_lives_and_nothing_is_left(family: list[str]) -> None:
    before = machine()
    process = start("--json", "demo", "--outage", "1", "--copy", "150", *family)
    out, account = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, account
    outcome = json.loads(out)
    assert (outcome["lived"], outcome["failure"]) == (True, None)
    assert [move["what"] for move in outcome["moves"]] == MOVES
    assert all(move["offline"] >= 1 and move["gap"] > 0 and move["answer"] > 0 for move in outcome["moves"])
    assert [move["resets"] > 0 for move in outcome["moves"]] == [False, True, False, False]
    assert any("every byte is right" in line for line in outcome["programs"])
    assert outcome["moves"][2]["new"] == outcome["moves"][0]["old"]
    assert "redirectctl approve SHA256:" in account
    assert "The verdict" in account
    assert max(map(len, account.splitlines())) <= 80
    assert "\033" not in account
    assert left_by(process.pid) == []
    assert machine() == before


PROTECTED = "The session is protected"
INTERRUPTIONS: list[tuple[str, signal.Signals]] = [
    ("1. ", signal.SIGINT),
    ("client$ redirect-run", signal.SIGTERM),
    (PROTECTED, signal.SIGINT),
    ("has no address at all", signal.SIGHUP),
    ("The first data flows", signal.SIGINT),
]


@pytest.mark.parametrize(("words", "number"), INTERRUPTIONS, ids=[words for words, _ in INTERRUPTIONS])
def test_an_interrupted_demo_leaves_nothing(words: str, number: signal.Signals, cgroup: Path) -> None:
    process = start(
        "demo",
        env=os.environ | {"COLUMNS": "200"},
        preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0"),
    )
    assert process.stdout is not None
    told = ""
    while words not in told:
        line = process.stdout.readline()
        assert line, f"ended before it said {words!r}: {told}"
        told += line
    if PROTECTED in told:
        assert opted_in(cgroup)
    process.send_signal(number)
    process.send_signal(number)  # an impatient person
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert "interrupted; everything that it made has been removed" in errors
    assert left_by(process.pid) == []
    assert opted_in(cgroup) == set()


def test_a_reader_that_goes_away_leaves_nothing() -> None:
    process = start("demo")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert left_by(process.pid) == []


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert main(["demo"]) == 4
    assert capsys.readouterr() == ("", "redirectctl: demo: network namespaces need root; run it with sudo\n")


@pytest.mark.parametrize("option", ["--outage=0", "--outage=nan", "--outage=x", "--copy=0", "--copy=1.5"])
def test_wrong_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", option])
    assert capsys.readouterr().err.startswith(f"redirectctl: demo: argument {option.partition('=')[0]}: ")


def test_what_a_killed_demo_left_is_removed_by_the_next() -> None:
    process = start("demo")
    wait_until(lambda: any("client" in name for name in left_by(process.pid)), 30, "the demo's namespaces")
    process.kill()
    process.communicate(timeout=30)
    second = start("demo")
    wait_until(lambda: any("client" in name for name in left_by(second.pid)), 30, "the demo's namespaces")
    remaining = left_by(process.pid)
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=30)
    assert remaining == []
    assert left_by(second.pid) == []
