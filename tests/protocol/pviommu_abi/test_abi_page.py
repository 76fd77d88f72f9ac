"""The ABI page names everything that is declared."""

from __future__ import annotations

from pviommu_abi.abi_page import abi_page
from pviommu_abi.interface import INTERFACES
from pviommu_abi.registers import Profile


def test_every_record_field_is_in_the_page_with_its_offset() -> None:
    page = abi_page()

    for interface in INTERFACES:
        for section in interface.sections:
            for name, record in section.records:
                start = page.index(f"### struct {interface.prefix}_{name} ({record.SIZE} bytes)")
                text = page[start:].split("\n### ")[0]
                for field in record.FIELDS:
                    assert f"| {field.offset} | {field.size} | " in text
                    assert f"`{field.name}`" in text


def test_every_register_is_in_the_page() -> None:
    page = abi_page()

    for interface in INTERFACES:
        for section in interface.sections:
            for register in section.registers:
                assert f"| {register.offset:#05x} | {register.access.name} | `{register.name}` |" in page


def test_every_bit_field_is_in_the_page_with_its_bits_and_in_a_diagram() -> None:
    page = abi_page()

    fields = 0
    for interface in INTERFACES:
        for section in interface.sections:
            for register in section.registers:
                for field in register.fields:
                    name = f"{interface.prefix.upper()}_{register.prefix}_{field.name}"
                    assert f"| `{name}` | {field.low} | {int(field):#x} | " in page
                    assert f" {field.name} |" in page.split(f"### {interface.prefix.upper()}_{register.prefix}_*")[1]
                    fields += 1
    assert fields == 13


def test_named_values_of_registers_are_in_the_page() -> None:
    page = abi_page()

    for member in Profile:
        assert f"| `PVIOMMU_PROFILE_{member.name}` | {int(member)} | " in page


def test_no_markup_of_another_language_is_left() -> None:
    page = abi_page()

    assert "``" not in page
    assert ":mod:" not in page
