"""The errors carry their number and read well."""

from __future__ import annotations

import errno

from vfio_user import RemoteError, RequestError


def test_request_error_carries_errno_and_reads_as_its_text() -> None:
    error = RequestError(errno.ENOENT, "no map there")
    assert (error.errno, str(error)) == (errno.ENOENT, "no map there")


def test_remote_error_is_an_oserror_that_names_the_request() -> None:
    error = RemoteError(errno.EINVAL, "DMA_MAP")
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL
    assert "DMA_MAP refused: Invalid argument" in str(error)
