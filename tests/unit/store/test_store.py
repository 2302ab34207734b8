import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

import redirectctl.store.database
from redirectctl.store.database import DATABASE
from redirectctl.store.records import ConnectionRecord, PeerAddress, PeerRecord, PeerState, StoreError
from redirectctl.store.store import MAX_ADDRESSES, MAX_UNDECIDED, Store
from redirectctl.wire.addr import FourTuple, SockAddr
from redirectctl.wire.tunnel import Offer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


def key(number: int) -> bytes:
    return number.to_bytes(32)


def peer(number: int, state: PeerState = PeerState.APPROVED, first_seen: float = 1000.0) -> PeerRecord:
    return PeerRecord(public=key(number), fingerprint=f"SHA256:{number}", state=state, first_seen=first_seen)


def connection(number: int, of: int = 1, moves: int = 0) -> ConnectionRecord:
    socket = FourTuple(SockAddr.parse(f"192.0.2.1:{1024 + number}"), SockAddr.parse("198.51.100.1:22"))
    wire = FourTuple(SockAddr.parse(f"203.0.113.9:{1024 + number}"), socket.remote)
    return ConnectionRecord(
        cid=number.to_bytes(8),
        peer=key(of),
        socket=socket,
        wire=wire,
        initiator=True,
        local_epoch=2**64 - 1,
        remote_epoch=3,
        opened_at=float(number),
        moves=moves,
        command="ssh host",
        pid=42,
    )


def carried(number: int) -> ConnectionRecord:
    """As connection(), behind a NAT, in the tunnel."""
    return replace(
        connection(number),
        there=FourTuple(SockAddr.parse("10.0.0.1:22"), SockAddr.parse("192.0.2.1:61000")),
        sending=Offer(2**32 - 1, b"s" * 16, 2**62 - 1),
        receiving=Offer(1, b"r" * 16, 0),
        integrity=True,
        tunnel=True,
        outer_local=ip_address("2001:db8::1"),
        outer_remote=SockAddr.parse("[2001:db8::2]:7747"),
        born=7,
        proven=True,
    )


class TestOwn:
    def test_identity_is_made_once(self, directory: Path):
        with Store(directory) as store:
            first = store.load_identity(lambda n: b"\x01" * n)
            assert first == b"\x01" * 32
            assert store.load_identity(lambda n: b"\x02" * n) == first
        with Store(directory) as store:
            assert store.load_identity(lambda n: b"\x03" * n) == first

    def test_epochs_only_grow(self, directory: Path):
        given = []
        for run in range(4):
            with Store(directory) as store:
                assert store.epoch >= (given[-1] if given else 0)
                given += [store.next_generation() for _ in range(run + 1)]
                assert store.epoch == given[-1]
        assert given == list(range(1, 11)), "each is used: there are not many within the life of a connection"

    def test_epochs_are_on_disk_before_they_are_returned(self, directory: Path, tmp_path: Path):
        with Store(directory) as store:
            for number in range(4):
                epoch = store.next_generation()
                copy = tmp_path / f"copy{number}"  # as a crash would leave it
                shutil.copytree(directory, copy)
                with Store(copy) as crashed:
                    assert crashed.next_generation() > epoch


class TestPeers:
    def test_round_trip(self, directory: Path):
        full = PeerRecord(
            public=key(1),
            fingerprint="SHA256:abc",
            state=PeerState.APPROVED,
            first_seen=1.5,
            name="büro\n",
            secret=b"s" * 32,
            addresses=(
                PeerAddress(ip_address("2001:db8::1"), 2.0, 9.0, identity=True),
                PeerAddress(ip_address("192.0.2.1"), 1.0, 3.0),
            ),
            last_contact=9.0,
            handshake_timestamp=2**64 - 1,
            accepted=2,
            told=(ip_address("192.0.2.1"), ip_address("2001:db8::7")),
        )
        with Store(directory) as store:
            store.put_peer(full)
            store.put_peer(peer(2, PeerState.CHANGED, first_seen=0.5))
        with Store(directory) as store:
            assert store.peers() == [peer(2, PeerState.CHANGED, first_seen=0.5), full]

    def test_replacing_keeps_connections_and_never_lowers_the_timestamp(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(replace(peer(1), handshake_timestamp=7))
            store.put_connections([connection(1)])
            store.put_peer(replace(peer(1), name="new", handshake_timestamp=5))
            assert store.peers() == [replace(peer(1), name="new", handshake_timestamp=7)]
            assert store.connections() == [connection(1)]

    def test_latest_addresses_are_kept(self, directory: Path):
        many = tuple(PeerAddress(ip_address(n), 0.0, float(n)) for n in range(MAX_ADDRESSES + 5))
        with Store(directory) as store:
            store.put_peer(replace(peer(1), addresses=many))
            assert store.peers()[0].addresses == many[:4:-1]
            store.put_peer(replace(peer(1), addresses=many[:1]))
            assert store.peers()[0].addresses == many[:1]

    def test_undecided_peers_are_bounded_decided_ones_are_not_touched(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(peer(1, PeerState.APPROVED, first_seen=0))
            store.put_peer(peer(2, PeerState.REJECTED, first_seen=0))
            for number in range(100, 100 + MAX_UNDECIDED):
                state = PeerState.CHANGED if number % 2 else PeerState.PENDING
                assert store.put_peer(peer(number, state, first_seen=number)) == []
            assert store.put_peer(peer(5, PeerState.PENDING, first_seen=5)) == [key(100)]  # itself the oldest by now
            assert store.put_peer(peer(999, PeerState.PENDING, first_seen=999)) == [key(5)]
            assert len(store.peers()) == MAX_UNDECIDED + 2
            assert {peer.public for peer in store.peers()} >= {key(1), key(2), key(999)}

    def test_a_handshake_timestamp_is_taken_once(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(peer(1))
            assert store.record_handshake_timestamp(key(1), 10)
            assert not store.record_handshake_timestamp(key(1), 10)
            assert not store.record_handshake_timestamp(key(1), 9)
            assert store.record_handshake_timestamp(key(1), 2**63 + 1)
            assert not store.record_handshake_timestamp(key(2), 10)
        with Store(directory) as store:
            assert not store.record_handshake_timestamp(key(1), 2**63)

    def test_prune(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(replace(peer(1, first_seen=0), met=950.0))
            store.put_peer(replace(peer(2, first_seen=0), met=899.0))
            store.put_peer(peer(3, PeerState.PENDING, first_seen=0))
            store.put_peer(replace(peer(4, first_seen=0), met=5.0))
            store.put_connections([connection(1, of=4)])
            assert sorted(store.prune(ran=1000.0, forget_after=100.0)) == [key(2), key(3)]
            assert {peer.public for peer in store.peers()} == {key(1), key(4)}
            assert store.ran == 1000.0
        with Store(directory) as store:
            assert store.ran == 1000.0
            assert store.prune(ran=1020.0, forget_after=100.0) == []
            assert store.prune(ran=1051.0, forget_after=100.0) == [key(1)]

    def test_no_date_makes_a_peer_old(self, directory: Path):
        """What was written with the clock of another year, or by a version that knew only dates, is not forgotten."""
        with Store(directory) as store:
            store.put_peer(replace(peer(1, first_seen=0.0), last_contact=0.0))
            store.put_peer(replace(peer(2, PeerState.REJECTED, first_seen=4e9)))
            assert store.prune(ran=store.ran + 3600.0, forget_after=365 * 86400.0) == []

    def test_delete_peer_takes_addresses_and_connections_with_it(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(replace(peer(1), addresses=(PeerAddress(ip_address("192.0.2.1"), 1.0, 1.0),)))
            store.put_connections([connection(1)])
            store.delete_peer(key(1))
            assert store.peers() == []
            assert store.connections() == []
            store.put_peer(peer(1))
            assert store.peers() == [peer(1)]


class TestNames:
    def test_the_latest_are_kept_with_the_peer(self, directory: Path):
        with Store(directory) as store:
            one, two = peer(1), peer(2)
            store.put_peer(one)
            store.put_peer(two)
            for number in range(6):
                store.put_name(one.public, f"n{number}.example.", 10.0 + number)
            assert store.put_name(one.public, "n3.example.", 20.0) == [f"n{n}.example." for n in (3, 5, 4, 2)]
            store.put_name(two.public, "two.example.", 1.0)
            store.put_peer(one)  # does not touch them
        with Store(directory) as store:
            assert store.names() == {
                one.public: [f"n{n}.example." for n in (3, 5, 4, 2)],
                two.public: ["two.example."],
            }
            store.delete_peer(one.public)
            assert store.names() == {two.public: ["two.example."]}


class TestConnections:
    def test_round_trip(self, directory: Path):
        six = FourTuple(SockAddr.parse("[2001:db8::1]:5"), SockAddr.parse("[2001:db8::2]:6"))
        other = replace(connection(2), socket=six, wire=six, initiator=False, command=None, pid=None, state="x")
        with Store(directory) as store:
            store.put_peer(peer(1))
            store.put_connections([other, connection(1)])
        with Store(directory) as store:
            assert store.connections() == [connection(1), other]
            store.put_connections([connection(1, moves=3)])
            store.delete_connections([other.cid, b"unknown!"])
            assert store.connections() == [connection(1, moves=3)]

    def test_a_batch_with_one_wrong_record_changes_nothing(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(peer(1))
            store.put_connections([connection(1)])
            with pytest.raises(StoreError, match="FOREIGN KEY"):
                store.put_connections([connection(1, moves=1), connection(2, of=2)])
            assert store.connections() == [connection(1)]

    def test_every_field_of_a_connection_is_kept(self, directory: Path):
        whole = replace(
            carried(1), moves=3, state="suspended", lost_at=7.5, reason="no-path", held=True, window=1 << 20,
            user_timeout=5000, device="wg0", bound=True,
        )  # fmt: skip
        assert [f.name for f in fields(whole) if getattr(whole, f.name) == f.default] == []
        with Store(directory) as store:
            store.put_peer(peer(1))
            store.put_connections([connection(1)])
            store.put_connections([whole])
            assert store.connections() == [whole]
            store.put_connections([replace(whole, initiator=False, opened_at=9.0)])  # it is born with these
            assert store.connections() == [whole]

    def test_a_command_that_is_not_utf8(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(peer(1))
            store.put_connections([replace(connection(1), command="scp \udcff")])
            assert store.connections()[0].command == "scp ?"


class TestOpening:
    def test_modes(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(peer(1))
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
        assert modes == {"lock": 0o600, DATABASE: 0o600, f"{DATABASE}-wal": 0o600, f"{DATABASE}-shm": 0o600}

    def test_directory_that_others_may_write_to(self, directory: Path):
        directory.mkdir()
        directory.chmod(0o777)
        with pytest.raises(StoreError, match="others may write to it; chown it to root and chmod 700"):
            Store(directory)
        assert list(directory.iterdir()) == []

    def test_two_daemons(self, directory: Path):
        with Store(directory), pytest.raises(StoreError, match=rf"another redirectd \(process {os.getpid()}\) uses it"):
            Store(directory)
        Store(directory).close()

    def test_a_database_of_version_1_keeps_its_connections(self, directory: Path):
        directory.mkdir(mode=0o700)
        database = sqlite3.connect(directory / DATABASE)
        schema = Path(redirectctl.store.database.__file__).with_name("schema") / "0001.sql"
        database.executescript(schema.read_text() + "PRAGMA user_version = 1;")
        database.execute(
            "INSERT INTO peers VALUES (?, 'SHA256:1', NULL, 'approved', NULL, 1.0, NULL, ?)", (key(1), bytes(8))
        )
        database.execute(
            "INSERT INTO connections VALUES (?, ?, '192.0.2.1:1025', '198.51.100.1:22', '203.0.113.9:1025',"
            " '198.51.100.1:22', 1, ?, ?, 1.0, 0, 'protected', 'ssh host', 42)",
            ((1).to_bytes(8), key(1), b"\xff" * 8, (3).to_bytes(8)),
        )
        database.commit()
        database.close()
        with Store(directory) as store:
            assert store.connections() == [replace(connection(1), proven=True)]  # it was received so until then
            store.put_connections([carried(1)])
        with Store(directory) as store:
            assert store.connections() == [carried(1)]

    def test_what_was_released_has_had_no_state_of_its_own(self, directory: Path):
        """And is no peer's refusal; the version that came before refuses the database, and says why."""
        scripts = sorted(Path(redirectctl.store.database.__file__).with_name("schema").glob("*.sql"))
        directory.mkdir(mode=0o700)
        database = sqlite3.connect(directory / DATABASE)
        database.executescript("".join(s.read_text() for s in scripts[:11]) + "PRAGMA user_version = 11;")
        database.execute(
            "INSERT INTO peers (public, fingerprint, state, first_seen, handshake_timestamp)"
            " VALUES (?, 'SHA256:1', 'approved', 1.0, ?)",
            (key(1), bytes(8)),
        )
        for number, reason in enumerate((None, "released", "released-there", "peer-forgotten", "lost-there")):
            database.execute(
                "INSERT INTO connections (cid, peer, local, remote, wire_local, wire_remote, initiator, local_epoch,"
                " remote_epoch, opened_at, moves, state, reason) VALUES (?, ?, '192.0.2.1:1', '198.51.100.1:22',"
                " '203.0.113.9:1', '198.51.100.1:22', 1, ?, ?, 1.0, 1, 'refused', ?)",
                (number.to_bytes(8), key(1), bytes(8), bytes(8), reason),
            )
        database.commit()
        database.close()
        with Store(directory) as store:
            found = {c.reason: c.state for c in store.connections()}
        assert found == {
            "released": "released",
            "released-there": "released",
            "peer-forgotten": "released",
            "lost-there": "refused",
        }

    def test_connections_of_an_earlier_boot_are_others(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(peer(1))
            store.put_connections([connection(1)])
            store.booted("first", 500.0)  # of a version that did not know: it may be this one
            assert store.connections() == [connection(1)]
            store.booted("first", 500.0)
            assert store.connections() == [connection(1)]
            store.booted("second", 900.0)
            assert store.connections() == []
            assert store.peers() == [peer(1)]

    def test_when_the_machine_was_booted_is_asked_once_in_a_boot(self, directory: Path):
        with Store(directory) as store:
            assert store.booted("first", 500.0) == 500.0
            assert store.booted("first", 500.0 + 20 * 86400.0) == 500.0  # somebody has set the clock
        with Store(directory) as store:
            assert store.booted("first", -7.0) == 500.0
            assert store.booted("second", 900.0) == 900.0

    def test_newer_schema_is_refused_and_not_touched(self, directory: Path):
        with Store(directory) as store:
            store.put_peer(peer(1))
        database = sqlite3.connect(directory / DATABASE)
        database.execute("PRAGMA user_version = 99")
        database.close()
        before = {file.name: file.read_bytes() for file in directory.iterdir()}
        with pytest.raises(
            StoreError, match=r"newer redirectctl \(schema 99, this one knows \d+\); install that version"
        ):
            Store(directory)
        after = {file.name: file.read_bytes() for file in directory.iterdir()}
        del before["lock"], after["lock"]
        assert before == after

    def test_newer_schema_that_is_only_in_the_wal(self, directory: Path, tmp_path: Path):
        Store(directory).close()
        database = sqlite3.connect(directory / DATABASE)
        database.execute("PRAGMA user_version = 99")
        shutil.copytree(directory, tmp_path / "crashed")
        database.close()
        with pytest.raises(StoreError, match="newer redirectctl"):
            Store(tmp_path / "crashed")
        database = sqlite3.connect(tmp_path / "crashed" / DATABASE)
        assert database.execute("PRAGMA user_version").fetchone() == (99,)
        assert database.execute("SELECT count(*) FROM own").fetchone() == (1,)
        database.close()

    def test_damaged(self, directory: Path):
        directory.mkdir(mode=0o700)
        (directory / DATABASE).write_bytes(b"\x00" * 50 + b"no database" * 500)
        with pytest.raises(StoreError, match=r"(?i)not a database; put back a copy"):
            Store(directory)

    def test_not_a_directory(self, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="File exists; check the"):
            Store(tmp_path / "file")


# Writes for ever: batch N sets `moves` of all 40 connections to N and takes an epoch; each is reported when committed.
WRITER = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from test_store import connection, peer
from redirectctl.store.store import Store

store = Store(Path(sys.argv[1]))
store.put_peer(peer(1))
start = int(sys.argv[2])
for number in range(start, start + 1_000_000):
    store.put_connections(connection(n, moves=number) for n in range(40))
    print(number, store.next_generation(), flush=True)
"""


def test_killed_at_any_moment(directory: Path):
    chance = random.Random(7747)
    committed = epoch = 0
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER.format(tests=str(Path(__file__).parent)), directory, str(committed + 1)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(chance.randrange(1, 40)):
            committed, epoch = map(int, process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:  # reported before the signal arrived
            committed, epoch = map(int, line.split())
        assert process.wait() == -signal.SIGKILL
        with Store(directory) as store:
            records = store.connections()
            moves = records[0].moves
            assert moves in {committed, committed + 1}
            assert records == [connection(n, moves=moves) for n in range(40)]
            assert store.epoch >= epoch
            assert store.next_generation() > epoch
            assert store.peers() == [peer(1)]
