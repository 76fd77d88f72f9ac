"""Counts accesses that leave the guest, from QEMU's trace events, in a phase of their own."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from qemu.qmp import QMPClient, QMPError

from ..lab.problems import RunError

__all__ = ["Traces", "count_events", "trace_arguments"]

_EVENT = re.compile(r"(?:\d+@\d+\.\d+:)?(\w+)(?: |$)")
_ANSWER_SECONDS = 10.0
_QUIET_EVENT = "trace_backend_is_on_but_nothing_matches*"


def trace_arguments(log: Path) -> list[str]:
    """QEMU arguments that send trace events to ``log``, none of them switched on yet."""
    # -d trace:... also switches the log backend on, without which events enabled later would go nowhere.
    return ["-D", str(log).replace("%", "%%"), "-d", f"trace:{_QUIET_EVENT}"]


def count_events(lines: Iterable[str], events: Sequence[str]) -> Counter[str]:
    """How often each of ``events`` occurs in the lines of a trace log; other lines are passed over."""
    wanted = frozenset(events)
    found: Counter[str] = Counter()
    for line in lines:
        match = _EVENT.match(line)
        if match and match[1] in wanted:
            found[match[1]] += 1
    return found


class Traces:
    """The trace events of one running QEMU: ``socket`` is its QMP socket, ``log`` its trace log."""

    def __init__(self, socket: Path, log: Path, events: Sequence[str]) -> None:
        self._socket = socket
        self._log = log
        self._events = events

    def switch(self, on: bool) -> None:
        """Enable or disable the events. Raises RunError when QEMU refuses or is gone."""
        try:
            asyncio.run(self._switch(on))
        except TimeoutError:
            raise RunError(f"QEMU's trace events cannot be switched: no answer in {_ANSWER_SECONDS:.0f} s") from None
        except (QMPError, OSError) as problem:
            raise RunError(f"QEMU's trace events cannot be switched: {problem}") from problem

    def counts(self) -> Counter[str]:
        """How often each event has occurred so far."""
        if not self._log.is_file():
            return Counter()
        with self._log.open(errors="replace") as lines:
            return count_events(lines, self._events)

    async def _switch(self, on: bool) -> None:
        client = QMPClient("pviommu bench")
        async with asyncio.timeout(_ANSWER_SECONDS):
            await client.connect(str(self._socket))
            try:
                for name in self._events:
                    await client.execute("trace-event-set-state", {"name": name, "enable": on})
            finally:
                await client.disconnect()
