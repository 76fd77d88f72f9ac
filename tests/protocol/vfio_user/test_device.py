"""The values that pass between a session and its device."""

from __future__ import annotations

from typing import Any

from vfio_user import Device, DeviceFlags, DeviceInfo, IrqAction, IrqKind, Region, Session
from vfio_user.messages import SetIrqsFlags


def test_device_info_defaults_to_a_resettable_pci_function() -> None:
    assert DeviceInfo() == DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, 9, 5)


def test_region_defaults_to_absent() -> None:
    assert (Region().size, Region().flags) == (0, 0)


def test_actions_and_kinds_are_the_wire_bits() -> None:
    assert {int(action) for action in IrqAction} == {8, 16, 32}
    assert sum(IrqKind) + sum(IrqAction) == sum(SetIrqsFlags)


def test_plain_class_is_a_device(device: Any) -> None:
    found: Device = device
    session = Session(found)
    session.eof()
    assert device.calls == ["disconnected"]
