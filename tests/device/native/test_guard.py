"""Copies of memory that goes while it is copied. Each runs in a process of its own: a mistake would end it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pviommu.native.library import Library

row = pytest.mark.row

START = """
    import faulthandler, mmap, os, signal, sys
    from ctypes import addressof, c_char
    from pathlib import Path
    from pviommu.native import library
    from pviommu.native.memory import NativeGuard

    SIZE = 16 * 4096
    fd = os.memfd_create("ram")
    os.ftruncate(fd, SIZE)
    mapped = mmap.mmap(fd, SIZE)
    address = addressof(c_char.from_buffer(mapped))
    guard = NativeGuard(library.load(Path(sys.argv[1])))
"""


def run(library: Path, text: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(START) + textwrap.dedent(text)
    return subprocess.run(
        [sys.executable, "-c", program, str(library)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def library(native_library: Library) -> Path:
    return Path(native_library._library._name)


@row("server", 58)
def test_a_copy_of_a_file_that_has_shrunk_ends_where_the_file_does(library: Path) -> None:
    outcome = run(
        library,
        """
        mapped[:SIZE] = b"a" * SIZE
        os.ftruncate(fd, 4 * 4096)
        data, there = guard.read(address + 100, SIZE - 100)
        assert there == 4 * 4096 - 100, there
        assert data[:there] == b"a" * there
        assert guard.write(address + 4096, b"b" * (8 * 4096)) == 3 * 4096
        assert guard.write(address + 5 * 4096, b"c") == 0
        assert guard.read(address, 4 * 4096) == (b"a" * 4096 + b"b" * 3 * 4096, 4 * 4096)
        os.ftruncate(fd, SIZE)
        assert guard.read(address, SIZE)[1] == SIZE
        """,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")


@row("server", 58)
def test_all_that_comes_before_what_is_gone_is_copied_however_much_it_is(library: Path) -> None:
    """A copy may go backwards, or by several places at once, so the address of a fault does not tell."""
    outcome = run(
        library,
        """
        END = 12 * 4096
        os.ftruncate(fd, END)
        pattern = bytes(number * 31 % 251 for number in range(SIZE))
        for left in (*range(1, 300), *range(300, END, 997), END):
            for more in (1, 100, 4096):
                mapped[:END] = pattern[:END]
                data, there = guard.read(address + END - left, left + more)
                assert (there, data[:there]) == (left, pattern[END - left : END]), (left, more)
                mapped[:END] = bytes(END)
                assert guard.write(address + END - left, pattern[: left + more]) == left, (left, more)
                assert mapped[END - left : END] == pattern[:left], (left, more)
        """,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")


@row("smmu", 35)
def test_a_word_is_exchanged_if_it_is_what_was_expected_and_if_it_is_there(library: Path) -> None:
    outcome = run(
        library,
        """
        mapped[8:16] = (5).to_bytes(8, "little")
        assert guard.exchange(address + 8, 5, 1 << 63 | 7) == 5
        assert guard.exchange(address + 8, 5, 9) == 1 << 63 | 7
        assert int.from_bytes(mapped[8:16], "little") == 1 << 63 | 7
        os.ftruncate(fd, 4096)
        assert guard.exchange(address + 4096, 0, 1) is None
        """,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")


@row("smmu", 35)
def test_no_exchange_of_another_process_is_lost(library: Path) -> None:
    """Two count in one word, each by exchanges that fail if the other one was in between."""
    outcome = run(
        library,
        """
        COUNT = 50_000
        child = os.fork()
        for _ in range(COUNT):
            seen = guard.exchange(address, 0, 0)
            while (found := guard.exchange(address, seen, seen + 1)) != seen:
                seen = found
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        assert int.from_bytes(mapped[:8], "little") == 2 * COUNT
        """,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")


@row("server", 58)
def test_a_file_that_shrinks_and_grows_under_copies_ends_none_but_those(library: Path) -> None:
    outcome = run(
        library,
        """
        parent, child = os.getpid(), os.fork()
        if not child:
            while os.getppid() == parent:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, SIZE)
            os._exit(0)
        whole = ended = 0
        for _ in range(2_000_000):
            if guard.read(address, SIZE)[1] == SIZE:
                whole += 1
            else:
                ended += 1
            if min(whole, ended) > 200:
                break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(min(whole, ended) > 0)
        """,
    )
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "True\n", "")


@row("server", 58)
@pytest.mark.parametrize("before", ["pass", "guard.read(address, 1)", "os.ftruncate(fd, 0); guard.read(address, 1)"])
def test_a_fault_elsewhere_ends_the_process_as_ever(library: Path, before: str) -> None:
    outcome = run(library, f"{before}\nos.ftruncate(fd, 0)\nmapped[0]")
    assert outcome.returncode == -signal.SIGBUS


@row("server", 58)
def test_a_signal_that_somebody_sent_ends_the_process_as_ever(library: Path) -> None:
    assert run(library, "guard.read(address, 1); os.kill(os.getpid(), signal.SIGBUS)").returncode == -signal.SIGBUS


@row("server", 58)
@pytest.mark.parametrize("again", ["", "guard.read(address, 1)"])
@pytest.mark.parametrize(
    "order", ["faulthandler.enable(); guard.read(address, 1)", "guard.read(address, 1); faulthandler.enable()"]
)
def test_another_handler_still_hears_of_faults_elsewhere(library: Path, order: str, again: str) -> None:
    """Whichever was installed first, and whether or not this one was installed a second time over it."""
    outcome = run(library, f"{order}\n{again}\nos.ftruncate(fd, 0)\nmapped[0]")
    assert outcome.returncode == -signal.SIGBUS
    assert outcome.stderr.count("Fatal Python error: Bus error") == 1


@row("server", 58)
def test_a_copy_is_guarded_though_another_handler_came_later(library: Path) -> None:
    outcome = run(
        library,
        """
        guard.read(address, 1)
        faulthandler.enable()
        os.ftruncate(fd, 0)
        assert guard.read(address, SIZE)[1] == 0
        """,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")


@row("server", 58)
def test_an_ignored_signal_stays_ignored(library: Path) -> None:
    outcome = run(
        library,
        """
        signal.signal(signal.SIGBUS, signal.SIG_IGN)
        guard.read(address, 1)
        os.kill(os.getpid(), signal.SIGBUS)
        print("alive")
        """,
    )
    assert (outcome.returncode, outcome.stdout) == (0, "alive\n")


@row("server", 58)
def test_threads_that_copy_at_once_each_end_their_own(library: Path) -> None:
    """Called without the interpreter's lock, so that they really do."""
    outcome = run(
        library,
        """
        import ctypes, threading
        copy = ctypes.CDLL(sys.argv[1]).pv_guarded_copy
        copy.restype, copy.argtypes = ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
        os.ftruncate(fd, 4096)
        found = []
        def work(pages):
            room = ctypes.create_string_buffer(SIZE)
            found.append({copy(room, address + (0 if pages else 4096), SIZE) for _ in range(2000)} == {pages * 4096})
        threads = [threading.Thread(target=work, args=(n % 2,)) for n in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(found)
        """,
    )
    assert (outcome.returncode, outcome.stdout) == (0, f"{[True] * 8}\n")
