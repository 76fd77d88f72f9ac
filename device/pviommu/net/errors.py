"""Errors of the host's network, in words that say what failed and what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

__all__ = ["NEEDS_ROOT", "ExplainedError", "explained"]

NEEDS_ROOT = "this needs root, or a network of the server's own: `pviommu serve --unshare-net`"


class ExplainedError(OSError):
    """One whose text says what failed, and what to do."""


@contextlib.contextmanager
def explained(what: str, advice: Mapping[int, str]) -> Iterator[None]:
    """Name ``what`` failed, with the advice for that error, unless something inside has done so."""
    try:
        yield
    except ExplainedError:
        raise
    except OSError as error:
        text = os.strerror(error.errno) if error.errno else str(error)
        hint = advice.get(error.errno or 0)
        raise ExplainedError(error.errno, what + text + (f" ({hint})" if hint else "")) from error
