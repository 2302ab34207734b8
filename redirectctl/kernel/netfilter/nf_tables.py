"""Numbers and headers of nf_tables' own netlink messages (linux/netfilter/nfnetlink.h, nf_tables.h)."""

from __future__ import annotations

import struct

from redirectctl.kernel.netlink import attribute

NETLINK_NETFILTER = 12
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11
_KINDS = SUBSYSTEM << 8
GETTABLE, NEWRULE, GETRULE = _KINDS | 1, _KINDS | 6, _KINDS | 7
NEWSETELEM, GETSETELEM, DELSETELEM = _KINDS | 12, _KINDS | 13, _KINDS | 14
NEWGEN, GETGEN = _KINDS | 15, _KINDS | 16

GENERIC = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
INET = GENERIC.pack(1, 0, 0)  # NFPROTO_INET

# Attributes.
TABLE_NAME = 1  # NFTA_TABLE_NAME
RULE_TABLE, RULE_CHAIN = 1, 2  # NFTA_RULE_*
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
LIST_ELEM, KEY, DATA, DATA_VALUE = 1, 1, 2, 1  # NFTA_LIST_ELEM, NFTA_SET_ELEM_*, NFTA_DATA_VALUE
GEN_ID = 1  # NFTA_GEN_ID


def of_set(table: bytes, name: str) -> bytes:
    """What a message about elements of a set begins with; ``table`` ends with a zero."""
    return INET + attribute(LIST_TABLE, table) + attribute(LIST_SET, name.encode() + b"\0")
