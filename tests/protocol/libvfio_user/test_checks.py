"""Arguments and calls that the library would take unchecked, and for most of which it would end the process or lie."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from libvfio_user import ArgumentError, CapabilityFlag, Device, Irq, Library, PciType, Region, RegionFlag, StateError

from .conftest import PAGE, Card

EXTENDED = CapabilityFlag.EXTENDED
BAR = {"flags": RegionFlag.RW | RegionFlag.MEM}

WRONG: dict[str, Callable[[Device, int], object]] = {
    "id 0x10000 does not fit into 16 bits": lambda it, _: it.pci(0x10000, 1),
    "class code 0x1000000 does not fit into 24 bits": lambda it, _: it.pci(1, 1, class_code=1 << 24),
    "region BAR0: size 0": lambda it, _: it.region(Region.BAR0, 0),
    "region BAR0: size 0xc0 is no power of two from 16 on": lambda it, _: it.region(Region.BAR0, 0xC0),
    "region BAR0: size 0x8 is no power of two": lambda it, _: it.region(Region.BAR0, 8),
    "region ROM: size 0x100000000, this library cuts it to 32 bits": lambda it, _: it.region(Region.ROM, 1 << 32),
    "this library has no": lambda it, _: it.region(Region.BAR0, 16, flags=RegionFlag.RW | RegionFlag.BITS_64),
    "region CFG: size 4096, this kind of device has 256": lambda it, _: it.region(Region.CFG, 4096),
    "region BAR0: areas to map, and no file": lambda it, _: it.region(Region.BAR0, PAGE, areas=[(0, PAGE)]),
    "area 0x800+0x1000 is not of whole pages": lambda it, fd: it.region(
        Region.BAR0, 4 * PAGE, file=fd, areas=[(0x800, PAGE)]
    ),
    "area 0x0+0x0 is not of whole pages": lambda it, fd: it.region(Region.BAR0, 4 * PAGE, file=fd, areas=[(0, 0)]),
    "area 0x3000+0x2000 ends after the region's 0x4000 bytes": lambda it, fd: it.region(
        Region.BAR0, 4 * PAGE, file=fd, areas=[(3 * PAGE, 2 * PAGE)]
    ),
    "area 0x1000+0x1000 overlaps another": lambda it, fd: it.region(
        Region.BAR0, 4 * PAGE, file=fd, areas=[(PAGE, PAGE), (0, 2 * PAGE)]
    ),
    "area 0x0+0x100 is not of whole pages": lambda it, fd: it.region(Region.BAR0, 0x100, file=fd),
    "the file has 0x4000 bytes, 0x5000 are mapped": lambda it, fd: it.region(
        Region.BAR0, 4 * PAGE, file=fd, offset=PAGE
    ),
    "file offset 0x10 is not of whole pages": lambda it, fd: it.region(Region.BAR0, PAGE, file=fd, offset=16),
    "descriptor 999: Bad file descriptor": lambda it, _: it.region(Region.BAR0, PAGE, file=999),
    "INTX: 2 vectors, at most 1": lambda it, _: it.interrupts(Irq.INTX, 2),
    "MSIX: 2049 vectors, at most 2048": lambda it, _: it.interrupts(Irq.MSIX, 2049),
    "a capability of 1 bytes, the header alone has 2": lambda it, _: it.capability(b"\x11"),
    "capability 0x11 has 8 bytes, not 12": lambda it, _: it.capability(b"\x11" + bytes(7)),
    "capability 0x9 has 4 bytes, not 3": lambda it, _: it.capability(b"\x09\0\0\0"),
    "capability 0x9 has 2 bytes, not 3": lambda it, _: it.capability(b"\x09\0"),
    "capability 0xb has 8 bytes, not 0": lambda it, _: it.capability(b"\x0b" + bytes(7), flags=EXTENDED),
    "capability 0x9: position 0x20 is not within 0x40": lambda it, _: it.capability(b"\x09\0\x04\0", position=0x20),
    "position 0x42 is not within 0x40 to 0x100, or no multiple of 4": lambda it, _: it.capability(
        b"\x09\0\x04\0", position=0x42
    ),
    "capability 0x9: position 0xfe": lambda it, _: it.capability(b"\x09\0\x04\0", position=0xFE),
    "ioeventfd 0x0+4 is not within region BAR3 of 0x0": lambda it, fd: it.ioeventfd(Region.BAR3, fd, 0, 4),
    "ioeventfd 0xfe+4 is not within region BAR2 of 0x100": lambda it, fd: it.ioeventfd(Region.BAR2, fd, 0xFE, 4),
    "ioeventfd 0x0+3 is not": lambda it, fd: it.ioeventfd(Region.BAR2, fd, 0, 3),
    "descriptor -1: Bad file descriptor": lambda it, _: it.ioeventfd(Region.BAR2, -1, 0, 4),
    "ioeventfd: this library has no shadow memory": lambda it, fd: it.ioeventfd(Region.BAR2, fd, 0, 4, shadow=(fd, 0)),
    "0xff+2 is not within 256 bytes of configuration space": lambda it, _: it.read_config(0xFF, 2),
    "-0x1+1 is not within": lambda it, _: it.write_config(-1, b"1"),
    "position -0x1 does not fit": lambda it, _: it.find_capability(1, after=-1),
    "ranges -0x1 does not fit": lambda it, _: it.dma(-1),
}


@pytest.mark.parametrize("problem", WRONG)
def test_a_wrong_argument_is_refused_before_the_library_gets_it(card: Card, memory: int, problem: str) -> None:
    card.pci(1, 2)
    card.region(Region.BAR2, 256)

    with pytest.raises(ArgumentError, match=re.escape(problem)):
        WRONG[problem](card, memory)


@pytest.mark.parametrize("path", ["", "x" * 108, "a\0b"])
def test_a_path_that_is_none_for_a_socket_is_refused(library: Library, path: str) -> None:
    with pytest.raises(ArgumentError, match=f"has {len(path)} bytes, not 1 to 107"):
        Card(Path(path) if path and "\0" not in path else path, library)  # type: ignore[arg-type]


@pytest.mark.parametrize("vector", [-1, 1])
def test_a_vector_that_the_device_has_not_is_refused(card: Card, vector: int) -> None:
    card.setup()
    with pytest.raises(ArgumentError, match=f"vector {vector}, the device has 1"):
        card.trigger(vector)


BEFORE: dict[str, Callable[[Card], object]] = {
    "capability": lambda it: it.capability(b"\x11" + bytes(11)),
    "find_capability": lambda it: it.find_capability(1),
    "read_config": lambda it: it.read_config(0, 1),
    "realize": lambda it: it.realize(),
    "trigger": lambda it: it.trigger(0),
    "attach": lambda it: it.attach(),
    "run": lambda it: it.run(),
    "read_memory": lambda it: it.read_memory(0, 1),
    "quiesced": lambda it: it.quiesced(),
    "migration": lambda it: it.migration(),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_call_too_early_is_refused(card: Card, name: str) -> None:
    with pytest.raises(StateError):
        BEFORE[name](card)


AFTER: dict[str, Callable[[Card], object]] = {
    "pci": lambda it: it.pci(1, 2),
    "region": lambda it: it.region(Region.BAR0, 16),
    "capability": lambda it: it.capability(b"\x11" + bytes(11)),
    "interrupts": lambda it: it.interrupts(Irq.MSI, 1),
    "dma": lambda it: it.dma(),
    "migration": lambda it: it.migration(),
}


@pytest.mark.parametrize("name", AFTER)
def test_what_would_have_no_effect_any_more_is_refused(card: Card, name: str) -> None:
    with pytest.raises(StateError, match="realized already"):
        AFTER[name](card.setup())


def test_a_region_does_not_lose_its_file(card: Card, memory: int) -> None:
    card.pci(1, 2, kind=PciType.EXPRESS)
    card.region(Region.BAR0, PAGE, file=memory)
    with pytest.raises(StateError, match="BAR0 was mappable"):
        card.region(Region.BAR0, PAGE)


def test_dma_is_set_up_once(card: Card) -> None:
    card.dma()
    with pytest.raises(StateError, match="DMA is set up already"):
        card.dma()
