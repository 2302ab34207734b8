"""The one exception of the kernel side."""

from __future__ import annotations


class KernelError(Exception):
    """The kernel cannot or will not do something.

    ``what`` was tried, ``why`` it failed, ``hint`` says what a person can do about it.
    """

    def __init__(self, what: str, why: str, hint: str) -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; {self.hint}"
