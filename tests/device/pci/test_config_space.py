"""Configuration space: what a guest may change, and how it sizes BARs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu.pci.config_space import BARS, CONFIG_SIZE, HEADER, STATUS, Command, ConfigSpace, Identity
from wire_layout.registers import AccessKind

IDENTITY = Identity(0x1234, 0x5678, 0x080600, 3)


@pytest.fixture
def config() -> ConfigSpace:
    config = ConfigSpace(IDENTITY)
    config.add_bar(0, 0x1000, wide=False, prefetchable=False)
    config.add_bar(2, 0x100000, wide=True, prefetchable=True)
    config.seal()
    return config


def test_the_header_names_the_function(config: ConfigSpace) -> None:
    assert config.read(0, 4) == bytes.fromhex("34127856")
    assert config.read(8, 4) == bytes.fromhex("03000608")
    assert config.read(0x2C, 4) == bytes.fromhex("34127856")
    assert config.get(0x0E, 1) == 0
    assert config.get(0x3D, 1) == 0, "an interrupt pin"


def test_a_32_bit_bar_is_sized_by_writing_ones(config: ConfigSpace) -> None:
    config.write(0x10, b"\xff" * 4)

    assert config.get(0x10, 4) == 0xFFFFF000


def test_a_64_bit_bar_is_sized_by_writing_ones_to_both_halves(config: ConfigSpace) -> None:
    config.write(0x18, b"\xff" * 4)
    config.write(0x1C, b"\xff" * 4)

    assert config.get(0x18, 8) == 0xFFFFFFFFFFF0000C


def test_an_address_written_to_a_bar_is_kept_down_to_its_size(config: ConfigSpace) -> None:
    config.write(0x18, (0x123456789A).to_bytes(8, "little"))

    assert config.get(0x18, 8) == 0x1234500000 | 0xC


def test_bars_that_are_absent_read_zero(config: ConfigSpace) -> None:
    for offset in (0x14, 0x20, 0x24):
        config.write(offset, b"\xff" * 4)
        assert config.get(offset, 4) == 0


@pytest.mark.parametrize("size", [0, 2048, 5000, 12288])
def test_a_bar_of_another_size_is_refused(config: ConfigSpace, size: int) -> None:
    with pytest.raises(ValueError, match="must be a power of two from 4096"):
        config.add_bar(4, size, wide=False, prefetchable=False)


def test_ids_and_the_class_cannot_be_written(config: ConfigSpace) -> None:
    before = config.read(0, 4) + config.read(8, 4)

    config.write(0, b"\xff" * 4)
    config.write(8, b"\xff" * 4)

    assert config.read(0, 4) + config.read(8, 4) == before


def test_only_implemented_command_bits_are_kept(config: ConfigSpace) -> None:
    config.write(0x04, b"\xff\xff")

    assert config.get(0x04, 2) == HEADER.by_name["COMMAND"].mask(AccessKind.RW) == 0x406
    assert Command(config.get(0x04, 2)).decode() == {"MEMORY": 1, "BUS_MASTER": 1, "INTX_DISABLE": 1}
    assert config.bus_master


def test_status_bits_are_cleared_by_writing_one_and_only_those(config: ConfigSpace) -> None:
    config.set(STATUS, 0xF910, 2)

    config.write(STATUS, (0x8000).to_bytes(2, "little"))
    assert config.get(STATUS, 2) == 0x7910

    config.write(STATUS, bytes(2))
    assert config.get(STATUS, 2) == 0x7910

    config.write(STATUS, b"\xff\xff")
    assert config.get(STATUS, 2) == 0x0010


def test_one_byte_of_a_register_can_be_written(config: ConfigSpace) -> None:
    config.write(0x04, b"\x04")
    config.write(0x05, b"\x04")

    assert config.get(0x04, 2) == 0x404


def test_capabilities_form_a_chain_of_aligned_entries(config: ConfigSpace) -> None:
    first = config.add_capability(b"\x09\x00\x05\x01\x02")
    second = config.add_capability(b"\x11\x00\x00\x00", b"\x00\x00\x00\xc0")

    assert config.get(0x34, 1) == first == 0x40
    assert config.get(first + 1, 1) == second == 0x48
    assert config.get(second + 1, 1) == 0
    assert config.get(STATUS, 2) & 0x10
    config.write(second, b"\xff" * 4)
    assert config.read(second, 4) == b"\x11\x00\x00\xc0"


def test_a_capability_too_many_is_refused(config: ConfigSpace) -> None:
    config.add_capability(bytes(0xC0))

    with pytest.raises(ValueError, match="capability of 4 bytes at 0x100: past the end of conventional space"):
        config.add_capability(bytes(4))


def test_reset_brings_the_sealed_state_back(config: ConfigSpace) -> None:
    before = config.read(0, 4096)
    for offset in range(0, 4096, 4):
        config.write(offset, b"\xff" * 4)
    assert config.read(0, 4096) != before

    config.reset()

    assert config.read(0, 4096) == before


@given(st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=64)), max_size=20))
@pytest.mark.row("defect", "C15")
@pytest.mark.row("wire", 40)
def test_no_writes_change_what_is_read_only(writes: list[tuple[int, bytes]]) -> None:
    config = ConfigSpace(IDENTITY)
    config.add_bar(2, 0x10000, wide=True, prefetchable=True)
    config.add_capability(b"\x09\x00\x04\x01")
    config.seal()

    for offset, data in writes:
        config.write(offset, data[: 4096 - offset])

    assert config.read(0, 4) == bytes.fromhex("34127856")
    assert config.get(STATUS, 2) == 0x10
    assert config.get(0x18, 2) == 0x000C
    assert config.read(0x40, 4) == b"\x09\x00\x04\x01"
    assert config.read(0x100, 3840) == bytes(3840)


def config_with_bars() -> ConfigSpace:
    config = ConfigSpace(IDENTITY)
    config.add_bar(0, 0x1000, wide=False, prefetchable=False)
    config.add_bar(2, 0x10000, wide=True, prefetchable=True)
    config.seal()
    return config


def test_bars_answer_where_they_were_put_while_decoding_is_on() -> None:
    config = config_with_bars()
    config.write(0x10, (0xE0000000).to_bytes(4, "little"))
    config.write(0x18, (0x8_0001_0000).to_bytes(8, "little"))
    assert config.decoded() == []

    config.write(0x04, b"\x02")
    assert config.decoded() == [(0, 0xE0000000, 0x1000), (2, 0x8_0001_0000, 0x10000)]

    config.write(0x04, b"\x00")
    assert config.decoded() == []


@pytest.mark.parametrize("value", [0, 0xFFFFFFFF, 0xFFFFF000])
def test_a_narrow_bar_without_an_address_or_being_sized_answers_nowhere(value: int) -> None:
    config = config_with_bars()
    config.write(0x04, b"\x02")
    config.write(0x10, value.to_bytes(4, "little"))

    assert config.decoded() == []


@pytest.mark.parametrize(("low", "high", "address"), [(0, 1, 1 << 32), (0xFFFFFFFF, 0, 0xFFFF0000), (-1, -1, None)])
def test_a_wide_bar_has_64_bits_of_address(low: int, high: int, address: int | None) -> None:
    config = config_with_bars()
    config.write(0x04, b"\x02")
    config.write(0x18, (low & 0xFFFFFFFF).to_bytes(4, "little") + (high & 0xFFFFFFFF).to_bytes(4, "little"))

    assert config.decoded() == ([] if address is None else [(2, address, 0x10000)])


def test_a_reset_may_keep_the_addresses_of_bars_and_nothing_else() -> None:
    config = config_with_bars()
    config.write(0x04, b"\x06")
    config.write(0x18, (0x8_0001_0000).to_bytes(8, "little"))

    config.reset(keep_bars=True)
    assert (config.get(0x18, 8), config.get(0x04, 2)) == (0x8_0001_000C, 0)

    config.reset()
    assert config.get(0x18, 8) == 0xC


def test_what_was_saved_is_there_again_with_whatever_the_guest_wrote() -> None:
    config = config_with_bars()
    other = config_with_bars()
    config.write(0x04, b"\x06\x04")
    config.write(BARS[0], (0xFE000000).to_bytes(4, "little"))

    other.load(config.save())

    assert other.read(0, CONFIG_SIZE) == config.read(0, CONFIG_SIZE)
    assert other.decoded() == config.decoded()
    other.reset()
    assert other.save() == config_with_bars().save()


@pytest.mark.parametrize("size", [0, CONFIG_SIZE + 1])
def test_what_another_function_was_saved_as_is_not_loaded(size: int) -> None:
    config = config_with_bars()
    before = config.save()

    with pytest.raises(ValueError, match="configuration space"):
        config.load(before.ljust(size, b"\0") if size else b"\xff" + before[1:])

    assert config.save() == before


def test_extended_capabilities_form_a_chain_from_0x100_on() -> None:
    config = ConfigSpace(IDENTITY)
    first = config.add_extended_capability(bytes.fromhex("0f000100aaaa0000"), bytes(6) + b"\xff\xff", b"")
    second = config.add_extended_capability(bytes.fromhex("13000100bbbb0300"), b"", bytes(6) + b"\x01")

    assert (first, second) == (0x100, 0x108)
    assert config.get(0x100, 4) == 0x1081000F
    assert config.get(0x108, 4) == 0x00010013
    config.write(0x106, b"\x34\x12")
    config.write(0x10E, b"\x03\x00")
    assert (config.get(0x106, 2), config.get(0x10E, 2)) == (0x1234, 0x0002)


def test_an_extended_capability_too_many_is_refused() -> None:
    config = ConfigSpace(IDENTITY)
    config.add_extended_capability(bytes(0xF00), b"", b"")
    with pytest.raises(ValueError, match="extended capability of 4 bytes at 0x1000: past the end of extended space"):
        config.add_extended_capability(bytes(4), b"", b"")
