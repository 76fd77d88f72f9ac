"""What /proc says of a process."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["ProcessStatus", "status_of"]


class ProcessStatus(NamedTuple):
    """One that exists. With its number, ``started`` tells it from every other one since the host was started."""

    has_ended: bool
    """whether all its threads have, and only its parent has not heard of it"""
    started: int
    """when, in clock ticks after the start of the host"""


def status_of(pid: int) -> ProcessStatus | None:
    """None if nothing is to be found out. The format: proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return ProcessStatus(has_ended=fields[0] in (b"Z", b"X") and int(fields[17]) <= 1, started=int(fields[19]))
