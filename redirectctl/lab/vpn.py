"""A VPN of a host: another device with an address of its own, that takes its default route.

::

                        router ── the other networks
                       /      \\
        its network   /        \\   vpn0: 10.8.N.1, fd00:8:N::1
                     /          \\
                  eth0          vpn0: 10.8.N.2, fd00:8:N::2
                         host

The two ends are TUN devices in two network namespaces: a process hands over what one sends to the other.  The router
translates what comes out of the VPN, as who runs one does, and drops what has a source of another network.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Final

from redirectctl.lab.namespaces import LabError
from redirectctl.lab.topology import Addresses, Host, Lab, Prefixes
from redirectctl.wire.addr import parse_ip

ROUTES: Final = "routes"  # as OpenVPN: two halves of everything, more specific than the default route
RULES: Final = "rules"  # as wg-quick: a table of its own, and rules without a priority
TABLE: Final = 51820  # wg-quick's, and its mark

_serial = itertools.count()
_HALVES = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
_PROCESS = """
import ctypes, fcntl, os, select, struct, sys
device, *paths = sys.argv[1:]
ends = []
for path in paths:
    with open(path) as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0x40000000) == 0
    ends.append(os.open("/dev/net/tun", os.O_RDWR))
    fcntl.ioctl(ends[-1], 0x400454CA, struct.pack("16sH22x", device.encode(), 0x1001))  # IFF_TUN, IFF_NO_PI
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        packet = os.read(end, 65536)
        try:
            os.write(ends[1 - ends.index(end)], packet)
        except OSError:
            pass  # it is not up yet
"""


class Vpn:
    """Of one host of the lab; up() it."""

    def __init__(self, lab: Lab, host: Host, *, translates: bool = True) -> None:
        """``translates``: what comes out of it has an address of the router's."""
        self._lab = lab
        self._host = host
        self._translates = translates
        self._number = next(_serial) % 200
        self._process: subprocess.Popen[str] | None = None
        self._rules: list[str] = []
        self.device = f"vpn{self._number}"
        self.prefixes = Prefixes(f"10.8.{self._number}.0/24", f"fd00:8:{self._number}::/64")

    def addresses(self, number: int = 2) -> Addresses:
        """The host's in it."""
        return Addresses(parse_ip(f"10.8.{self._number}.{number}"), parse_ip(f"fd00:8:{self._number}::{number}"))

    def up(self, number: int = 2, *, default: str | None = None) -> Addresses:
        """Make it; ``default``: how it takes the host's default route: ROUTES, RULES.  Returns the host's addresses."""
        host, router, mine, theirs = self._host, self._lab.router, self.addresses(number), self.addresses(1)
        argv = [sys.executable, "-c", _PROCESS, self.device, str(host.path), str(router.path)]
        self._process = host.popen(argv, stdout=subprocess.PIPE)
        if self._process.stdout is None or self._process.stdout.readline() != "ready\n":
            raise LabError("the VPN did not start")
        for end, own in ((router, theirs), (host, mine)):
            end.ip(
                f"address add {own.v4}/24 dev {self.device}",
                f"address add {own.v6}/64 dev {self.device} nodad",
                f"link set {self.device} up",
            )
        router.run(["nft", "-f", "-"], stdin=self._filter())
        if default == ROUTES:
            host.ip(*(f"route add {half} dev {self.device}" for halves in _HALVES.values() for half in halves))
        elif default == RULES:
            self._take_by_rules()
        return mine

    def _take_by_rules(self) -> None:
        """In the order of wg-quick's add_default; each rule goes before the last."""
        for family in ("-4", "-6"):
            self._host.run(["ip", family, "route", "add", "default", "dev", self.device, "table", str(TABLE)])
            for rule in (f"not fwmark {TABLE} table {TABLE}", "table main suppress_prefixlength 0"):
                self._host.run(["ip", family, "rule", "add", *rule.split()])
                self._rules.append(f"{family} rule delete {rule}")

    def cut(self) -> None:
        """What goes in comes out nowhere any more."""
        rule = f'iifname "{self.device}" drop'
        self._lab.router.run(["nft", "add", "rule", "inet", self.device, "forward", *rule.split()])

    def restore(self) -> None:
        """Undo cut()."""
        self._lab.router.run(["nft", "-f", "-"], stdin=self._filter())

    def _filter(self) -> str:
        """The router's rules."""
        foreign = "\n".join(
            f'iifname "{self.device}" {family} saddr != {own} drop'
            for family, own in (("ip", self.prefixes.v4), ("ip6", self.prefixes.v6))
        )
        nat = "\n".join(
            f'{family} saddr {own} oifname != "{self.device}" masquerade random'
            for family, own in (("ip", self.prefixes.v4), ("ip6", self.prefixes.v6))
            if self._translates
        )
        return f"""
            table inet {self.device}
            delete table inet {self.device}
            table inet {self.device} {{
                chain forward {{
                    type filter hook forward priority -20
                    {foreign}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat
                    {nat}
                }}
            }}
        """

    def down(self) -> None:
        """Its devices go with it, and its rules."""
        if self._process is None:
            raise LabError("the VPN is not up")
        for rule in self._rules:
            self._host.run(["ip", *rule.split()])
        self._rules.clear()
        self._process.kill()
        self._process.wait()
        self._process = None
