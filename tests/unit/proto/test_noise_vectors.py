"""The published Noise vectors (cacophony) of our two suites, byte for byte."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redirectctl.proto.cipher import TransportCipher
from redirectctl.proto.noise import Handshake, Pattern, StaticKey

ROOT = Path(__file__).resolve().parents[3]
VECTORS = Path(os.environ.get("REDIRECTCTL_VECTORS", ROOT.parent / "shared/vectors")) / "noise-cacophony.json"


def vector(pattern: Pattern) -> dict[str, Any]:
    if not VECTORS.exists():
        pytest.skip(f"no published vectors at {VECTORS}; name the folder in REDIRECTCTL_VECTORS")
    name = f"Noise_{pattern.value}_25519_ChaChaPoly_BLAKE2s"
    (found,) = [v for v in json.loads(VECTORS.read_text())["vectors"] if v["protocol_name"] == name]
    return found


def fixed(data: bytes) -> Callable[[int], bytes]:
    def rng(length: int) -> bytes:
        assert length == len(data)
        return data

    return rng


def ends(pattern: Pattern, v: dict[str, Any]) -> tuple[Handshake, Handshake]:
    made = []
    for role in ("init", "resp"):
        remote = v.get(f"{role}_remote_static")
        psks = v.get(f"{role}_psks")
        made.append(
            Handshake(
                pattern,
                role == "init",
                StaticKey.from_private(bytes.fromhex(v[f"{role}_static"])),
                fixed(bytes.fromhex(v[f"{role}_ephemeral"])),
                bytes.fromhex(v[f"{role}_prologue"]),
                remote_static=bytes.fromhex(remote) if remote else None,
                psk=bytes.fromhex(psks[0]) if psks else None,
            )
        )
    return made[0], made[1]


@pytest.mark.parametrize("pattern", Pattern)
def test_vector(pattern: Pattern) -> None:
    v = vector(pattern)
    initiator, responder = ends(pattern, v)
    turn = [initiator, responder]
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in v["messages"]]

    while not initiator.finished:
        payload, ciphertext = messages.pop(0)
        assert turn[0].write_message(payload) == ciphertext
        assert turn[1].read_message(ciphertext) == payload
        turn.reverse()

    assert initiator.handshake_hash.hex() == responder.handshake_hash.hex() == v["handshake_hash"]
    assert initiator.remote_static == StaticKey.from_private(bytes.fromhex(v["resp_static"])).public
    assert responder.remote_static == StaticKey.from_private(bytes.fromhex(v["init_static"])).public

    assert len(messages) >= 3
    counters = {initiator: 0, responder: 0}
    for payload, ciphertext in messages:
        sender, receiver = turn
        assert TransportCipher(sender.split().send).seal(counters[sender], payload) == ciphertext
        assert TransportCipher(receiver.split().recv).open(counters[sender], ciphertext) == payload
        counters[sender] += 1
        turn.reverse()
