"""The documentation and the code say the same."""

from __future__ import annotations

import re
from enum import IntEnum
from itertools import accumulate
from math import log2
from pathlib import Path

import pytest

from redirectctl.flows import constants as of_flows
from redirectctl.flows.reasons import REASONS
from redirectctl.flows.state import diagram
from redirectctl.proto import constants as of_proto
from redirectctl.proto.errors import Reason
from redirectctl.wire.meeting import Registration
from redirectctl.wire.message import AcmStatus, End, Status, Trust
from redirectctl.wire.tunnel import TAG_LEN, Refused

ROOT = Path(__file__).parents[3]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
CORE = "\n".join(
    p.read_text() for part in ("wire", "proto", "flows") for p in (ROOT / "redirectctl" / part).rglob("*.py")
)


def test_the_diagram_of_states_is_made_from_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in PROTOCOL


def test_every_reason_is_explained() -> None:
    patterns = (
        r'MalformedError\("([a-z-]+)"\)',
        r'_fail\(\w+, "([a-z-]+)"\)',
        r'reason="([a-z-]+)"',
        r'\b_?(?:refuse|unsupport|unprotect|leave)\(now, \w+, "([a-z-]+)"\)',
        r'Status\.\w+: "([a-z-]+)"',
        r'return "([a-z]+-[a-z-]+)"',
        r'\b(?:finish|end)\(now, \w+, "([a-z-]+)"\)',
        r'\bEnded\(\w+, "([a-z-]+)"\)',
    )
    reasons = {reason for pattern in patterns for reason in re.findall(pattern, CORE)}
    assert len(reasons) > 50
    assert {r for r in reasons if f"`{r}`" not in PROTOCOL} == set()


def test_every_reason_of_a_session_is_explained() -> None:
    assert [r for r in Reason if f"`{r.value}`" not in PROTOCOL] == []


def test_every_reason_about_a_datagram_of_the_tunnel_is_explained() -> None:
    told = PROTOCOL.split("| about a datagram of the tunnel |")[1].split("\n\n")[0]
    assert {f"`{reason.value}`" for reason in Refused} == set(re.findall(r"`[a-z-]+`", told)) - {"`count`"}


def test_a_claim_that_is_refused_has_a_reason_that_is_explained() -> None:
    assert set(REASONS) == set(Status) - {Status.OK, Status.PROVE, Status.INTEGRITY}
    assert [reason for reason in REASONS.values() if f"`{reason}`" not in PROTOCOL] == []


def test_every_datagram_and_message_is_described() -> None:
    for module in ("datagram", "message", "meeting"):
        head = (ROOT / "redirectctl" / "wire" / f"{module}.py").read_text().split('"""')[1]
        for name, number in re.findall(r"^    ([A-Z_]+) \((\d+)\)", head, re.MULTILINE):
            assert f"{name} ({number}) " in PROTOCOL


WORDS = ("none", "one", "two", "three", "four", "five", "six")
ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth")
MINUTE = 60.0


def hours(seconds: float) -> str:
    return {1.0: "an hour"}.get(seconds / MINUTE / 60, f"{seconds / MINUTE / 60:g} hours")


def after(pauses: tuple[float, ...]) -> list[float]:
    """When something happens that is repeated after these pauses."""
    return [round(t, 3) for t in accumulate(pauses, initial=0.0)]


@pytest.mark.parametrize(
    ("sentence", "values"),
    [
        ("The daemons talk over UDP, port {}.", [of_flows.CONTROL_PORT]),
        # handshakes and sessions
        ("INIT is sent up to five times, {}, {}, {} and {} s apart, each", of_proto.HANDSHAKE_RETRIES[:-1]),
        ("After the last one {} s more, then the contact has failed", of_proto.HANDSHAKE_RETRIES[-1:]),
        ("until it hears the peer: after {}, {}, {}, {} and {} s.", of_proto.CONFIRM_RETRIES),
        ("within {} s of each other, the secret of the one", [of_proto.SECRET_RACE]),
        ("keeps the session, at most once in {} s for each peer", [of_proto.UNKNOWN_HINT_PAUSE]),
        ("rekey after | 2^{} messages, {} s", [log2(of_proto.REKEY_AFTER_MESSAGES), of_proto.REKEY_AFTER_TIME]),
        ("reject after | 2^64 − 2^{} − 1 messages", [log2(2**64 - 1 - of_proto.REJECT_AFTER_MESSAGES)]),
        ("− 1 messages, {} s | a minute", [of_proto.REJECT_AFTER_TIME]),
        ("{} s (150 s if the other end began it) / {} s", [of_proto.REKEY_AFTER_TIME, of_proto.REJECT_AFTER_TIME]),
        ("120 s ({} s if the other end began it)", [of_proto.REKEY_AFTER_TIME_RESPONDER]),
        ("half-open first contacts | {}, for {} s", [of_proto.HALF_OPEN_MAX, of_proto.HALF_OPEN_TIME]),
        ("the initiator uses it for {} s, so", [of_proto.COOKIE_LIFETIME]),
        ("(a handshake with a known peer: from the {})", [ORDINALS[of_proto.HANDSHAKE_OTHER_PORT + 1]]),
        ("{} first messages more go out", [WORDS[of_proto.HANDSHAKE_DOUBTS]]),
        ("a fresh one at most every {} s", [of_proto.FRESH_PORT]),
        # requests, claims
        ("comes: after {}, {}, {}, {} and {} s. An answer", of_flows.REQUEST_RETRIES),
        ("five tries in {} s", after(of_flows.REQUEST_RETRIES)[-1:]),
        (
            "datagram, if that is not the proven address of its sender: at most once in {} s",
            [of_flows.TELL_PAUSE],
        ),
        ("{} s after a handshake without an answer the host is asked", [of_flows.UNSUPPORTED_TIME]),
        ("costs the {} first messages of a handshake", [WORDS[len(of_proto.HANDSHAKE_RETRIES)]]),
        ("At most {} hosts are asked at a time", [of_flows.ASKED_AGAIN]),
        (
            "together draw {} datagrams a second",
            [-(-of_flows.ASKED_AGAIN * len(of_proto.HANDSHAKE_RETRIES) // sum(of_proto.HANDSHAKE_RETRIES))],
        ),
        ("Token c goes out after {}, {} and {} s;", after(of_flows.PROVE_RETRIES)[:-1]),
        ("After {} s without success (routers that strip options)", after(of_flows.PROVE_RETRIES)[-1:]),
        ("the claimant begins anew, {} times at most", [WORDS[of_flows.CLAIM_TRIES]]),
        ("claims that wait for proof | 4,096, each for {} s", [of_flows.CLAIM_TIME]),
        ("claimed again after | {} s, then twice as long each time", [of_flows.UNPROVEN_TIME]),
        ("20 s, then twice as long each time, {} at most", [hours(of_flows.UNPROVEN_TIME_MAX)]),
        # moves
        ("then after {}, {}, {}, {}, {}, {}, {}, {}, {} s, then every {} s,", of_flows.ACM_RETRIES),
        ("From the {} try on a handshake goes with it", [ORDINALS[of_flows.ACM_REHANDSHAKE + 1]]),
        ("after the {} try also every address where it ever called it", [ORDINALS[of_flows.ACM_WIDEN]]),
        ("tries other source ports of its own from the {} time on", [ORDINALS[of_flows.ACM_OTHER_PORT + 1]]),
        ("better ones have {} s more", [of_flows.PATIENCE]),
        ("If no acknowledgement comes within {} s, a challenge", [of_flows.CHOICE_TIME]),
        ("it comes last for {} s, twice as long each time", [of_flows.FAILURE_PAUSE]),
        ("twice as long each time within {} minutes,", [of_flows.FAILURE_MEMORY / MINUTE]),
        ("within 10 minutes, {} minutes at most", [of_flows.FAILURE_PAUSE_MAX / MINUTE]),
        ("the connections go back when it has answered {} (", [WORDS[of_flows.PROOFS]]),
        ("at most once in {} s, then 4 s, up to {} s", [of_flows.HINT_PAUSE, of_flows.HINT_PAUSE_MAX]),
        ("goes out at most five times within {} s", after(of_flows.CHALLENGE_RETRIES)[-1:]),
        ("repeated faster: every {} s,", [of_flows.PROBE_PAUSE]),
        ("every 1/{} of the time without a path, {} s at most; all", [of_flows.PROBE_PART, of_flows.PROBE_PAUSE_MAX]),
        ("all such peers together get {} a second", [of_flows.PROBES]),
        ("(`retransmitting`), at most every {} s", [of_flows.STALL_PAUSE]),
        ("behind a NAT there is one every {} s", [of_flows.KEEPALIVE_TIME]),
        # plain packets
        ("A token goes out {}, {}, {}, {}, {} and {} s after the move", after(of_flows.PLAIN_RETRIES)),
        ("the way is left alone for {} s, and each time for longer: {}, {}, {} s,", of_flows.PLAIN_PAUSES[:4]),
        ("{} min, {} min, an hour", [p / MINUTE for p in of_flows.PLAIN_PAUSES[4:6]]),
        ("16 min, {}. It is tried before that", [hours(of_flows.PLAIN_PAUSES[-1])]),
        ("{} of plain packets makes earlier failures forgotten", [hours(of_flows.PLAIN_FORGIVEN).capitalize()]),
        ("at most once in {} s, when something arrives", [of_flows.PLAIN_AGAIN]),
        ("connections after {} s of silence", [of_flows.PLAIN_AGAIN]),
        ("listened for in the {} s after a move", [of_flows.LISTEN_TIME]),
        ("{} connections stand for all", [WORDS[of_flows.PLAIN_FIRST].capitalize()]),
        ("each sends its own, {} in {} s", [of_flows.PLAIN_TOGETHER, of_flows.PLAIN_NEXT]),
        ("answers the announcement within {} s", [of_flows.STALL_ANSWER]),
        ("while the peer has not answered for {} s", [of_flows.UNREAD]),
        ("data | tag ({}), with integrity only", [TAG_LEN]),
        ("(`not-tagged`), from {} s after a host", [of_flows.INTEGRITY_GRACE]),
        ("as long as was said (TTL), {} s at least", [of_flows.PLACE_TIME]),
        # a rendezvous
        ("register every {} s, and", [of_flows.MEET_BEAT]),
        ("a registration lasts {} s", [of_flows.MEET_TIME]),
        ("an answer again after {}, {}, {}, {}, {} s, then every {} s", of_flows.MEET_RETRIES),
        ("from the {} time on with a handshake", [ORDINALS[of_flows.MEET_REHANDSHAKE + 1]]),
        ("after the {} at another address of its name", [ORDINALS[of_flows.MEET_ELSEWHERE]]),
        ("sends four empty messages to where the other was seen, {}, {} and {} s apart", of_flows.PUNCHES[:3]),
        ("about one peer {} are acted upon, and then one in", [WORDS[int(of_flows.FOUND_BURST)]]),
        ("are acted upon, and then one in {} s", [1 / of_flows.FOUND_RATE]),
        ("It is used from the {} ACM on", [ORDINALS[of_flows.ACM_RELAY + 1]]),
        ("looking for a direct way: after {} s, {} s, then every minute", of_flows.DIRECT_PAUSES[:2]),
        ("an ACM goes to where it is seen ({} times)", [WORDS[of_flows.DIRECT_TRIES]]),
        # of suspended connections, and afterwards
        ("of one peer | {} after {} s, later", [of_flows.ASKED, of_flows.ASK_PAUSE]),
        ("later after 1/{} of the time without a path, {} s at most", [of_flows.ASK_PART, of_flows.ASK_PAUSE_MAX]),
        ("{} in {} s once one is answered", [of_flows.ASKED_MORE, of_flows.ASK_MORE_PAUSE]),
        ("no keepalives for {} min, then twice", [of_flows.REFUSED_PAUSE / MINUTE]),
        ("for 1 min, then twice as long each time, {} at most", [hours(of_flows.REFUSED_PAUSE_MAX)]),
        ("socket by | {} s; {} s when the peer's is gone too", [of_flows.LINGER, of_flows.LINGER_BOTH]),
    ],
)
def test_the_times_of_the_protocol_are_those_of_the_code(sentence: str, values: list[float | str]) -> None:
    text = sentence.format(*(v if isinstance(v, str) else f"{v:g}" for v in values))
    assert text in " ".join(PROTOCOL.split())


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("trust", Trust),
        ("status of PROTECTED", Status),
        ("status of ACM_ACK", AcmStatus),
        ("what of END", End),
        ("status of REGISTERED", Registration),
    ],
)
def test_the_numbers_in_messages_are_those_of_the_code(field: str, values: type[IntEnum]) -> None:
    (told,) = re.findall(rf"^\| {field} \| ([^|;]*)", PROTOCOL, re.MULTILINE)
    names = {n.lower().replace("_", " "): number for n, number in values.__members__.items()}
    if values is Status:
        names["sequence numbers are changed"] = names.pop("numbers")
    assert [item.strip() for item in told.split(",")] == [f"{number} {name}" for name, number in names.items()]


def test_the_threat_model_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = re.findall(r"`(?:([\w/.]+\.py)::)?(test_\w+)`", text)
    assert len(named) > 45
    for path, name in named:
        source = (ROOT / (path or "tests/sim/test_threats.py")).read_text()
        assert f"def {name}(" in source, name


def test_every_test_of_a_threat_is_in_the_threat_model() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    tests = re.findall(r"^def (test_\w+)\(", (ROOT / "tests/sim/test_threats.py").read_text(), re.MULTILINE)
    assert [name for name in tests if f"`{name}`" not in text] == []


def test_every_limit_is_in_the_threat_model_with_its_number() -> None:
    """Who shares it, and what others keep: a row for each, with the numbers that the code has, in order."""
    text = (ROOT / "docs" / "threat-model.md").read_text().split("## Limits and rates")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if re.search(r"`[A-Z_]{5,}`", line)]
    values = {name: value for module in (of_proto, of_flows) for name, value in vars(module).items()}
    named: set[str] = set()
    for row in rows:
        what, number, names, shared_by, left = (cell.strip() for cell in row)
        assert shared_by, what
        assert left, what
        told = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d|\d+(?:\.\d+)?", number)]
        constants = re.findall(r"`([A-Z_]+)`", names)
        told += [float(n) for n in re.findall(r"\((\d+)\)", left)]
        more = re.findall(r"`([A-Z_]+)`", left)
        if more == ["CHOSEN_PART"]:
            constants += more
        assert told == [float(values[name]) for name in constants], what
        named |= {*constants, *more}
    for module in ("flows", "proto"):
        source = (ROOT / "redirectctl" / module / "constants.py").read_text().split("# --- limits of this impl")[1]
        limits = re.findall(
            r"^((?!HANDSHAKE_R)\w*(?:MAX|RATE|BURST|_PER_|_OF_PEER|WINDOW|_PART|LOAD_)\w*): Final", source, re.MULTILINE
        )
        assert set(limits) - named - {"REPLAY_WINDOW"} == set()
