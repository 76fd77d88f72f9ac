"""Records: one declaration, two codecs that agree."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import FrozenInstanceError
from types import ModuleType
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pviommu_abi import dma_test, registers, shared, slots, vendor, xen_2024, xen_v7
from vfio_user import messages
from wire_layout import S32, U8, U16, U32, U64, Field, Record, bits, run_of_bytes


class Sample(Record):
    """Every kind of field."""

    small: Annotated[int, U8, "eight bits"]
    medium: Annotated[int, U16, "sixteen"]
    word: Annotated[int, U32, "thirty-two"]
    signed: Annotated[int, S32, "with a sign"] = -1
    wide: Annotated[int, U64, "sixty-four"] = 0


def records_of(*modules: ModuleType) -> list[type[Record]]:
    """Every record that ``modules`` declare."""
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Record) and value.__module__ == module.__name__
    ]


ALL_RECORDS = records_of(dma_test, registers, shared, slots, vendor, xen_2024, xen_v7, messages)


def values_of(field: Field) -> st.SearchStrategy[int] | st.SearchStrategy[bytes]:
    """Whatever fits ``field``."""
    if field.format.endswith("s"):
        return st.binary(min_size=field.size, max_size=field.size)
    limit = 1 << 8 * field.size
    return st.integers(-limit // 2, limit // 2 - 1) if field.format.islower() else st.integers(0, limit - 1)


def test_fields_follow_each_other_without_padding() -> None:
    assert [(field.name, field.offset, field.size) for field in Sample.FIELDS] == [
        ("small", 0, 1),
        ("medium", 1, 2),
        ("word", 3, 4),
        ("signed", 7, 4),
        ("wide", 11, 8),
    ]
    assert Sample.SIZE == 19


def test_packing_is_little_endian() -> None:
    packed = Sample(0x11, 0x2233, 0x44556677, -2, 0x8899AABBCCDDEEFF).pack()

    assert packed.hex() == "11332277665544feffffffffeeddccbbaa9988"


def test_each_class_packs_by_itself_as_all_do() -> None:
    sample = Sample(1, 2, 3, -4, 5)

    assert Record.pack(sample) == sample.pack()


def test_unpacking_begins_at_the_offset_and_ignores_what_follows() -> None:
    sample = Sample(1, 2, 3)

    assert Sample.unpack(b"??" + sample.pack() + b"more", 2) == sample


def test_a_record_that_was_unpacked_is_like_one_that_was_made() -> None:
    made = Sample(1, 2, 3)
    unpacked = Sample.unpack(made.pack())

    assert (unpacked, hash(unpacked), repr(unpacked), vars(unpacked)) == (made, hash(made), repr(made), vars(made))
    with pytest.raises(FrozenInstanceError):
        unpacked.small = 4  # type: ignore[misc]


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(struct.error, match="19 bytes"):
        Sample.unpack(bytes(18))


def test_a_value_too_large_for_its_field_is_refused() -> None:
    with pytest.raises(struct.error):
        Sample(256, 0, 0).pack()


def test_records_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Sample(1, 2, 3).small = 4  # type: ignore[misc]


def test_the_first_record_may_be_made_by_name_and_is_like_those_that_follow() -> None:
    class Fresh(Record):
        """A record that nothing was made of yet."""

        first: Annotated[int, U8, "required"]
        second: Annotated[int, U8, "optional"] = 7

    made = [Fresh(first=1), Fresh(1), Fresh.unpack(b"\1\7")]

    assert made[0] == made[1] == made[2]
    assert len({hash(record) for record in made}) == 1
    assert repr(made[0]).endswith("Fresh(first=1, second=7)")


def test_the_first_record_too_needs_all_its_values() -> None:
    class Fresh(Record):
        """A record that nothing was made of yet."""

        first: Annotated[int, U8, "required"]

    with pytest.raises(TypeError, match="'first'"):
        Fresh()  # type: ignore[call-arg]


def test_a_record_is_not_derived_from_another() -> None:
    with pytest.raises(TypeError, match="Longer: a record cannot be derived from another"):

        class Longer(Sample):
            """One more field."""

            more: Annotated[int, U8, "too much"] = 0


def test_construct_is_imported_when_it_is_asked_for_and_not_before() -> None:
    program = "import sys, vfio_user, pviommu_abi.interface as i; sys.exit('construct' in sys.modules)"

    subprocess.run([sys.executable, "-c", program], check=True)


def test_offset_of_an_unknown_field_names_it() -> None:
    with pytest.raises(KeyError, match="Sample has no field 'colour'"):
        Sample.offset_of("colour")


def test_a_run_of_bytes_is_a_field_too() -> None:
    class Named(Record):
        """A record with a name of four bytes."""

        name: Annotated[bytes, run_of_bytes(4), "four bytes"]

    assert Named.unpack(b"name and more") == Named(b"name")
    assert Named.SIZE == 4


@pytest.mark.parametrize(
    ("low", "high", "mask"), [(0, None, 1), (5, None, 0x20), (0, 7, 0xFF), (4, 7, 0xF0), (12, 63, (1 << 64) - 4096)]
)
def test_bits_makes_masks(low: int, high: int | None, mask: int) -> None:
    assert bits(low, high) == mask


def test_every_record_of_the_protocols_is_looked_at() -> None:
    names = {record.__name__ for record in ALL_RECORDS}

    assert {"PvIommuOp", "MapPages", "Slot", "Event", "Descriptor", "EndpointCapability", "DmaMap"} <= names


@given(st.data())
def test_struct_and_construct_build_and_parse_alike(data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(ALL_RECORDS))
    values = {field.name: data.draw(values_of(field)) for field in record.FIELDS}

    packed = record(**values).pack()

    assert record.construct().build(values) == packed
    parsed = record.construct().parse(packed)
    assert {name: parsed[name] for name in values} == values
    assert record.unpack(packed) == record(**values)


@given(st.data())
def test_any_bytes_survive_both_codecs(data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(ALL_RECORDS))
    raw = data.draw(st.binary(min_size=record.SIZE, max_size=record.SIZE))

    assert record.unpack(raw).pack() == raw
    assert record.construct().build(record.construct().parse(raw)) == raw
