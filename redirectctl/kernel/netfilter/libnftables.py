"""nftables in-process: libnftables' JSON interface by ctypes.

The `nft` program would cost a process a move, and Debian's Python binding cannot be installed by pip.  Commands and
replies are those of libnftables-json(5).
"""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

import msgspec

from redirectctl.kernel.errors import KernelError

Command: TypeAlias = dict[str, Any]

_LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_OUTPUT_NUMERIC = 0b1111 << 6  # NFT_CTX_OUTPUT_NUMERIC_ALL: numbers, not names from /etc/services


class NftError(KernelError):
    """libnftables or the kernel refused a transaction; ``why`` is libnftables' own text."""


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NftError(
            "load libnftables", str(error), "install it: the package is libnftables1 on Debian, nftables on Fedora"
        ) from error
    context, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("nft_ctx_new", context, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [context]),
        ("nft_ctx_output_set_flags", None, [context, ctypes.c_uint]),
        ("nft_ctx_set_dry_run", None, [context, ctypes.c_bool]),
        ("nft_ctx_buffer_output", ctypes.c_int, [context]),
        ("nft_ctx_buffer_error", ctypes.c_int, [context]),
        ("nft_ctx_get_output_buffer", text, [context]),
        ("nft_ctx_get_error_buffer", text, [context]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [context, text]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class Nft:
    """One libnftables context.

    It belongs to the network namespace of the thread that makes it and is not thread-safe.  A transaction of a few
    elements takes 0.2 ms, one of 1,000 elements about 7 ms.  Raises NftError.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise NftError("open nftables", "libnftables made no context", "is the process allowed to use netlink?")
        self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON | _OUTPUT_NUMERIC)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: list[Command]) -> list[Command]:
        """Run all ``commands`` as one transaction; the objects that ``list`` commands ask for."""
        return self._run(commands, what="change nftables")

    def check(self, commands: list[Command]) -> None:
        """Ask libnftables and the kernel whether ``commands`` would be accepted; nothing is changed."""
        self._library.nft_ctx_set_dry_run(self._context, True)
        try:
            self._run(commands, what="check nftables commands")
        finally:
            self._library.nft_ctx_set_dry_run(self._context, False)

    def _run(self, commands: list[Command], *, what: str) -> list[Command]:
        if not self._context:
            raise NftError(what, "the context is closed", "this is a bug in redirectctl")
        status = self._library.nft_run_cmd_from_buffer(self._context, msgspec.json.encode({"nftables": commands}))
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        errors: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            raise NftError(
                what,
                " ".join(errors.decode(errors="replace").split()) or "libnftables gave no reason",
                "redirectctl needs root and a kernel with nf_tables",
            )
        if not output.strip():
            return []
        objects: list[Command] = msgspec.json.decode(output)["nftables"]
        return [item for item in objects if "metainfo" not in item]
