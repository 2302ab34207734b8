"""redirectctl doctor: text, exit codes, and what it does without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from redirectctl.api import schema
from redirectctl.api.schema import Check, CheckStatus, ErrorCode, RequestError
from redirectctl.cli.main import main
from redirectctl.doctor import alone

OK = Check(name="kernel.tun", status=CheckStatus.OK, found="/dev/net/tun makes TUN devices")
SKIP = Check(name="kernel.ipv6", status=CheckStatus.SKIP, found="this host has no IPv6")
WARN = Check(
    name="peers", status=CheckStatus.WARN, found="waiting for a person: SHA256:abc", hint="redirectctl approve"
)
FAIL = Check(
    name="control.firewall",
    status=CheckStatus.FAIL,
    found="datagrams in are dropped by: nft table inet fw, chain input, rule handle 4",
    hint="let UDP 7747 through:\nnft insert rule inet fw input udp dport 7747 accept",
)


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_all_well(daemon: Any, capsys: pytest.CaptureFixture[str]):
    daemon.replies["doctor"] = schema.DoctorReply([OK, SKIP])
    assert main(["doctor"]) == 0
    assert capsys.readouterr() == (
        "ok    kernel.tun   /dev/net/tun makes TUN devices\n"
        "skip  kernel.ipv6  this host has no IPv6\n"
        "\n"
        "2 checks: 1 ok, 1 skipped\n",
        "",
    )
    assert daemon.asked == [schema.DoctorRequest(None)]


def test_what_is_wrong_and_what_to_do(daemon: Any, capsys: pytest.CaptureFixture[str]):
    daemon.replies["doctor"] = schema.DoctorReply([OK, WARN, FAIL])
    assert main(["doctor", "server"]) == 1
    assert capsys.readouterr().out == (
        "ok    kernel.tun        /dev/net/tun makes TUN devices\n"
        "warn  peers             waiting for a person: SHA256:abc\n"
        "                        to do: redirectctl approve\n"
        "fail  control.firewall  datagrams in are dropped by: nft table inet fw, chain\n"
        "                        input, rule handle 4\n"
        "                        to do: let UDP 7747 through:\n"
        "                               nft insert rule inet fw input udp dport 7747\n"
        "                                 accept\n"
        "\n"
        "3 checks: 1 ok, 1 warning, 1 failed\n"
    )
    assert daemon.asked == [schema.DoctorRequest("server")]


def test_a_warning_alone_is_no_failure(daemon: Any):
    daemon.replies["doctor"] = schema.DoctorReply([WARN])
    assert main(["doctor"]) == 0


def test_json(daemon: Any, capsys: pytest.CaptureFixture[str]):
    daemon.replies["doctor"] = schema.DoctorReply([OK, FAIL])
    assert main(["doctor", "--json"]) == 1
    out, err = capsys.readouterr()
    assert msgspec.json.decode(out) == [msgspec.to_builtins(OK), msgspec.to_builtins(FAIL)]
    assert err == ""


def test_text_that_could_steer_a_terminal(daemon: Any, capsys: pytest.CaptureFixture[str]):
    daemon.replies["doctor"] = schema.DoctorReply([msgspec.structs.replace(WARN, found="a\x1b[2Jb", hint="c\x07d")])
    main(["doctor"])
    out = capsys.readouterr().out
    assert "a\\x1b[2Jb" in out
    assert "c\\x07d" in out


def test_long_words_stay_whole(daemon: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "30")
    path = "/a" * 40
    daemon.replies["doctor"] = schema.DoctorReply([msgspec.structs.replace(OK, found=f"it is {path}")])
    main(["doctor"])
    assert path in capsys.readouterr().out.split()


def test_the_daemon_says_no(daemon: Any):
    daemon.replies["doctor"] = RequestError("doctor x", "2 peers match", "name one by its fingerprint")
    assert main(["doctor", "x"]) == 1


class TestWithoutADaemon:
    @pytest.fixture(autouse=True)
    def _found(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.found = [OK]
        self.path = str(tmp_path / "none")
        self.noted: Path | None = None  # another daemon than the usual one: nobody knows its state directory

        async def examine(noted: Path | None) -> list[Check]:
            assert noted == self.noted
            return self.found

        monkeypatch.setattr(alone, "examine", examine)

    def test_nothing_else_is_wrong(self, capsys: pytest.CaptureFixture[str]):
        assert main(["doctor", "--socket", self.path]) == 3
        out, err = capsys.readouterr()
        assert out.startswith("fail  daemon      ")
        assert out.endswith("2 checks: 1 ok, 1 failed\n")
        assert err == (
            f"redirectctl: doctor: {self.path}: no daemon listens there; `systemctl start redirectd`, or name its"
            " socket with --socket; only the checks that need no daemon were made\n"
        )

    def test_something_else_is_wrong(self):
        self.found = [OK, FAIL]
        assert main(["doctor", "--socket", self.path]) == 1

    def test_the_state_directory_is_given(self, tmp_path: Path):
        self.noted = tmp_path / "reserved-ports"
        assert main(["doctor", "--socket", self.path, "--state-dir", str(tmp_path)]) == 3

    def test_json(self, capsys: pytest.CaptureFixture[str]):
        assert main(["doctor", "--socket", self.path, "--json"]) == 3
        found = msgspec.json.decode(capsys.readouterr().out)
        assert [(each["name"], each["status"]) for each in found] == [("daemon", "fail"), ("kernel.tun", "ok")]

    def test_a_peer_cannot_be_checked(self, capsys: pytest.CaptureFixture[str]):
        assert main(["doctor", "server", "--socket", self.path]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert "no daemon listens there" in err


def test_clean_while_the_daemon_runs(daemon: Any, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--clean"]) == 1
    assert capsys.readouterr().err.startswith("redirectctl: doctor --clean: redirectd runs, ")


def test_clean_is_not_about_a_peer(daemon: Any, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--clean", "x"]) == 2
    assert "leave HOST out" in capsys.readouterr().err


def test_clean_without_rights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["doctor", "--clean", "--socket", str(tmp_path / "none")]) == 4
    assert "run it as root" in capsys.readouterr().err


def test_force_belongs_to_clean(capsys: Any):
    assert main(["doctor", "--force"]) == 2
    assert capsys.readouterr().err == "redirectctl: doctor --force: nothing is removed without --clean; add it\n"


class TestWithoutRights:
    """There is a daemon, but who asks may only see its status."""

    @pytest.fixture(autouse=True)
    def _denied(self, daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        hint = "ask as root or as a member of the group redirectctl"
        daemon.replies["doctor"] = RequestError("doctor", "not permitted", hint, ErrorCode.DENIED)
        counts = {schema.ConnectionState.PROTECTED: 2, schema.ConnectionState.UNSUPPORTED: 1}
        daemon.replies["status"] = schema.StatusReply(
            schema.Status(
                version="1.2", uptime=5.0, identity="SHA256:own", addresses=["192.0.2.1"], control_port=7747,
                connections=counts, peers=1, pid=77,
            )
        )  # fmt: skip

    def test_half_is_checked(self, capsys: pytest.CaptureFixture[str]):
        assert main(["doctor", "--json"]) in (1, 4)
        out, err = capsys.readouterr()
        found = {each["name"]: each for each in msgspec.json.decode(out)}
        assert found["daemon"]["found"] == "redirectd 1.2, process 77"
        assert found["control.port"]["found"] == "UDP 7747"
        assert found["connections"]["status"] == "warn"
        assert found["connections"]["found"] == "2 protected, 1 unsupported"
        assert found["kernel.policy-routing"]["status"] == "ok"
        assert found["kernel.nftables"]["status"] == "skip"
        assert err == (
            "redirectctl: doctor: not permitted; ask as root or as a member of the group redirectctl;"
            " only the checks that need no rights were made\n"
        )

    def test_half_of_a_host(self, capsys: pytest.CaptureFixture[str]):
        assert main(["doctor", "192.0.2.99", "--json"]) in (1, 4)
        out, err = capsys.readouterr()
        found = {each["name"]: each for each in msgspec.json.decode(out)}
        assert found["peer.name"]["found"] == "192.0.2.99"
        assert found["peer.route"]["status"] in ("ok", "warn", "fail")
        assert found["peer.control-port"]["status"] == "skip"
        assert "only the checks that need no rights" in err

    def test_a_name_that_leads_nowhere(self, capsys: pytest.CaptureFixture[str]):
        assert main(["doctor", "not a host", "--json"]) == 1
        (check,) = [c for c in msgspec.json.decode(capsys.readouterr().out) if c["name"] == "peer.name"]
        assert check["status"] == "fail"


def test_without_rights_or_daemon_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["doctor", "--socket", str(tmp_path / "none"), "--json"]) in (1, 3)
    found = {each["name"]: each for each in msgspec.json.decode(capsys.readouterr().out)}
    for name in ("privileges", "kernel.nftables", "kernel.nfqueue", "kernel.sock-diag", "leftovers"):
        assert found[name]["status"] == "skip"
        assert "root" in found[name]["found"]
    assert found["kernel.policy-routing"]["status"] == "ok"
