"""What the profiles have in common: how an operation answers, and what the rest of the device asks of a profile."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar, NamedTuple, Protocol

from pviommu_abi.slots import Errno, OpClass

from ...engine import Outcome
from .page_operation import PageRules

__all__ = ["DONE", "REFUSED", "Answer", "Reply", "Steps", "XenProfile"]


class Reply(NamedTuple):
    """The outcome of an operation: 0 or a negative errno, and the first bytes of the payload as they shall read."""

    result: int
    payload: bytes = b""


Steps = Generator[None, None, Reply]
"""A long operation: runs a bounded piece between two yields, and returns its outcome. Closing it drops the rest."""

Answer = Reply | Steps
"""What carrying out an operation gives."""

DONE = Reply(0)
REFUSED = Reply(-Errno.EINVAL)


class XenProfile(Protocol):
    """A numbering of the Xen operations, with its structures and its errno values."""

    op_class: ClassVar[OpClass]
    """class of its slots"""
    denied: int
    """result of every operation where the configuration does not let the guest use the IOMMU; otherwise 0"""

    page_rules: PageRules
    """its maps and unmaps"""

    def reset(self) -> None:
        """As at power-on."""

    def reorders(self, op: int, payload: bytes) -> bool:
        """Whether the operation must wait for all rings: it changes contexts, or who is in them."""

    def execute(self, op: int, payload: bytes) -> Answer:
        """Carry out ``op`` of a slot's header with the 48 bytes of ``payload``."""

    def call(self, op: int, address: int) -> Answer:
        """Carry out ``op`` with a structure at guest physical ``address``."""

    def map_errno(self, ctx: int, outcome: Outcome) -> int:
        """The result of a map: 0 or a negative errno."""

    def unmap_errno(self, ctx: int, outcome: Outcome) -> int:
        """The result of an unmap: 0 or a negative errno."""
