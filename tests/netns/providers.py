"""What providers do: the router of the lab in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redirectctl.lab.bench.without import NO_DATAGRAMS
from redirectctl.lab.topology import Lab, Network

FAMILIES = {4: "ip", 6: "ip6"}


def provider_filters(lab: Lab, *networks: Network) -> None:
    """What comes in by these with a source that is not theirs is dropped."""
    rules = "\n".join(
        f'iifname "{n.bridge}" {family} saddr != {{ {own} }} drop'
        for n in networks
        for family, own in (("ip", n.v4), ("ip6", f"{n.v6}, fe80::/10"))
    )
    script = f"table inet bcp38 {{ chain c {{ type filter hook prerouting priority -300\n{rules}\n }}\n }}\n"
    lab.router.run(["nft", "-f", "-"], stdin=script)


@contextmanager
def dead_family(lab: Lab, version: int) -> Iterator[None]:
    """Nothing of this IP version gets anywhere."""
    family = FAMILIES[version]
    script = f"table {family} dead {{ chain c {{ type filter hook forward priority 0\n drop\n }}\n }}\n"
    lab.router.run(["nft", "-f", "-"], stdin=script)
    try:
        yield
    finally:
        lab.router.run(["nft", "delete", "table", family, "dead"])


@contextmanager
def no_datagrams(lab: Lab) -> Iterator[None]:
    """Nothing of the control port gets through."""
    lab.router.run(["nft", "-f", "-"], stdin=NO_DATAGRAMS)
    try:
        yield
    finally:
        lab.router.run(["nft", "delete", "table", "inet", "blocked"])
