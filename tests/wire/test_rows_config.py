"""Configuration space as a guest's firmware and kernel use it, as bytes on the socket of a real back end."""

from __future__ import annotations

import struct

import pytest

from . import raw
from .raw import CONFIG

row = pytest.mark.row
COMMAND, STATUS, BAR0, ROM = 0x04, 0x06, 0x10, 0x30
ONES = 0xFFFFFFFF
PCIE, MSIX_CAPABILITY = 0x10, 0x11
BARS = {0: (0x1000, 0x0), 1: (0, 0), 2: (0x100000, 0xC), 4: (0x1000, 0x0), 5: (0, 0)}
"""Size and the type bits that a BAR reads."""


@pytest.fixture
def config(peer):
    """Reads and writes values of configuration space; every write must succeed."""
    return Config(peer)


class Config:
    def __init__(self, peer):
        self.peer = peer

    def get(self, offset, size=4):
        return int.from_bytes(self.peer.read(CONFIG, offset, size), "little")

    def set(self, offset, value, size=4):
        assert self.peer.write(CONFIG, offset, value.to_bytes(size, "little")) == 0

    def capability(self, wanted):
        at = self.get(0x34, 1)
        while at:
            found, following = self.get(at, 1), self.get(at + 1, 1)
            if found == wanted:
                return at
            at = following
        raise AssertionError(f"no capability {wanted:#x}")


@row("wire", 40)
@pytest.mark.parametrize("index", [0, 1, 4, 5])
def test_a_bar_of_32_bits_tells_its_size(config, index):
    size, kind = BARS[index]
    config.set(BAR0 + 4 * index, ONES)
    assert config.get(BAR0 + 4 * index) == ((ONES & ~(size - 1)) | kind if size else 0)
    config.set(BAR0 + 4 * index, 0xFEB01234)
    assert config.get(BAR0 + 4 * index) == (0xFEB01000 | kind if size else 0)


@row("wire", 40)
def test_a_bar_of_64_bits_tells_its_size_in_two_halves(config):
    config.set(BAR0 + 8, ONES)
    config.set(BAR0 + 12, ONES)
    size, kind = BARS[2]
    assert config.get(BAR0 + 8) | config.get(BAR0 + 12) << 32 == ((1 << 64) - size) | kind
    config.set(BAR0 + 8, 0)
    config.set(BAR0 + 12, 0x38)
    assert config.get(BAR0 + 8) | config.get(BAR0 + 12) << 32 == 0x38_00000000 | kind


@row("wire", 40)
@pytest.mark.parametrize("value", [0xFFFFF800, ONES, 0, 1, 0xFFFFFFFE])
def test_there_is_no_rom_whatever_is_written_to_its_bar(config, value):
    config.set(ROM, value)
    assert config.get(ROM) == 0


@row("wire", 40)
@row("defect", "C15")
def test_read_only_bits_stay_and_writing_them_succeeds(config):
    before = config.peer.read(CONFIG, 0, 4096)
    for offset in (0x00, 0x08, 0x2C, 0x34, 0x3D, 0x100, 0xFFC):
        config.set(offset, ONES if offset != 0x3D else 0xFF, 4 if offset != 0x3D else 1)
    assert config.peer.read(CONFIG, 0, 4096) == before


@row("wire", 40)
def test_status_bits_are_cleared_by_ones_and_the_capability_bit_stays(config):
    config.set(STATUS, 0xFFFF, 2)
    assert config.get(STATUS, 2) == 0x10


@row("wire", 40)
def test_command_keeps_memory_bus_master_and_intx_disable(config):
    config.set(COMMAND, 0xFFFF, 2)
    assert config.get(COMMAND, 2) == 0x406
    config.set(COMMAND, 0, 2)
    assert config.get(COMMAND, 2) == 0


@row("wire", 40)
def test_msix_control_keeps_enable_and_mask_however_it_is_written(config):
    at = config.capability(MSIX_CAPABILITY)
    vectors = config.get(at + 2, 2)
    config.set(at + 2, 0xFFFF, 2)
    assert config.get(at + 2, 2) == vectors | 0xC000
    config.set(at + 2, 0, 2)
    config.set(at + 3, 0x80, 2)  # some versions of QEMU write two bytes here
    assert config.get(at + 2, 2) == vectors | 0x8000
    table = config.get(at + 4)
    config.set(at + 4, ONES)
    assert config.get(at + 4) == table


@row("wire", 40)
def test_a_function_level_reset_brings_configuration_and_registers_back_and_bars_stay(config):
    at = config.capability(PCIE)
    config.set(BAR0, 0xFEB00000)
    before = config.peer.read(CONFIG, 0, 4096)
    config.set(COMMAND, 6, 2)
    config.set(at + 8, config.get(at + 8, 2) | 0x8000, 2)
    assert config.peer.read(CONFIG, 0, 4096) == before


@row("wire", 40)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_write_a_guest_can_make_is_answered_by_an_error(config, size):
    for offset in range(0, 256, size):
        config.set(offset, (1 << 8 * size) - 1, size)
        config.set(offset, 0, size)


@row("wire", 41)
@row("defect", "B9")
def test_pending_bits_read_zero_and_the_msix_table_keeps_nothing(config):
    at = config.capability(MSIX_CAPABILITY)
    table, pending = config.get(at + 4), config.get(at + 8)
    assert (table & 7, pending & 7) == (4, 4)
    for offset in (table & ~7, pending & ~7, 0xFF8):
        assert config.peer.write(4, offset, b"\xff" * 8) == 0
    assert config.peer.read(4, 0, 0x1000) == bytes(0x1000)


@row("wire", 56)
def test_reset_clears_registers_and_configuration_and_keeps_dma_maps(config, ram):
    peer = config.peer
    before = peer.read(CONFIG, 0, 4096)
    assert peer.ask(raw.DMA_MAP, raw.dma_map(0, ram.size), fds=[ram.fd]) == b""
    config.set(COMMAND, 6, 2)
    config.set(BAR0, 0xFEB00000)
    peer.write(2, 0x10000, b"slot")
    assert peer.ask(raw.DEVICE_RESET) == b""
    assert peer.read(CONFIG, 0, 4096) == before
    assert peer.read(2, 0x10000, 4) == bytes(4)
    assert peer.ask(raw.DMA_UNMAP, raw.dma_unmap(0, ram.size)) == struct.pack("<IIQQ", 24, 0, 0, ram.size)
