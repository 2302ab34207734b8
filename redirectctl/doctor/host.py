"""What redirectd needs of the host, whether it runs or not: rights and kernel features.

Nothing is changed: nftables and iptables are asked whether they would take our rules.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from redirectctl.api.schema import Check
from redirectctl.doctor.outcome import fail, ok, refused, several, skip, warn
from redirectctl.kernel.constants import NFT_TABLE, Queue
from redirectctl.kernel.errors import KernelError
from redirectctl.kernel.netfilter.libnftables import Command, Nft
from redirectctl.kernel.netfilter.queue_rules import QUEUE_RULES, nft_has_queue, programs
from redirectctl.kernel.netfilter.skeleton import skeleton
from redirectctl.kernel.processes import cgroup
from redirectctl.kernel.sockets import borrow
from redirectctl.kernel.sockets.diag import SockDiag, SocketInfo, TcpState
from redirectctl.wire.addr import FourTuple, SockAddr

# linux/capability.h
_NEEDED = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}
_WANTED = {1: "CAP_DAC_OVERRIDE", 19: "CAP_SYS_PTRACE"}  # cgroups and sockets of other users' programs
_TUNGETFEATURES, _IFF_TUN = 0x800454CF, 0x0001
_TRIAL = f"{NFT_TABLE}-check"  # never made: dry runs only
_TIMEOUT = 15.0  # seconds for iptables: on a machine that has much else to do
_NOT_BORROWED = "suspended connections live only as long as TCP itself waits: 15 minutes or less"


async def examine(privileges: bool) -> list[Check]:
    """All of them; without ``privileges`` those that need root are skipped."""
    root: list[tuple[str, Callable[[], Check]]] = [
        ("kernel.nftables", nftables),
        ("kernel.nfqueue", nfqueue),
        ("kernel.sock-diag", sock_diag),
        ("kernel.borrowing", borrowing),
    ]
    checks = [capabilities() if privileges else skip("privileges", "not root", "run `redirectctl doctor` as root")]
    checks += [check() if privileges else skip(name, "only root can find out") for name, check in root]
    return [*checks, tun(), cgroups(), ipv6(), await policy_routing()]


def capabilities() -> Check:
    """Of this process."""
    name = "privileges"
    try:
        status = Path("/proc/thread-self/status").read_text()
        effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    except (OSError, StopIteration, ValueError) as error:
        return skip(name, f"/proc cannot be read: {error}")
    missing = [text for bit, text in _NEEDED.items() if not effective >> bit & 1]
    if missing:
        return fail(name, f"{several(missing, ', ')} missing", "run redirectd as root, with its own systemd unit")
    lacking = [text for bit, text in _WANTED.items() if not effective >> bit & 1]
    if lacking:
        hint = "other users' programs cannot be opted in or named; run redirectd as root"
        return warn(name, f"{several(lacking, ', ')} missing", hint)
    return ok(name, "all that redirectd needs")


def nftables() -> Check:
    """libnftables and the kernel would take our table: inet family, maps, chains that re-route, rejects."""
    name = "kernel.nftables"
    base = {"family": "inet", "table": _TRIAL, "name": "out", "type": "route", "hook": "output", "prio": -150}
    reject: Command = {"reject": {"type": "icmpx", "expr": "no-route"}}
    rule = {"family": "inet", "table": _TRIAL, "chain": "out", "expr": [reject]}
    own: list[Command] = [{"add": {"chain": {**base, "policy": "accept"}}}, {"add": {"rule": rule}}]
    try:
        nft = Nft()
        try:
            nft.check([*map(_on_trial, skeleton()), *own])
        finally:
            nft.close()
    except KernelError as error:
        return refused(name, error)
    return ok(name, "libnftables and the kernel accept redirectctl's table and its maps")


def _on_trial(command: Command) -> Command:
    """The same for a table of another name: what is in ours is not touched, not even in a dry run."""
    ((verb, what),) = command.items()
    ((kind, value),) = what.items()
    return {verb: {kind: {**value, ("name" if kind == "table" else "table"): _TRIAL}}}


def nfqueue() -> Check:
    """Packets that need a decision can be handed to redirectd."""
    name = "kernel.nfqueue"
    if importlib.util.find_spec("netfilterqueue") is None:
        return fail(name, "the Python module netfilterqueue is missing", "pip install NetfilterQueue")
    try:
        nft = Nft()
        try:
            if nft_has_queue(nft):
                return ok(name, "by nft's queue statement")
        finally:
            nft.close()
    except KernelError as error:
        return refused(name, error)
    for program in programs():
        why = _iptables_refuses(program)
        if why is not None:
            hint = "the kernel needs CONFIG_NFT_QUEUE, or iptables and CONFIG_NETFILTER_XT_TARGET_NFQUEUE"
            return fail(name, f"neither nft nor {program} has it: {why}", hint)
    return ok(name, "by iptables -j NFQUEUE (this kernel's nft has no queue statement)")


def uses_nft_queue() -> bool:
    """Whether the rules to NFQUEUE are nft's.  Raises KernelError."""
    nft = Nft()
    try:
        return nft_has_queue(nft)
    finally:
        nft.close()


def _iptables_refuses(program: str) -> str | None:
    """Why it does not take a rule to NFQUEUE; a trial, nothing is changed."""
    mark = f"{QUEUE_RULES[0].mark:#x}"
    rule = f"-A PREROUTING -m mark --mark {mark}/{mark} -j NFQUEUE --queue-num {Queue.RST} --queue-bypass"
    command = shutil.which(f"{program}-restore", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
    if command is None:
        return "it is not installed"
    try:
        done = subprocess.run(
            [command, "--test", "--noflush"],
            input=f"*raw\n{rule}\nCOMMIT\n",
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else " ".join(done.stderr.split()[:20]) or f"status {done.returncode}"


def sock_diag() -> Check:
    """Sockets can be listed with their cgroups, and closed."""
    name = "kernel.sock-diag"
    try:
        diag = SockDiag()
        try:
            # No socket has port 0, and none this cookie: nothing can be hit.
            diag.destroy(_nobody())
            with socket.create_server(("127.0.0.1", 0)) as listener:
                inode = os.fstat(listener.fileno()).st_ino
                ours = [each for each in diag.dump(states=[TcpState.LISTEN]) if each.inode == inode]
        finally:
            diag.close()
    except KernelError as error:
        return refused(name, error)
    except OSError as error:
        return skip(name, f"no socket to try it on: {error}")
    if not ours or ours[0].cgroup_id is None:
        hint = "redirect-run needs Linux 5.9 with CONFIG_SOCK_CGROUP_DATA; protect.ports and protect PID work without"
        return warn(name, "the kernel lists and closes sockets, but does not report their cgroups", hint)
    return ok(name, "the kernel lists sockets with their cgroups, and closes them")


def borrowing() -> Check:
    """Sockets of programs can be had for a moment, by this process at least."""
    name = "kernel.borrowing"
    try:
        borrow.check()
    except KernelError as error:
        refused_by = refused(name, error)
        return fail(name, f"{refused_by.found}: {_NOT_BORROWED}", refused_by.hint or "")
    return ok(name, "pidfd_getfd works: suspended connections outlive TCP's own time limits")


def _nobody() -> SocketInfo:
    nowhere = SockAddr(IPv4Address("127.0.0.1"), 0)
    values: dict[str, Any] = dict.fromkeys(SocketInfo._fields, 0)
    return SocketInfo(**values | {"tuple": FourTuple(nowhere, nowhere), "state": TcpState.CLOSE, "cookie": 1 << 63})


def tun() -> Check:
    """The device that holds old addresses can be made."""
    name = "kernel.tun"
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            (features,) = struct.unpack("=I", fcntl.ioctl(descriptor, _TUNGETFEATURES, bytes(4)))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return fail(name, "there is no /dev/net/tun", "modprobe tun; in a container, pass the device in")
    except OSError as error:
        return fail(name, f"/dev/net/tun: {error.strerror}", "modprobe tun; in a container, pass the device in")
    if not features & _IFF_TUN:
        return fail(name, "/dev/net/tun makes no TUN devices", "the kernel needs CONFIG_TUN")
    return ok(name, "/dev/net/tun makes TUN devices")


def cgroups() -> Check:
    """Commands can be opted in."""
    name = "kernel.cgroup2"
    try:
        mount, root = cgroup.find_mount()
    except KernelError as error:
        return fail(name, f"{error.what}: {error.why}", f"{error.hint}; without it redirect-run cannot opt in")
    except OSError as error:
        return skip(name, f"/proc cannot be read: {error}")
    part = "" if root == "/" else f" (only {root} of it)"
    if os.geteuid() == 0 and not os.access(mount, os.W_OK):
        return fail(name, f"{mount} is read-only", "redirect-run needs it writable for redirectd")
    return ok(name, f"mounted at {mount}{part}")


def ipv6() -> Check:
    """Whether the host has it at all."""
    name = "kernel.ipv6"
    if not has_ipv6():
        return skip(name, "this host has no IPv6; IPv4 connections are protected all the same")
    return ok(name, "on")


def has_ipv6() -> bool:
    """Whether this network namespace has IPv6."""
    return Path("/proc/thread-self/net/if_inet6").exists() and Path("/proc/sys/net/ipv6").exists()


async def policy_routing() -> Check:
    """Rules that send marked packets to another table."""
    name = "kernel.policy-routing"
    netlink: Any = AsyncIPRoute()
    try:
        for family in (socket.AF_INET, *([socket.AF_INET6] if has_ipv6() else [])):
            if not [rule async for rule in await netlink.rule("dump", family=family)]:
                return fail(name, "there are no routing rules", "the kernel needs CONFIG_IP_MULTIPLE_TABLES")
    except NetlinkError as error:
        why = os.strerror(error.code or errno.EIO)
        return fail(name, why, "the kernel needs CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES")
    finally:
        netlink.close()
    return ok(name, "routing rules for marked packets are possible")


def bound_queues() -> frozenset[int] | None:
    """NFQUEUE numbers that a process listens on (nfnetlink_queue.c, `seq_show`); None: the kernel does not say."""
    try:
        lines = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text().splitlines()
    except OSError:
        return None
    return frozenset(int(line.split()[0]) for line in lines if line.split())
