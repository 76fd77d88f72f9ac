"""The tests of interfaces/pv/test_guest_tables.py and more, on a device with the native core: C walks, and carries out
whole requests, where it may copy.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import re
import subprocess
import threading
from array import array
from contextlib import closing
from ctypes import addressof, c_char, c_int, c_uint32, c_uint64, c_void_p
from itertools import count, pairwise
from pathlib import Path

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.engine import BLOCKED, Access, Engine, EngineConfig, GuestTables, ReservedFrames
from pviommu.engine.formats import vtd_second_stage, x86_64
from pviommu.engine.stages import Stage
from pviommu.engine.walk import ReadRefusal
from pviommu.guest.tables import PageTables
from pviommu.native import build, library
from pviommu.native.core import NativeCore
from pviommu.native.memory import NativeCopier
from pviommu.native.walk import NativeWalker, Place
from pviommu_abi.shared import EventReason
from pviommu_abi.slots import Errno
from pviommu_abi.vendor import TablesFlags

from ..conftest import STREAM
from ..interfaces.pv.test_guest_tables import *  # noqa: F403

READ, WRITE = Access.READ, Access.WRITE
RAM = 1 << 20


def test_the_step_is_odd_until_the_last_byte_is_copied(guest, driver, parts):
    """As Python's by itself; C makes the whole step in one call, about which the hammer below is."""
    guest.tables.map(0x3000, 0x9000)
    driver.ram[0x9000:0x9004] = b"data"
    for number in range(3):
        before = guest.line.step
        assert driver.dma_read("dma0", 0x3000, 4) == b"data"
        assert guest.line.step == before + 2, number
    driver.dma_write("dma0", 0x3002, b"more")
    assert bytes(driver.ram[0x9000:0x9006]) == b"damore"
    assert driver.iommu._tables.transfers == parts["copier"]


def test_dirty_bits_that_nobody_can_set_are_eopnotsupp(driver, parts):
    result = driver.alloc_tables(0x1000, flags=TablesFlags.DIRTY)[0]
    assert result == (0 if parts["copier"] else -Errno.EOPNOTSUPP)


WHOLE = pytest.mark.parametrize("parts", [{"rings": True, "copier": True}], ids=["whole"])
"""Where C has all parts."""


@WHOLE
@pytest.mark.parametrize("is_cached", [False, True], ids=["by-c", "by-python"])
@pytest.mark.row("tables", 16)
def test_dma_sets_accessed_and_dirty_bits_and_nothing_else(make_guest, driver, is_cached):
    guest = make_guest(flags=TablesFlags.DIRTY)
    driver.iommu._engine.iotlb(is_used=is_cached)
    guest.tables.map(0x3000, 0x9000)
    driver.dma_read("dma0", 0x3000, 4)
    assert guest.tables.entry(0x3000) == 0x9000 | 3 | 1 << 8
    driver.dma_write("dma0", 0x3000, b"x")
    assert guest.tables.entry(0x3000) == 0x9000 | 3 | 1 << 8 | 1 << 9
    guest.tables.unmap(0x3000)
    assert guest.refused(0x3000, 1, write=True) == (EventReason.NOT_MAPPED, 0x3000)
    assert guest.tables.entry(0x3000) == 0


@WHOLE
def test_a_rule_at_a_place_that_a_request_passes_takes_it_from_c(make_guest, driver):
    make_guest()
    watched = driver.iommu.probes.is_watched
    driver.iommu.probes.is_watched = lambda name: name == "dma.read" or watched(name)
    driver.iommu._follow_rules()
    assert not driver.iommu._tables.transfers
    driver.iommu.probes.is_watched = watched
    driver.iommu._follow_rules()
    assert driver.iommu._tables.transfers


@WHOLE
def test_what_c_refuses_python_tells_the_guest(make_guest, driver):
    guest = make_guest()
    guest.tables.map(0x3000, 0x9000)
    driver.dma_read("dma0", 0x3000, 4)
    assert guest.refused(0x3FFE, 4) == (EventReason.NOT_MAPPED, 0x4000)
    event = driver.events()[-1]
    assert (event.reason, event.iova, event.ctx_no) == (EventReason.NOT_MAPPED, 0x4000, guest.ctx)
    assert guest.line.is_quiet()


@WHOLE
def test_a_request_beyond_what_one_call_does_is_left_to_python(make_guest, driver):
    guest = make_guest()
    guest.tables.map(0, 0, shift=21)
    guest.tables.map(1 << 21, 1 << 21, shift=21)
    driver.dma_read("dma0", 0, 4)
    assert len(driver.dma_read("dma0", 0x1000, (1 << 20) + 1)) == (1 << 20) + 1
    assert guest.refused((1 << 64) - 4, 8) == (EventReason.OUT_OF_APERTURE, (1 << 64) - 4)
    assert guest.line.is_quiet()


@WHOLE
def test_a_request_while_another_ones_plans_are_in_use_is_left_to_python(make_guest, driver):
    guest = make_guest()
    guest.tables.map(0x3000, 0x9000)
    driver.dma_read("dma0", 0x3000, 4)
    endpoint = driver.machine.endpoints["dma0"]
    endpoint.dma.plan(([(0x3000, 8)], READ))
    step = guest.line.step
    driver.dma_read("dma0", 0x3000, 4)
    assert guest.line.step == step
    endpoint.step()
    assert guest.line.is_quiet()


@WHOLE
def test_a_blocked_endpoint_is_refused(make_guest, driver):
    guest = make_guest()
    guest.tables.map(0x3000, 0x9000)
    driver.dma_read("dma0", 0x3000, 4)
    driver.iommu.engine.block(STREAM["dma0"])
    assert guest.refused(0x3000, 4) == (EventReason.BLOCKED, 0x3000)


# -- both walkers -----------------------------------------------------------------------------------------------------


class _NoMemory(ReadRefusal):
    __slots__ = ()


@pytest.mark.parametrize("make", [vtd_second_stage, x86_64])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.row("tables", 15)
def test_c_and_python_agree_about_any_tables(native_library, make, seed):
    """Entries that lead to each other, to themselves, to nowhere, with any low bits; reserved and direct regions."""
    chosen = random.Random(seed)
    ram = mmap.mmap(-1, RAM)
    words = memoryview(ram).cast("Q")
    places = [0x10000 + 0x1000 * number for number in range(5)]
    for place in places:
        for index in (0, 1, 2, 3, 8, 511):
            kind = chosen.randrange(8)
            entry = chosen.choice(places) | chosen.choice((1, 2, 3, 3, 3, 0x83, 0x103, 0x303, 0))
            entry = chosen.getrandbits(64) if kind == 0 else (1 << 40 | 3) if kind == 1 else entry
            words[place // 8 + index] = entry
    for place, following in pairwise(places[:4]):
        words[place // 8] = following | 3  # the rest may be anything, this leads on

    def read(address):
        return int(words[address // 8]) if address + 8 <= RAM else _NoMemory()

    def update(address, before, after):
        found = int(words[address // 8])
        if found == before:
            words[address // 8] = after
        return found

    updates = bool(seed & 1)
    copier = NativeCopier(native_library)
    copier.add(0, RAM, addressof(c_char.from_buffer(ram)))
    direct = (ReservedFrames(8, 9, "direct"),)
    config = EngineConfig(reserved=(ReservedFrames(2, 2, "msi"), ReservedFrames(0x201, 0x203, "msi")))
    start = bytes(ram)
    answers = []
    frames = 1 << chosen.choice((20, 27))
    for core, memory in ((None, None), (NativeCore(native_library), copier)):
        ram[:] = start
        engine = Engine(config, core)
        engine.set_ram([(0, (RAM >> 12) - 1)])
        engine.add_endpoint(1, direct, BLOCKED)
        tables = make(4, places[0], 52, updates=updates)
        engine.alloc_tables(1, GuestTables(tables, frames, read, update if updates else None, memory))
        engine.attach(1, 1)
        assert (engine.walked_by_core(1) is not None) == (core is not None)
        ask = random.Random(seed)
        found = []
        for _ in range(300):
            iova = ask.choice((0, 0x1000, 0x3000, 0x8000, 0x200000, 0x202000, 1 << 30, 1 << 39)) + ask.randrange(0x3000)
            answer = engine.translate(1, iova, 1 + ask.randrange(0x3000), Access(ask.randrange(1, 4)))
            found.append(list(answer) if hasattr(answer, "__iter__") else (answer.iova, answer.refusal))
        answers.append((found, bytes(ram)))
        engine.free_domain(1)
    assert answers[0] == answers[1]
    assert sum(isinstance(each, list) for each in answers[0][0]) > 10
    words.release()


@WHOLE
@pytest.mark.row("tables", 15)
def test_tables_that_another_process_changes_under_the_walk_harm_nobody(make_guest, driver):
    """Its writer leads DMA to its own pages or nowhere, never to the canary; what is read is of one of the pages."""
    guest = make_guest()
    pages = {0x100 + number: bytes([number + 1]) * 4096 for number in range(4)}
    for gfn, data in pages.items():
        driver.ram[gfn << 12 : (gfn + 1) << 12] = data
    canary = bytes(driver.ram[0x900000:0x901000])
    guest.tables.map(0x3000, 0x100000)
    places = [guest.tables.place(0x3000, shift) for shift in (12, 21, 30)]
    tables = [int(guest.tables._words[place]) for place in places]
    child = os.fork()
    if not child:
        chosen = random.Random(1)
        words = guest.tables._words
        while True:
            level = chosen.randrange(3)
            wrong = chosen.choice((0, 1 << 45 | 3, guest.tables.root | 3, chosen.getrandbits(64) & ~2 | 1 << 51))
            good = tables[level] if level else chosen.choice(list(pages)) << 12 | chosen.choice((1, 3))
            words[places[level]] = wrong if chosen.randrange(3) == 0 else good
    try:
        outcomes, refused = set(), set()
        for _ in range(3000):
            try:
                data = driver.dma_read("dma0", 0x3000, 64)
                outcomes.add(data[0])
            except DmaRefusedError as error:
                outcomes.add(error.fault.kind)
                refused.add(error.fault.iova)
        assert guest.line.is_quiet()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert refused == {0x3000}
    assert len(outcomes) > 2
    assert bytes(driver.ram[0x900000:0x901000]) == canary
    assert not driver.machine.endpoints["dma0"].failed


def test_an_exchange_leaves_alone_what_is_not_as_it_was(native_library):
    ram = mmap.mmap(-1, RAM)
    copier = NativeCopier(native_library)
    copier.add(0, RAM, addressof(c_char.from_buffer(ram)))
    ram[0x1008:0x1010] = (5).to_bytes(8, "little")
    assert copier.exchange(0x1008, 4, 9) == 5
    assert ram[0x1008] == 5
    assert copier.exchange(0x1008, 5, 9) == 5
    assert ram[0x1008] == 9
    assert copier.exchange(RAM, 0, 9) is None


# -- the step in C ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guests(tmp_path_factory):
    """The guest's side in C."""
    target = tmp_path_factory.mktemp("hammer") / "hammer.so"
    source = Path(__file__).with_name("unmap_hammer.c")
    subprocess.run([build.find_compiler(), "-O2", "-fPIC", "-shared", "-o", target, source], check=True, timeout=60)
    found = ctypes.CDLL(str(target))
    for function in (found.hammer, found.harvest):
        function.restype, function.argtypes = c_uint64, (c_void_p, c_uint64, c_void_p, c_void_p, c_uint64, c_int)
    return found


@pytest.fixture
def pounded(native_library):
    """Two threads at one page: a device makes steps in C as fast as it can, while a guest's side of it runs. Returns
    what that has returned, and of each step whether it was done.
    """

    def pound(guest, value, *, updates=False, rounds=400):
        ram = mmap.mmap(-1, RAM)
        base = addressof(c_char.from_buffer(ram))
        copier = NativeCopier(native_library)
        copier.add(0, RAM, base)
        with closing(PageTables(memoryview(ram), count(16))) as tables:
            tables.map(0x3000, 0x9000)
            place = base + 8 * tables.place(0x3000)
            core = native_library.pv_core_create(1 << 27)
            format = vtd_second_stage(4, tables.root, 52, updates=updates)
            walker = NativeWalker(native_library, Place(copier), Stage(format), updates=updates)
            assert native_library.pv_core_show_tables(core, 1, walker.address, 1 << 27, None, 0, None, 0) == 0
            words = (c_uint32 * 32)()
            line = addressof(words) + 63 & ~63
            spans, runs, data = array("Q", (0x3000, 4096)), (c_uint64 * 64)(), b"\xdd" * 4096
            # One that lets other threads run meanwhile, unlike the library's own.
            transfer = ctypes.CDLL(native_library._library._name).pv_core_transfer
            transfer.restype, *transfer.argtypes = library._FUNCTIONS["pv_core_transfer"]
            is_over, moved = threading.Event(), []

            def device():
                step = 1
                while not is_over.is_set():
                    at = ctypes.cast(data, c_void_p).value
                    arguments = (core, 1, copier.address, line, step, spans.buffer_info()[0], 1)
                    moved.append(transfer(*arguments, addressof(runs), 32, at, 4096, 1))
                    step = step + 2 & 0xFFFFFFFF

            thread = threading.Thread(target=device)
            thread.start()
            try:
                result = guest(place, value, line, base + 0x9000, rounds, 0)
            finally:
                is_over.set()
                thread.join()
            native_library.pv_core_destroy(core)
        return result, moved

    return pound


@pytest.mark.row("tables", 13)
def test_no_dma_writes_to_a_page_after_its_unmap(pounded, guests):
    violations, moved = pounded(guests.hammer, 0x9000 | 3)
    assert violations == 0
    assert 0 < sum(moved) < len(moved)


@pytest.mark.row("tables", 16)
def test_no_write_is_missed_by_who_reads_and_clears_dirty_bits(pounded, guests):
    lost, moved = pounded(guests.harvest, 1 << 9, updates=True)
    assert lost == 0
    assert all(moved)


@pytest.mark.row("tables", 14)
def test_the_odd_step_is_stored_before_a_full_fence_and_the_walk():
    """What no test on x86 finds reliably: without the fence the store may pass the reads of the walk."""
    source = (Path(build.__file__).parent / "src" / "engine.c").read_text()
    body = source[source.index("uint32_t pv_request_by_guest(const") :]
    order = [
        body.index(part)
        for part in (
            "__atomic_store_n(line, step, ",
            "__atomic_thread_fence(__ATOMIC_SEQ_CST)",
            "pv_request(",
            "__atomic_store_n(line, step + 1, __ATOMIC_RELEASE)",
        )
    ]
    assert order == sorted(order)
    assert len(re.findall(r"__atomic_store_n\(line", body)) == 2
