"""Messages in shared memory, between a server and a client that is played here."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from pviommu.interfaces.iommufd import DeviceConfig, System
from pviommu.vfio_run.boxes import BOXES, NOTHING, OTHERS, Boxes, Taken, shared_file
from pviommu.vfio_run.running import MAPS_REGISTERS, build_library
from pviommu.vfio_run.server import Answer, Kind, Server

from .test_running import cache, run
from .test_server import asked, at, heard, message, number_of, opened, settle, unpacked

__all__ = ["cache"]

SIZE = 640
MESSAGE = struct.Struct("<IIQQQII")
SLEEPS, WATCHED, REPLY, BEHIND = 40, 48, 64, 88
WATCH = 0x100
FD = -1


@pytest.fixture
def boxes(cache: Path, tmp_path: Path) -> Iterator[Boxes]:
    shared_file(tmp_path / "socket").touch()
    made = Boxes(build_library({**os.environ, "XDG_CACHE_HOME": str(cache)}), tmp_path / "socket")
    yield made
    made.close()


class Memory:
    """What a program sees of the file."""

    def __init__(self, path: Path) -> None:
        with shared_file(path).open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.map.close()

    def put(
        self, box: int, sequence: int, *, kind: int = 1, token: int = 0, connection: int = 0, behind: bytes = b""
    ) -> None:
        """A message, its sequence at last."""
        start = box * SIZE
        self.map[start + BEHIND : start + BEHIND + len(behind)] = behind
        MESSAGE.pack_into(self.map, start, kind, 0x3B64, 0, 0, token, connection, len(behind))
        struct.pack_into("<Q", self.map, start + 16, sequence)

    def word(self, box: int, offset: int) -> int:
        return int(struct.unpack_from("<I", self.map, box * SIZE + offset)[0])

    def sleep(self, box: int, sequence: int) -> None:
        struct.pack_into("<Q", self.map, box * SIZE + SLEEPS, sequence)

    def reply(self, box: int) -> tuple[int, int, int]:
        return unpacked(self.map[box * SIZE + REPLY : box * SIZE + REPLY + 16])


def test_a_message_is_taken_once(boxes: Boxes, tmp_path: Path) -> None:
    with Memory(tmp_path / "socket") as memory:
        assert boxes.take(FD, 0) == NOTHING, "no box is watched"
        boxes.watch(5)
        boxes.watch(7)
        assert memory.word(5, WATCHED) == 1
        memory.put(5, 11, connection=5, behind=b"hello")
        memory.put(6, 12)
        taken = boxes.take(FD, 1000)
        assert taken == Taken(5, 1, 0x3B64, 0, 11, 0, 5, b"hello")
        assert boxes.take(FD, 1000) == NOTHING
        memory.put(5, 13)
        assert boxes.rest() == [Taken(5, 1, 0x3B64, 0, 13, 0, 0, b"")]
        assert memory.word(5, WATCHED) == memory.word(7, WATCHED) == 0
        assert boxes.look(6) == Taken(6, 1, 0x3B64, 0, 12, 0, 0, b"")
        assert boxes.look(6) is None


def test_a_size_that_no_box_has_is_cut(boxes: Boxes, tmp_path: Path) -> None:
    with Memory(tmp_path / "socket") as memory:
        memory.put(1, 5)
        struct.pack_into("<I", memory.map, SIZE + 36, 1 << 31)
        taken = boxes.look(1)
    assert taken is not None
    assert len(taken.rest) == 256


def test_who_waits_is_not_kept_from_others(boxes: Boxes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        boxes.watch(1)
        theirs.send(b"!")
        assert boxes.take(ours.fileno(), 10_000_000_000) == OTHERS


def test_who_asks_fast_does_not_keep_sockets_waiting(boxes: Boxes, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Memory(tmp_path / "socket") as memory:
        boxes.watch(1)
        theirs.send(b"!")
        found: list[Taken | int] = []
        for sequence in range(1, 20):
            memory.put(1, sequence)
            found.append(boxes.take(ours.fileno(), 1000))
    assert OTHERS in found
    assert sum(isinstance(taken, Taken) for taken in found) > 10


def test_a_message_that_comes_meanwhile_is_taken(boxes: Boxes, tmp_path: Path) -> None:
    with Memory(tmp_path / "socket") as memory:
        boxes.watch(3)
        later = threading.Timer(0.01, memory.put, (3, 9))
        later.start()
        taken = boxes.take(FD, 10_000_000_000)
        later.join()
    assert isinstance(taken, Taken)
    assert taken.sequence == 9


def test_only_who_sleeps_is_told_by_the_socket(boxes: Boxes, tmp_path: Path) -> None:
    with Memory(tmp_path / "socket") as memory:
        assert not boxes.answer(2, Answer.DONE, -5, 20, b"data")
        assert memory.reply(2) == (0, -5, 20)
        memory.sleep(2, 21)
        assert not boxes.answer(2, Answer.DONE, 0, 20, b""), "it is the next message that is slept for"
        assert boxes.answer(2, Answer.DONE, 0, 21, b"")
        assert not boxes.answer(2, Answer.DONE, 0, 21, b""), "once"


def test_not_more_than_a_few_boxes_are_watched(boxes: Boxes, tmp_path: Path) -> None:
    with Memory(tmp_path / "socket") as memory:
        for box in range(100):
            boxes.watch(box)
        assert len(boxes.watched) == 16
        assert [box for box in range(BOXES) if memory.word(box, WATCHED)] == list(range(84, 100))


def test_who_asks_fast_does_not_keep_others_waiting(boxes: Boxes, tmp_path: Path) -> None:
    with Memory(tmp_path / "socket") as memory:
        for box in (5, 6, 7):
            boxes.watch(box)
            memory.put(box, box)
        order = []
        for sequence in range(10, 16):
            taken = boxes.take(FD, 1000)
            assert isinstance(taken, Taken)
            order.append(taken.box)
            memory.put(taken.box, sequence)
    assert sorted(order[:3]) == sorted(order[3:]) == [5, 6, 7]


def test_what_was_put_into_a_box_that_is_given_up_is_taken(boxes: Boxes, tmp_path: Path) -> None:
    """Who has put it there has seen that the box was watched, and waits."""
    with Memory(tmp_path / "socket") as memory:
        for box in range(16):
            assert boxes.watch(box) is None
        memory.put(0, 7)
        assert boxes.watch(3) is None
        taken = boxes.watch(16)
        assert taken is not None
        assert (taken.box, taken.sequence) == (0, 7)
        assert memory.word(0, WATCHED) == 0
        assert boxes.watch(17) is None


def test_a_box_that_is_never_empty_can_be_given_up(
    boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Memory(tmp_path / "socket") as memory:
        take, sequences = vars(boxes)["_take"], iter(range(1, 100))

        def take_and_put(*arguments: object) -> object:
            memory.put(4, next(sequences, 0))
            return take(*arguments)

        monkeypatch.setattr(boxes, "_take", take_and_put)
        boxes.watch(4)
        assert [taken.sequence for taken in boxes.rest()] == [1]


def test_a_reply_ends_where_its_box_does(boxes: Boxes, tmp_path: Path) -> None:
    with Memory(tmp_path / "socket") as memory:
        boxes.answer(2, Answer.DONE, 0, 20, b"\xff" * 4096)
        assert not any(memory.map[3 * SIZE : 10 * SIZE])
        assert not any(memory.map[3 * SIZE - 40 : 3 * SIZE])


# With a server


@pytest.fixture
def server(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    library = build_library({**os.environ, "XDG_CACHE_HOME": str(cache)})
    made = Server(System([DeviceConfig("nic")]), tmp_path / "socket", library=library)
    yield made
    made.close()


def token_of(server: Server, sock: socket.socket) -> int:
    sock.send(message(Kind.HELLO))
    settle(server)
    while len(reply := sock.recv(64)) == 16:
        assert unpacked(reply)[0] == Answer.READY
    return int(struct.unpack("<IiQQ", reply)[3])


def test_a_request_comes_in_a_box_and_is_answered_there(server: Server, tmp_path: Path) -> None:
    structure, place = at(struct.pack("<III", 12, 0, 0))
    with opened(server, tmp_path / "socket", "/dev/iommu") as sock, Memory(tmp_path / "socket") as memory:
        token, number = token_of(server, sock), number_of(sock)
        assert token == token_of(server, sock), "one for a process"
        box = number % BOXES
        memory.put(box, 40, token=token, connection=number)
        sock.send(message(Kind.RING))
        settle(server)
        assert memory.reply(box) == (Answer.DONE, 0, 40)
        memory.put(box, 41, token=token, connection=number, behind=bytes(structure))
        struct.pack_into("<IIQ", memory.map, box * SIZE, Kind.REQUEST, 0x3B81, place)
        memory.sleep(box, 41)
        sock.send(message(Kind.RING))
        settle(server)
        assert unpacked(heard(sock)) == (Answer.DONE, 0, 41), "who sleeps has it by the socket"
        assert struct.unpack("<III", structure) == (12, 0, 1)


def test_what_is_written_back_goes_with_the_answer(server: Server, tmp_path: Path) -> None:
    """Of a request that creates nothing: there is nothing to undo if the program cannot write it."""
    option = struct.pack("<IIHHIQ", 24, 0, 1, 0, 0, 99)
    structure, place = at(option)
    with opened(server, tmp_path / "socket", "/dev/iommu") as sock, Memory(tmp_path / "socket") as memory:
        token, number = token_of(server, sock), number_of(sock)
        box = number % BOXES
        memory.put(box, 60, token=token, connection=number, behind=option)
        struct.pack_into("<IIQ", memory.map, box * SIZE, Kind.REQUEST, 0x3B87, place)
        sock.send(message(Kind.RING))
        settle(server)
        assert memory.reply(box) == (Answer.DONE, 0, 60)
        assert memory.word(box, REPLY + 16) == 24
        start = box * SIZE + BEHIND + 256
        assert memory.map[start : start + 24] == struct.pack("<IIHHIQ", 24, 0, 1, 0, 0, 0)
        assert structure == option, "by the library, not here"
        assert asked(server, sock, message(Kind.REQUEST, 0x3B87, place, option)) == (Answer.DONE, 0)
        assert structure[16:] == bytes(8), "who asks by the socket finds it written"


@pytest.mark.usefixtures("cache")
def test_what_cannot_be_written_back_is_a_bad_address_however_it_is_asked() -> None:
    run("""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        memory = mmap.mmap(-1, 4096)
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        option = struct.pack("<IIHHIQ", 24, 0, 1, 0, 0, 99)
        memory[:24] = option
        fd = opened()
        for number in range(300):
            assert libc.mprotect(place, 4096, mmap.PROT_READ) == 0
            assert libc.ioctl(fd, 0x3B87, place) == -1
            assert ctypes.get_errno() == errno.EFAULT
            assert memory[:24] == option
            assert libc.mprotect(place, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == 0
            assert libc.ioctl(fd, 0x3B87, place) == 0
            assert memory[16:24] == bytes(8)
            memory[:24] = option
            assert libc.ioctl(fd, 0x3B87, 8) == -1
            assert ctypes.get_errno() == errno.EFAULT
    """)


def test_a_process_says_hello_before_it_answers_what_it_was_asked(server: Server, tmp_path: Path) -> None:
    _kept, place = at(struct.pack("<IIiIQ", 24, 0, 77, 0, 0))
    path = tmp_path / "socket"
    with opened(server, path, "/dev/iommu") as iommu, opened(server, path, "/dev/vfio/devices/vfio0") as device:
        assert asked(server, device, message(Kind.REQUEST, 0x3B76, place)) == (Answer.NEED_FD, 77)
        assert token_of(server, device)
        assert asked(server, device, message(Kind.IS, 0, number_of(iommu))) == (Answer.DONE, 0)


@pytest.mark.parametrize(
    ("wrong", "answer", "value"),
    [("token", Answer.STRANGER, 0), ("connection", Answer.DONE, -5), ("box", Answer.DONE, -5)],
)
def test_strangers_are_told_so(server: Server, tmp_path: Path, wrong: str, answer: int, value: int) -> None:
    with opened(server, tmp_path / "socket", "/dev/iommu") as sock, Memory(tmp_path / "socket") as memory:
        token, number = token_of(server, sock), number_of(sock)
        box = number % BOXES
        memory.put(
            box,
            50,
            token=token ^ (wrong == "token") << 5,
            connection=number + {"connection": BOXES, "box": 1}.get(wrong, 0),
        )
        sock.send(message(Kind.RING))
        settle(server)
        assert memory.reply(box) == (answer, value, 50)


def test_what_is_no_message_ends_its_file(server: Server, tmp_path: Path) -> None:
    with opened(server, tmp_path / "socket", "/dev/iommu") as sock, Memory(tmp_path / "socket") as memory:
        token, number = token_of(server, sock), number_of(sock)
        memory.put(number % BOXES, 50, kind=77, token=token, connection=number)
        sock.send(message(Kind.RING))
        settle(server)
        assert number not in server.connections


def test_the_box_of_a_busy_program_is_watched_until_it_rests(server: Server, tmp_path: Path) -> None:
    with opened(server, tmp_path / "socket", "/dev/iommu") as sock, Memory(tmp_path / "socket") as memory:
        box = number_of(sock) % BOXES
        seen = []
        for _ in range(200):
            sock.send(message(Kind.REQUEST | WATCH, 0x3B64))
            sock.send(message(Kind.REQUEST | WATCH, 0x3B64))
            server.step(0)
            server.step(0)
            seen.append(memory.word(box, WATCHED))
            assert heard(sock)
            assert heard(sock)
            settle(server)
            assert memory.word(box, WATCHED) == 0
            if any(seen):
                break
        assert any(seen)


@pytest.mark.skipif(not MAPS_REGISTERS, reason="it has the number of a system call of x86-64")
@pytest.mark.usefixtures("cache")
def test_memory_of_a_forked_process_is_its_own() -> None:
    """The library cannot know of this fork: the kernel clears the token."""
    run("""
        libc = ctypes.CDLL(None)
        fd = opened()
        structure = bytearray(struct.pack("<III", 12, 0, 0))
        for number in range(1, 300):
            fcntl.ioctl(fd, 0x3B81, structure, True)
            assert struct.unpack("<III", structure)[2] == number
        before = bytes(structure)
        child = libc.syscall(57)
        if not child:
            for number in range(300, 600):
                fcntl.ioctl(fd, 0x3B81, structure, True)
                assert struct.unpack("<III", structure)[2] == number
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert structure == before
    """)


def test_the_library_has_the_sizes_that_the_server_assumes(cache: Path) -> None:
    library = ctypes.CDLL(str(build_library({**os.environ, "XDG_CACHE_HOME": str(cache)})))
    library.pviommu_shared_size.restype = ctypes.c_size_t
    assert library.pviommu_shared_size() >= BOXES * (SIZE + 40)
