"""What the guest may ask of the host while its tests run: to stop, or to kill, what it depends on.

A request is the line ``# lab: request NAME [ARGUMENT]`` of the guest's report; the answer, ``done NAME`` or
``failed NAME reason``, goes back on the same channel:

=====================  ==================================================================================
``stop-server``        the server is stopped (SIGSTOP) before the answer, and continued SECONDS after it
``freeze``             the server and, :data:`LAG` later, the guest itself are stopped; SECONDS later the guest
                       goes on, and reads the answer then; the server goes on :data:`HEAD_START` after it
``kill-server``        the server is dead (SIGKILL) before the answer; that it is gone is no problem of the run
``rules-load``         the rules of the scenario that the run plays are loaded before the answer
``case``               of a sweep: the rule of the next case is loaded before the answer; refused: there is none for
                       this guest
``rules-unload``       the rules of either are taken away, and what they did is noted, before the answer
``output-end``         all BYTES that the user's program wrote have come before the answer
=====================  ==================================================================================
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

__all__ = ["HEAD_START", "LONGEST_STOP", "Requests", "Target"]

LONGEST_STOP = 60.0
"""Seconds for which a guest may have the server stopped."""

HEAD_START = 0.3
"""Seconds in which a guest that was frozen runs alone."""

LAG = 0.1
"""Seconds in which a guest that is to be frozen finds its server stopped: so that somebody waits for it."""

_REQUEST = re.compile(r"# lab: request(?:\s+(\S+))?(?:\s+(.*?))?\s*$")
_LONGEST_QUOTE = 80


class Pausable(Protocol):
    """The guest, as far as requests reach it; each method raises ProcessLookupError when it is gone."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Target(Pausable, Protocol):
    """The server, likewise."""

    def kill(self) -> None: ...


class _RefusedError(Exception):
    """A request that is not carried out, with the reason that the guest is told."""


class Requests:
    """Carries out one guest's requests and remembers what is still to be done for them.

    ``output_came`` waits for so many bytes of the user's program and says whether they came; None: there is no program.
    ``rules`` has what ``rules-load``, or of a sweep ``case``, and ``rules-unload`` do; each says why it cannot be done.

    Whoever reads the guest's report hands each line to :meth:`take`, and calls :meth:`ring` once :attr:`due` has come.
    """

    def __init__(
        self,
        server: Target,
        guest: Pausable,
        answer: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        output_came: Callable[[int], bool] | None = None,
        rules: Mapping[str, Callable[[], str | None]] | None = None,
    ) -> None:
        self._server = server
        self._guest = guest
        self._frozen = False
        self._answer = answer
        self._clock = clock
        self._output_came = output_came
        self._rules = rules or {}
        self._due: float | None = None

    @property
    def due(self) -> float | None:
        """When :meth:`ring` wants to be called, on the clock; None while nothing is pending."""
        return self._due

    def take(self, line: str) -> bool:
        """Carry ``line`` out and answer it if it is a request; whether it is one."""
        match = _REQUEST.match(line.strip())
        if match is None:
            return False
        name, argument = (match[1] or "")[:_LONGEST_QUOTE], (match[2] or "")[:_LONGEST_QUOTE]
        try:
            self._carry_out(name, argument)
        except _RefusedError as refusal:
            self._answer(f"failed {name or '?'} {refusal}")
        except ProcessLookupError:
            self._answer(f"failed {name} the server is not running")
        else:
            self._answer(f"done {name}")
        return True

    def ring(self) -> None:
        """Continue guest or server if its time has come."""
        if self._due is None or self._clock() < self._due:
            return
        if self._frozen:
            self._thaw()
            self._due = self._clock() + HEAD_START
        else:
            self.finish()

    def finish(self) -> None:
        """Do at once what is pending: continue who is still stopped."""
        self._thaw()
        if self._due is not None:
            self._due = None
            try:
                self._server.resume()
            except ProcessLookupError:
                return  # it ended meanwhile, which whoever stops it reports

    def _thaw(self) -> None:
        if self._frozen:
            self._frozen = False
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile, which whoever reads its report sees
                self._guest.resume()

    def _carry_out(self, name: str, argument: str) -> None:
        if name == "stop-server":
            seconds = _seconds(argument)
            self._server.pause()
            self._due = self._clock() + seconds
        elif name == "freeze":
            seconds = _seconds(argument)
            self._server.pause()
            time.sleep(LAG)
            self._guest.pause()
            self._frozen = True
            self._due = self._clock() + seconds
        elif name == "kill-server":
            if argument:
                raise _RefusedError(f"it takes no argument, not {argument}")
            self._server.kill()
            self._due = None
        elif name == "output-end" and self._output_came is not None:
            if not self._output_came(_bytes(argument)):
                raise _RefusedError(f"not all of {argument} bytes came")
        elif name in self._rules and not argument:
            if reason := self._rules[name]():
                raise _RefusedError(reason)
        elif name in self._rules:
            raise _RefusedError(f"it takes no argument, not {argument}")
        else:
            known = ["stop-server SECONDS", "freeze SECONDS", "kill-server", *self._rules]
            known += ["output-end BYTES"] if self._output_came is not None else []
            raise _RefusedError(f"no such request: {', '.join(known)}")


def _bytes(argument: str) -> int:
    if re.fullmatch(r"\d{1,18}", argument) is None:
        raise _RefusedError(f"bytes {argument or 'missing'}: give a number")
    return int(argument)


def _seconds(argument: str) -> float:
    match = re.fullmatch(r"\d{1,4}(\.\d{1,3})?", argument)
    seconds = float(match[0]) if match else 0.0
    if not 0 < seconds <= LONGEST_STOP:
        raise _RefusedError(f"seconds {argument or 'missing'}: give a number above 0, at most {LONGEST_STOP:g}")
    return seconds
