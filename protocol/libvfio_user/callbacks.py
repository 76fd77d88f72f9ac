"""Python code that C calls: an exception becomes an errno and a log line, Ctrl-C waits until C has returned."""

from __future__ import annotations

import ctypes
import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Callbacks"]

T = TypeVar("T")


class Callbacks:
    """Runs the callbacks of one device."""

    def __init__(self, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self._log = log
        self._running: list[str] = []
        self._raised: BaseException | None = None

    @property
    def innermost(self) -> str | None:
        """The callback that is running, None outside of all."""
        return self._running[-1] if self._running else None

    def run(self, name: str, call: Callable[[], T], failed: T) -> T:
        """What ``call`` gives; if it raises, ``failed``, with errno for C.

        That is the errno of an :class:`OSError`, which is how a callback refuses, and EIO for any other exception,
        which is logged with its traceback. One that is no :class:`Exception` (Ctrl-C) is raised by :meth:`finish`.
        """
        self._running.append(name)
        try:
            return call()
        except OSError as error:
            self._log.warning("%s refused: %s", name, error)
            number = error.errno or errno.EIO
        except Exception:
            self._log.exception("%s failed", name)
            number = errno.EIO
        except BaseException as error:
            self._raised = error
            number = errno.EINTR
        finally:
            self._running.pop()
        ctypes.set_errno(number)
        return failed

    @contextmanager
    def finish(self) -> Iterator[None]:
        """Around a call of C: raises afterwards what a callback could not raise through C."""
        yield
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
