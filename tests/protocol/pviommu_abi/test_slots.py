"""The slot itself, as numbers."""

from __future__ import annotations

from pviommu_abi.slots import PAYLOAD_OFFSET, PAYLOAD_SIZE, SLOT_SIZE, Errno, Slot

from .conftest import offsets


def test_a_slot_is_a_header_of_16_and_a_payload_of_48() -> None:
    assert offsets(Slot) == {"op_class": 0, "op": 1, "flags": 2, "sequence": 4, "result": 8, "completed": 12}
    assert (Slot.SIZE, PAYLOAD_OFFSET, PAYLOAD_SIZE, SLOT_SIZE) == (16, 16, 48, 64)


def test_errno_values_are_those_of_xen() -> None:
    assert {error.name: error.value for error in Errno} == {
        "EPERM": 1,
        "ENOENT": 2,
        "EIO": 5,
        "E2BIG": 7,
        "ENOMEM": 12,
        "EACCES": 13,
        "EFAULT": 14,
        "EBUSY": 16,
        "EEXIST": 17,
        "ENODEV": 19,
        "EINVAL": 22,
        "ENOSPC": 28,
        "ERANGE": 34,
        "EOPNOTSUPP": 95,
        "EADDRINUSE": 98,
        "EADDRNOTAVAIL": 99,
    }
