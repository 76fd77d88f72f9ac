"""What ``pviommu bench engine`` measures of the engine itself: maps, unmaps, translation, and memory use."""

from __future__ import annotations

import ctypes
import gc
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter_ns

from ..engine import Access, Engine, EngineConfig, TranslationFault, walk
from ..engine.formats import vtd_second_stage
from ..lab.problems import RunError
from .cores import PYTHON, build_engine, native_walker
from .local_guest import scattered
from .samples import Case

__all__ = [
    "CONTIGUOUS",
    "GIB",
    "SCATTERED",
    "WALK",
    "baseline_cases",
    "bytes_per_gib",
    "bytes_per_scattered_page",
    "table_cases",
    "translate_cases",
    "walk_cases",
]

SCATTERED = (1, 16, 256)
"""Lengths of lists of pages, with one map call per page: adjacent device addresses, frames far apart."""

CONTIGUOUS = (1, 16, 256, 512, 1 << 18)
"""Pages of one map call, aligned to the largest leaf that fits; 512 are 2 MiB, the last is 1 GiB."""

GIB = 1 << 18
"""Pages in 1 GiB."""

_FRAMES = 1 << 22
_STREAM = 1
_DOMAIN = 1
_BLOCK = 4096  # pages mapped between two looks at the clock, which costs as much as some operations
_MISS_PAGES = 1 << 15
_ACCESS = Access.READ | Access.WRITE
_LIVE_PAGES = 1 << 16
_LIVE_GIBS = 8
WALKED = 256
"""Pages of a request, 1 MiB."""
WALK = f"walk, each of {WALKED} pages"
"""The case of which there is a bar."""
_TABLES_SIZE = 1 << 16
_ABOVE_WINDOW = 4 * GIB  # the MSI window is below 4 GiB, and nothing can be mapped there


def _engine(core: str) -> tuple[Engine, int]:
    """An engine with 16 GiB of RAM and one domain, to which its endpoint is attached."""
    engine = build_engine(EngineConfig(pool_pages=1 << 20), core)
    engine.set_ram([(0, _FRAMES - 1)])
    engine.add_endpoint(_STREAM)
    if engine.alloc_paging(_DOMAIN) or engine.attach(_STREAM, _DOMAIN):
        raise RunError("a new engine has room for a domain, and its endpoint can be attached")
    return engine, _DOMAIN


def _complete(done: int, wanted: int) -> None:
    if done != wanted:
        raise RunError(f"{wanted} pages were to be mapped or unmapped, {done} were")


def table_cases(core: str) -> list[Case]:
    """Maps and unmaps. An operation is a list of scattered pages, or one contiguous map call."""
    engine, context = _engine(core)
    cases = []
    for pages in SCATTERED:
        calls = [(dfn, gfn, 1) for dfn, gfn in enumerate(scattered(_BLOCK, _FRAMES))]
        cases += _pair(engine, context, f"scattered {pages}", calls, pages, _BLOCK // pages)
    for pages in CONTIGUOUS:
        number = max(_BLOCK // pages, 1)
        calls = [(place * pages, place * pages, pages) for place in range(number)]
        cases += _pair(engine, context, f"contiguous {pages}", calls, pages, number)
    # frames that are not aligned as the device addresses are: no large leaf fits
    cases += _pair(engine, context, f"unaligned {GIB}", [(0, 1, GIB)], GIB, 1)
    return cases


def _pair(
    engine: Engine, context: int, name: str, calls: Sequence[tuple[int, int, int]], pages: int, number: int
) -> list[Case]:
    """A case of maps and one of unmaps; ``calls`` of (dfn, gfn, pages) make up ``number`` operations."""

    def run(count: int) -> tuple[int, int]:
        mapping = unmapping = 0
        map_pages, unmap_pages = engine.map, engine.unmap
        for _ in range(count // number):
            start = perf_counter_ns()
            for dfn, gfn, nr in calls:
                map_pages(context, dfn, gfn, nr, _ACCESS)
            middle = perf_counter_ns()
            mapped = engine.usage().mapped_pages
            resumed = perf_counter_ns()
            for dfn, _, nr in calls:
                unmap_pages(context, dfn, nr)
            unmapping += perf_counter_ns() - resumed
            mapping += middle - start
            _complete(mapped - engine.usage().mapped_pages, number * pages)
        return mapping, unmapping

    return [
        Case(f"map {name}", lambda count: run(count)[0], pages, "pages", number),
        Case(f"unmap {name}", lambda count: run(count)[1], pages, "pages", number),
    ]


def translate_cases(core: str) -> list[Case]:
    """Translations of one page: found in the IOTLB, found in the tables only, and refused."""
    engine, context = _engine(core)
    for dfn, gfn in enumerate(scattered(_MISS_PAGES, _FRAMES)):
        _complete(engine.map(context, dfn, gfn, 1, _ACCESS).done, 1)

    def case(name: str, addresses: Sequence[int], refused: bool = False) -> Case:
        def work(count: int) -> int:
            translate, found = engine.translate, None
            start = perf_counter_ns()
            for _ in range(count // len(addresses)):
                for iova in addresses:
                    found = translate(_STREAM, iova, 4096, _ACCESS)
            taken = perf_counter_ns() - start
            if refused != isinstance(found, TranslationFault):
                raise RunError(f"{name}: {found}")
            return taken

        return Case(name, work, least_count=len(addresses))

    return [
        case("translate, hit", [5 << 12] * 64),
        # eight times as many pages as the IOTLB holds, one from each 2 MiB block in turn: none is found there again
        case(
            "translate, miss", [page << 12 for page in sorted(range(_MISS_PAGES), key=lambda page: (page % 512, page))]
        ),
        case("translate, refused", [_MISS_PAGES << 12] * 64, refused=True),
    ]


def walk_cases(core: str) -> list[Case]:
    """Walks of tables in guest memory, whose descriptors were read before: what each page costs of a request of one,
    and of :data:`WALKED` scattered ones.
    """
    ram = bytearray(_TABLES_SIZE)
    tables = vtd_second_stage(4, 0x1000, 46)
    words = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003)]
    words += [(0x4000 + 8 * page, gfn << 12 | 3) for page, gfn in enumerate(scattered(WALKED, _FRAMES))]
    for place, word in words:
        struct.pack_into("<Q", ram, place, word)
    if core == PYTHON:
        read = partial(_read_word, memoryview(ram).cast("Q"))
        find: Callable[[int, int, Access], object] = partial(walk.translate, tables, read=read)
    else:
        find = native_walker(tables, ram).translate

    def case(name: str, pages: int) -> Case:
        def work(count: int, _: object = ram) -> int:  # which C has the address of
            found: object = None
            start = perf_counter_ns()
            for _ in range(count // WALKED):
                for iova in range(0, WALKED << 12, pages << 12):
                    found = find(iova, pages << 12, _ACCESS)
            taken = perf_counter_ns() - start
            if isinstance(found, tuple):
                raise RunError(f"{name}: {found}")
            return taken

        return Case(name, work, least_count=WALKED)

    return [case("walk, one page", 1), case(WALK, WALKED)]


def _read_word(words: memoryview, place: int) -> int:
    return int(words[place >> 3])


def baseline_cases(buffers: tuple[memoryview, memoryview]) -> list[Case]:
    """A plain dict of pages, and memcpy from the first of two ``buffers`` of equal size to the second."""
    frames = scattered(_BLOCK, _FRAMES)
    table: dict[int, int] = {}

    def insert_and_remove(count: int) -> tuple[int, int]:
        inserting = removing = 0
        for _ in range(count // _BLOCK):
            start = perf_counter_ns()
            for dfn, gfn in enumerate(frames):
                table[dfn] = gfn  # noqa: PERF403 - one at a time is what is measured
            middle = perf_counter_ns()
            for dfn in range(_BLOCK):
                del table[dfn]
            removing += perf_counter_ns() - middle
            inserting += middle - start
        return inserting, removing

    def memcpy(count: int) -> int:
        source, target = buffers
        start = perf_counter_ns()
        for _ in range(count):
            target[:] = source
        return perf_counter_ns() - start

    return [
        Case("dict, insert", lambda count: insert_and_remove(count)[0], least_count=_BLOCK),
        Case("dict, delete", lambda count: insert_and_remove(count)[1], least_count=_BLOCK),
        Case("memcpy 1 MiB", memcpy, buffers[0].nbytes, "bytes"),
    ]


def bytes_per_scattered_page(core: str) -> float:
    """Memory that each mapped scattered page takes, tables included."""

    def fill(engine: Engine, context: int) -> None:
        for dfn, gfn in enumerate(scattered(_LIVE_PAGES, _FRAMES)):
            _complete(engine.map(context, dfn, gfn, 1, _ACCESS).done, 1)

    return _memory_of(core, fill) / _LIVE_PAGES


def bytes_per_gib(core: str, shift: int = 0) -> float:
    """Memory that each mapped GiB takes, mapped by one call; ``shift``: by how many frames gfns are out of
    alignment."""

    def fill(engine: Engine, context: int) -> None:
        for dfn in range(_ABOVE_WINDOW, _ABOVE_WINDOW + _LIVE_GIBS * GIB, GIB):
            _complete(engine.map(context, dfn, dfn + shift, GIB, _ACCESS).done, GIB)

    return _memory_of(core, fill) / _LIVE_GIBS


def _memory_of(core: str, fill: Callable[[Engine, int], None]) -> float:
    """Bytes that ``fill`` leaves allocated: what Python traces, and, for a core that allocates memory without Python,
    by how much the C library's heap grows with another engine. Memory that both see counts twice, so the result is
    never too low.
    """
    engine, context = _engine(core)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        fill(engine, context)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    if core != PYTHON:
        engine, context = _engine(core)
        gc.collect()
        before = _libc_in_use()
        fill(engine, context)
        gc.collect()
        taken += max(0, _libc_in_use() - before)
    return float(taken)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks"),
            *("fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _libc_in_use() -> int:
    """Bytes allocated from the C library's heap, large pieces included; glibc 2.33 and later."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks) + int(found.hblkhd)
