import errno
import fcntl
import logging
import os

import pytest

from pviommu.dma.memory_file import MemoryFiles
from vfio_user.memory_kind import NotMemoryError

SIZE = 8192


def memfd(*seals, flags=0):
    fd = os.memfd_create("file", os.MFD_ALLOW_SEALING | flags)
    os.truncate(fd, SIZE)
    for seal in seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    return fd


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def mappings():
    with open("/proc/self/maps") as lines:
        return sum("memfd:file" in line for line in lines)


@pytest.fixture
def files():
    before = descriptors(), mappings()
    files = MemoryFiles()
    yield files
    assert not files
    assert (descriptors(), mappings()) == before


def test_a_file_sealed_against_shrinking_is_mapped_whole(files):
    fd = memfd(fcntl.F_SEAL_SHRINK)
    status = os.fstat(fd)
    file = files.open(fd, True)
    assert (file.key, file.size) == ((status.st_dev, status.st_ino), SIZE)
    files.area(file).view[SIZE - 4 :] = b"last"
    assert os.pread(fd, 4, SIZE - 4) == b"last"
    files.release(file)


def test_a_file_that_may_shrink_is_not_mapped_and_the_log_says_so(files, caplog):
    with caplog.at_level(logging.WARNING):
        file = files.open(memfd(), True)
        assert files.area(file) is None
    assert [record.event for record in caplog.records] == ["memory-not-sealed"]
    files.release(file)


@pytest.mark.row("server", 56)
def test_it_says_so_once_a_file_until_the_last_client_is_gone(files, caplog):
    fd, other = memfd(), memfd()

    def use(which):
        file = files.open(os.dup(which), True)
        files.area(file)
        files.release(file)

    for which in (fd, fd, other, fd, other):
        use(which)
    assert len(caplog.records) == 2
    files.disconnected()
    use(fd)
    assert len(caplog.records) == 3
    os.close(fd)
    os.close(other)


@pytest.mark.row("server", 51)
def test_a_file_is_open_and_mapped_once_however_often_it_is_announced(files):
    fd = memfd(fcntl.F_SEAL_SHRINK)
    open_before = descriptors()
    first = files.open(os.dup(fd), True)
    first.users += 1
    area = files.area(first)
    held = descriptors()
    for _ in range(100):
        again = files.open(os.dup(fd), True)
        again.users += 1
        assert files.area(again) is area
    assert descriptors() == held <= open_before + 2  # mmap keeps one of its own
    assert mappings() == 1
    files.release(first, 100)
    assert mappings() == 1
    files.release(first, 1)
    assert (descriptors(), mappings()) == (open_before, 0)
    os.close(fd)


def test_a_file_opened_for_reading_is_another_one_and_no_place_to_write_to(files):
    fd = memfd(fcntl.F_SEAL_SHRINK)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    file, other = files.open(fd, True), files.open(os.dup(read_only), False)
    assert other is not file
    with pytest.raises(NotMemoryError, match="opened for reading only"):
        files.open(read_only, True)
    files.release(file)
    files.release(other)


@pytest.mark.row("server", 53)
def test_a_file_that_has_grown_is_mapped_anew_and_its_first_mapping_stays(files):
    fd = memfd(fcntl.F_SEAL_SHRINK)
    file = files.open(os.dup(fd), True)
    file.users += 1
    area = files.area(file)
    os.ftruncate(fd, 2 * SIZE)
    assert files.open(os.dup(fd), True) is file
    assert file.size == 2 * SIZE
    grown = files.area(file)
    grown.view[-1:] = b"x"
    area.view[:1] = b"y"
    assert (os.pread(fd, 1, 2 * SIZE - 1), grown.view[:1].tobytes()) == (b"x", b"y")
    files.release(file, 1)
    os.close(fd)


def test_a_file_that_grows_all_the_time_is_refused_in_the_end(files):
    fd = memfd(fcntl.F_SEAL_SHRINK)
    file = files.open(os.dup(fd), True)
    file.users += 1
    files.area(file)

    def grow(pages):
        os.ftruncate(fd, pages * 4096)
        files.open(os.dup(fd), True)
        files.area(file)

    for pages in range(3, 10):
        grow(pages)
    with pytest.raises(NotMemoryError, match="has grown 8 times"):
        grow(10)
    files.release(file, 1)
    os.close(fd)


def test_a_file_that_cannot_be_mapped_says_why(files):
    fd = os.memfd_create("file", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 62)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    file = files.open(fd, True)
    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        files.area(file)
    assert caught.value.errno == errno.ENOMEM
    files.release(file)
