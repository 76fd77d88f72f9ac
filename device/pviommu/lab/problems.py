"""How a lab run ends when it cannot be judged by the guest's tests."""

from __future__ import annotations

__all__ = ["EnvironmentProblem", "RunError", "UsageError"]


class EnvironmentProblem(Exception):  # noqa: N818 - EnvironmentError is taken by Python
    """The host lacks something that the lab cannot provide itself (exit status 3).

    ``what`` names the missing thing, ``how_to_get_it`` one action that provides it.
    """

    def __init__(self, what: str, how_to_get_it: str) -> None:
        super().__init__(f"{what}; {how_to_get_it}")
        self.what = what
        self.how_to_get_it = how_to_get_it


class UsageError(Exception):
    """An argument or an input file is wrong (exit status 2)."""


class RunError(Exception):
    """The run broke before the guest could be judged: the server, QEMU or the module build ended with an error.

    ``detail`` holds the last lines that the failing program wrote; it may be empty.
    """

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.detail = detail
