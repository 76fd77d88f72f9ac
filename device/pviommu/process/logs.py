"""The server's log: text for people, one JSON object per line for programs, to standard error or a file.

It is rate-limited (:mod:`.log_limits`), and logging never waits for a reader (:mod:`.log_writer`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exit_status import ExitStatus
from .log_limits import Limiter
from .log_writer import LogWriter

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["JsonFormatter", "Log", "writing"]

log = logging.getLogger(__name__)

_STDERR = 2
_CRASH = {"event": "crash"}


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "event", "message"}`` and whatever a record carries in ``fields``.

    ``event`` names the kind of record, for programs; records without one have ``"event": "message"``.
    """

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class Log(logging.Handler):
    """Where records go while :func:`writing`."""

    def __init__(self, form: str, target: int | Path, limiter: Limiter | None) -> None:
        """Raises :class:`OSError` for a file that cannot be opened."""
        super().__init__()
        self._json = form == "json"
        self.setFormatter(
            JsonFormatter() if self._json else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        )
        self._limiter = limiter
        self._has_ended = False
        self._to_file = isinstance(target, Path)
        self._writer = LogWriter(target, self._notice, self._sum_up)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, unless there were too many like it; of those of level debug somebody wants all."""
        try:
            if self._limiter is None or record.levelno <= logging.DEBUG or self._limiter.admits(record):
                self._writer.put(self._line(record))
        except Exception as error:  # the library's own way is to write to standard error, which may block
            self._writer.put(self._notice(f"a record of {record.name} cannot be formatted: {record.msg!r}: {error!r}"))

    def reopen(self) -> None:
        """Go on in a new file of the same name. May be called by a signal handler."""
        self._writer.reopen()

    def flush(self) -> None:
        """Have written what was logged so far, if its reader takes it in a moment."""
        self._writer.flush()

    def fail(self, text: str) -> None:
        """Say why the process ends, on standard error in any case: one line."""
        if self._json or self._to_file:
            log.critical("%s", text, extra={"event": "failed"})
        if not self._json or self._to_file:
            writer = LogWriter(_standard_error(), self._notice) if self._to_file else self._writer
            writer.put(f"pviommu: {text}\n".encode(errors="backslashreplace"))
            if writer is not self._writer:
                writer.close()

    def close(self) -> None:
        """Sum up what was left out, and write all that a reader takes in a moment. Once: the interpreter's end closes
        the handlers of logs anew.
        """
        if self._has_ended:
            return
        self._has_ended = True
        if self._limiter:
            for record in self._limiter.due(at_the_end=True):
                self._writer.put(self._line(record))
        self._writer.close()
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _notice(self, text: str) -> bytes:
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "%s", (text,), None)
        record.event = "log"
        return self._line(record)

    def _sum_up(self) -> float | None:
        if self._limiter is None:
            return None
        self.acquire()
        try:
            for record in self._limiter.due():
                self._writer.put(self._line(record))
            return self._limiter.seconds_left()
        finally:
            self.release()


@contextlib.contextmanager
def writing(level: str, form: str, path: Path | None = None) -> Iterator[Log]:
    """Log from ``level`` up, as ``text`` or ``json``, to standard error or the file ``path``.

    At level ``debug`` no record is left out. Warnings and exceptions that nobody catches are records too; one that
    leaves the block is logged and ends the process with status 1. Raises :class:`OSError` for a file that cannot be
    opened.
    """
    handler = Log(form, path or _standard_error(), None if level == "debug" else Limiter())
    root = logging.getLogger()
    before = root.handlers[:], root.level, threading.excepthook, sys.unraisablehook
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    threading.excepthook, sys.unraisablehook = _log_thread, _log_unraisable
    try:
        yield handler
    except KeyboardInterrupt:
        raise SystemExit(ExitStatus.INTERRUPTED) from None
    except Exception:
        log.critical("the server failed", exc_info=True, extra=_CRASH)
        raise SystemExit(ExitStatus.FAILED) from None
    finally:
        logging.captureWarnings(False)
        root.handlers[:], level_before, threading.excepthook, sys.unraisablehook = before
        root.setLevel(level_before)
        handler.close()


def _log_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None:
        name = failed.thread.name if failed.thread else "?"
        log.critical("thread %s failed", name, exc_info=failed.exc_value, extra=_CRASH)


def _log_unraisable(failed: UnraisableHookArgs) -> None:
    what = failed.err_msg or "exception ignored in"
    log.error("%s %r", what, failed.object, exc_info=failed.exc_value or True, extra={"event": "unraisable"})


def _standard_error() -> int:
    """The descriptor; one that was closed at the start is filled, or it would soon be a file that is not for logs."""
    try:
        os.fstat(_STDERR)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != _STDERR:
            os.dup2(null, _STDERR)
            os.close(null)
    return _STDERR
