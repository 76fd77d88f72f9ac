import fcntl
import logging
import os

import pytest

from pviommu.memory_file import MemoryFile, is_writable

SIZE = 8192


def memfd(*seals):
    fd = os.memfd_create("file", os.MFD_ALLOW_SEALING)
    os.truncate(fd, SIZE)
    for seal in seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    return fd


def test_a_file_sealed_against_shrinking_is_mapped_whole():
    fd = memfd(fcntl.F_SEAL_SHRINK)
    status = os.fstat(fd)
    file = MemoryFile(fd)
    assert (file.key, file.size, file.writable) == ((status.st_dev, status.st_ino), SIZE, True)
    file.view[SIZE - 4 :] = b"last"
    assert os.pread(fd, 4, SIZE - 4) == b"last"
    file.close()


def test_a_file_that_may_shrink_is_not_mapped_and_the_log_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        file = MemoryFile(memfd())
    assert file.view is None
    assert [record.event for record in caplog.records] == ["memory-not-sealed"]
    file.close()


def test_a_file_opened_for_reading_is_not_mapped_though_it_is_sealed(caplog):
    fd = memfd(fcntl.F_SEAL_SHRINK)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    file = MemoryFile(read_only)
    assert (file.view, file.writable, is_writable(read_only)) == (None, False, False)
    assert caplog.records == []
    file.close()


def test_closing_gives_the_descriptor_and_the_view_back():
    fd = memfd(fcntl.F_SEAL_SHRINK)
    file = MemoryFile(fd)
    view = file.view
    file.close()
    assert file.view is None
    with pytest.raises(ValueError, match="released"):
        view[0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_is_no_memory_is_refused_and_left_open():
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        MemoryFile(reader)
    os.close(reader)
    os.close(writer)
