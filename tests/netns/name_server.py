"""A real name server (BIND) in a lab: zone lab.example, of which keys may change names; and hosts that ask it.

It may be signed (DNSSEC): its key is the trust anchor of who is to believe it.  And one that forges what it says.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from daemon_pair import PATIENCE

from redirectctl.lab.namespaces import LabError
from redirectctl.lab.streams import wait_until
from redirectctl.lab.topology import Host, Lab, Network

NAMED = shutil.which("named") or "/usr/sbin/named"
ZONE = "lab.example"
NUMBER = 53  # of the host, on its network
needs_named = pytest.mark.skipif(not Path(NAMED).exists(), reason="not installed: named (Debian: bind9)")

_RESOLVE = 'mount -n --bind "$0" /etc/resolv.conf; exec "$@"'
_ASK = """
import sys, dns.message, dns.query
for kind in ("A", "AAAA"):
    answer = dns.query.tcp(dns.message.make_query(sys.argv[2], kind), sys.argv[1], timeout=5)
    print(*(record for records in answer.answer for record in records))
"""
_FORGE = """
import socket, sys, dns.flags, dns.message, dns.zonefile
records = dns.zonefile.read_rrsets("\\n".join(sys.argv[2:]) + "\\n", rdclass=None, default_ttl=5)
listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listening.bind((sys.argv[1], 53))
print("ready", flush=True)
while True:
    data, source = listening.recvfrom(4096)
    query = dns.message.from_wire(data)
    reply = dns.message.make_response(query)
    reply.flags |= dns.flags.AD | dns.flags.RA
    (asked,) = query.question
    reply.answer = [each for each in records if each.name == asked.name and each.rdtype == asked.rdtype]
    listening.sendto(reply.to_wire(), source)
"""
_OPTIONS = """
options {{
    directory "{directory}";
    pid-file none;
    session-keyfile none;
    managed-keys-directory "{directory}";
    listen-on port 53 {{ any; }};
    listen-on-v6 port 53 {{ any; }};
    recursion no;
    dnssec-validation no;
    empty-zones-enable no;
}};
controls {{ }};
logging {{ channel all {{ stderr; severity info; }}; category default {{ all; }}; category update {{ all; }}; }};
"""
_ZONE = """$TTL 5
@ SOA ns.lab.example. root.lab.example. 1 3600 600 86400 5
@ NS ns.lab.example.
ns A {v4}
ns AAAA {v6}
"""


class NameServer:
    """named on a host of its own, primary server of lab.example."""

    def __init__(
        self,
        lab: Lab,
        network: Network,
        *,
        names: Sequence[str] = ("server",),
        records: Mapping[str, str] | None = None,
        lines: Sequence[str] | None = None,
    ) -> None:
        """Each of ``names`` has a key of the same name, which may change it and nothing else; ``records``: A.

        ``lines``: more of the zone, which is signed then, and which nobody may change.
        """
        self.host = Host(lab, "ns")
        lab.add(self.host)
        link = self.host.join(network, NUMBER)
        self.v4, self.v6 = link.addresses
        self.directory = lab.sandbox.directory / "named"
        self.directory.mkdir()
        self.zone = self.directory / "zone"
        text = [f"{name} A {address}\n" for name, address in (records or {}).items()]
        text += [f"{line}\n" for line in lines or ()]
        self.zone.write_text(_ZONE.format(v4=self.v4, v6=self.v6) + "".join(text))
        self.anchors = self.directory / "anchors"
        self.served = self.directory / "zone.signed" if lines is not None else self.zone
        if lines is not None:
            self._sign()
        self.resolv_conf = self.directory / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {self.v4}\nnameserver {self.v6}\nsearch {ZONE}\noptions timeout:1\n")
        self.resolv_conf.chmod(0o644)
        keys = ""
        grants = ""
        for name in names:
            key = subprocess.run(["tsig-keygen", name], capture_output=True, text=True, check=True).stdout
            self.key_file(name).touch(mode=0o600)
            self.key_file(name).write_text(key)
            keys += key
            grants += f"grant {name} name {name}.{ZONE} A AAAA; "
        policy = f"update-policy {{ {grants} }};" if grants else ""
        self.configuration = self.directory / "named.conf"
        self.configuration.write_text(
            _OPTIONS.format(directory=self.directory)
            + keys
            + f'zone "{ZONE}" {{ type primary; file "{self.served}"; {policy} }};\n'
        )
        self.log = self.directory / "log"
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def sign_anew(self, lines: Sequence[str]) -> None:
        """With these lines more, and with another key."""
        self.stop()
        with self.zone.open("a") as zone:
            zone.writelines(f"{line}\n" for line in lines)
        self._sign()
        self.start()

    def _sign(self) -> None:
        """The zone with one key, which `anchors` has."""
        for old in self.directory.glob(f"K{ZONE}.*"):
            old.unlink()
        options = ["-K", str(self.directory)]
        generate = ["dnssec-keygen", "-q", *options, "-a", "ECDSAP256SHA256", "-f", "KSK", ZONE]
        key = subprocess.run(generate, capture_output=True, text=True, check=True).stdout.strip()
        sign = ["dnssec-signzone", "-S", "-z", *options, "-d", str(self.directory), "-o", ZONE, "-f", str(self.served)]
        subprocess.run([*sign, str(self.zone)], capture_output=True, check=True)
        self.anchors.write_text((self.directory / f"{key}.key").read_text())
        self.anchors.chmod(0o644)

    def key_file(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def start(self) -> None:
        with self.log.open("w") as log:
            self.process = self.host.popen([NAMED, "-f", "-n", "1", "-c", self.configuration], stderr=log)
        wait_until(self._running, PATIENCE, "named", poll=0.05)

    def _running(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise LabError(f"named ended: {self.log.read_text()}")
        return "running" in self.log.read_text()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(PATIENCE)

    def resolving(self, argv: Sequence[str | Path]) -> list[str]:
        """The command, as on a host whose resolver this is."""
        return _resolving(self.resolv_conf, argv)

    def configure(self, host: str, **more: object) -> str:
        """Of redirectd.toml: keep this name up to date."""
        settings: dict[str, object] = {
            "name": f"{host}.{ZONE}",
            "zone": ZONE,
            "server": f"{self.v4}:53",
            "key_file": str(self.key_file(host)),
            "ttl": "5s",
            **more,
        }
        return "[dns]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())

    def addresses(self, name: str) -> set[str]:
        """What it says of a name."""
        argv = [sys.executable, "-c", _ASK, str(self.v4), f"{name}.{ZONE}"]
        return set(self.host.run(argv).stdout.split())


class ForgingResolver:
    """Such as a hotspot's: it has the records that it is given, unsigned, and says that it has validated them (AD)."""

    def __init__(self, lab: Lab, network: Network, lines: Sequence[str]) -> None:
        """``lines``: of a zone file, with whole names."""
        host = Host(lab, "hotspot")
        lab.add(host)
        address = host.join(network, NUMBER + 1).addresses.v4
        directory = lab.sandbox.directory / "hotspot"
        directory.mkdir()
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {address}\n")
        self.resolv_conf.chmod(0o644)
        program = host.popen([sys.executable, "-c", _FORGE, str(address), *lines], stdout=subprocess.PIPE)
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"

    def resolving(self, argv: Sequence[str | Path]) -> list[str]:
        """The command, as on a host whose resolver this is."""
        return _resolving(self.resolv_conf, argv)


def _resolving(resolv_conf: Path, argv: Sequence[str | Path]) -> list[str]:
    enter = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", _RESOLVE]
    return [*enter, str(resolv_conf), *map(str, argv)]


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'
