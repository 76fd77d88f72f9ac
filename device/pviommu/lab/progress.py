"""Progress lines, one per step: updated in place on a terminal, elsewhere at every fifth of the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Writes ``[2/5] downloading 155 packages, 150 MB ... 40 %`` to ``stream``.

    A step is opened with :meth:`step`, moved with :meth:`update` (a fraction, 0 to 1) or :meth:`count`, and closed with
    :meth:`done`.
    """

    def __init__(
        self, stream: TextIO, steps: int, *, clock: Callable[[], float] = time.monotonic, quiet: bool = False
    ) -> None:
        self._stream = stream
        self._steps = steps
        self._clock = clock
        self._quiet = quiet
        self._terminal = stream.isatty()
        self._number = 0
        self._text = ""
        self._started = 0.0
        self._shown = 0
        self._open = False

    def step(self, text: str) -> None:
        """Begin the next step; ``text`` says what is being done and how much of it there is."""
        self._number += 1
        self._open = True
        self._text = text
        self._started = self._clock()
        self._shown = 0
        self._write("...", last=not self._terminal)

    def skip(self, steps: int) -> None:
        """Pass over ``steps`` for which there is nothing to do, so that the numbers of the others stay the same."""
        self._number += steps

    def update(self, fraction: float) -> None:
        """Show how far the open step is. Cheap to call often: only visible changes are written."""
        self._show(fraction, "")

    def _show(self, fraction: float, detail: str) -> None:
        percent = int(100 * min(max(fraction, 0.0), 1.0))
        grain = 1 if self._terminal else 20
        if percent // grain <= self._shown // grain:
            return
        self._shown = percent
        self._write(f"... {percent} %{detail}", last=not self._terminal)

    def count(self, done: int, total: int, what: str) -> None:
        """As :meth:`update`, and show how many of ``total`` are done and about how long the others will take."""
        left = (self._clock() - self._started) * (total - done) / max(done, 1)
        self._show(done / max(total, 1), f", {done} of {total} {what}, about {_duration(left)} left")

    def done(self, detail: str = "") -> None:
        """Close the open step with its duration and, if given, a detail."""
        seconds = self._clock() - self._started
        self._write(f"... done in {seconds:.1f} s{', ' + detail if detail else ''}", last=True)
        self._open = False

    def close(self) -> None:
        """End the line of a step that was left open, so that what follows starts on a line of its own."""
        if self._open and self._terminal and not self._quiet:
            self._stream.write("\n")
            self._stream.flush()
        self._open = False

    def _write(self, tail: str, *, last: bool) -> None:
        if self._quiet:
            return
        line = f"[{self._number}/{self._steps}] {self._text} {tail}"
        prefix, end = ("\r\x1b[K", "\n" if last else "") if self._terminal else ("", "\n")
        self._stream.write(f"{prefix}{line}{end}")
        self._stream.flush()


def _duration(seconds: float) -> str:
    """``seconds`` in a unit that suits a reader."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
