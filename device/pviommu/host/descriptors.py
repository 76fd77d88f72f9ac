"""The limit of open files, and how it is divided.

Each function needs some for itself, its sockets and its interrupts; each client may have some more, for files of guest
memory. What is left of the limit is shared out evenly among the clients, so that none can take what another needs.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Protocol

from ..dma.memory_file import MOST_FILES, PER_FILE

__all__ = [
    "FEWEST_FILES",
    "RESERVE",
    "DescriptorsError",
    "check_count",
    "raise_limit",
    "share_out",
]

FEWEST_FILES = 8
"""Files of guest memory that each client can use, at least."""
SOCKETS = 2
"""Descriptors of a function's sockets: the listening one and the client's."""
RESERVE = 384
"""For one message with as many descriptors as there can be, 253, for refused clients, and for the process itself."""


class DescriptorsError(Exception):
    """The limit of open files is too low for a topology; the text says what is needed and how to get it."""


class Function(Protocol):
    """See :class:`pviommu.pci.function.PciFunction`."""

    @property
    def descriptors(self) -> int: ...


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one. Returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # the hard limit is above fs.nr_open, which has been lowered since
            return soft
    return hard


def check_count(functions: int, limit: int) -> None:
    """Refuse, before any function is made, a number of them that cannot fit whatever they are."""
    _check(functions, functions * (SOCKETS + FEWEST_FILES * PER_FILE), limit, "at least ")


def share_out(functions: Sequence[Function], limit: int) -> int:
    """How many files of guest memory the client of each function may have. Raises :class:`DescriptorsError`."""
    fixed = sum(SOCKETS + function.descriptors for function in functions)
    _check(len(functions), fixed + len(functions) * FEWEST_FILES * PER_FILE, limit)
    return min(MOST_FILES, (limit - fixed - RESERVE) // (PER_FILE * len(functions)))


def _check(functions: int, needed: int, limit: int, how_sure: str = "") -> None:
    needed += RESERVE
    if needed > limit:
        raise DescriptorsError(
            f"the {functions} functions of the topology need {how_sure}{needed} open files, and the hard limit of this "
            f"process is {limit}: raise it (ulimit -n {needed} as root, LimitNOFILE= of a systemd unit, nofile in "
            "/etc/security/limits.conf), or have fewer endpoints"
        )
