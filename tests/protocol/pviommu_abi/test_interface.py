"""What the generators are given is complete."""

from __future__ import annotations

from types import ModuleType

import pytest

from pviommu_abi import dma_test, registers, shared, slots, vendor, xen_2024, xen_v7
from pviommu_abi.interface import INTERFACES
from wire_layout import Record
from wire_layout.registers import BitFields


@pytest.mark.parametrize(
    "module", [dma_test, registers, shared, slots, vendor, xen_2024, xen_v7], ids=lambda module: module.__name__
)
def test_every_declared_record_reaches_the_headers(module: ModuleType) -> None:
    published = {record for interface in INTERFACES for section in interface.sections for _, record in section.records}
    declared = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Record) and value.__module__ == module.__name__
    }

    assert declared <= published


def test_every_published_declaration_is_explained() -> None:
    for interface in INTERFACES:
        for section in interface.sections:
            assert section.doc
            for _, declaration in (*section.enums, *section.records):
                assert declaration.__doc__
            for register in section.registers:
                assert register.doc
                assert register.holds is None or register.holds.__doc__
            for _, record in section.records:
                assert all(field.doc for field in record.FIELDS)


@pytest.mark.parametrize("module", [dma_test, registers], ids=lambda module: module.__name__)
def test_all_declared_bit_fields_belong_to_a_register(module: ModuleType) -> None:
    held = {
        register.holds for interface in INTERFACES for section in interface.sections for register in section.registers
    }
    declared = {value for value in vars(module).values() if isinstance(value, type) and value.__base__ is BitFields}

    assert declared <= held
    assert declared
