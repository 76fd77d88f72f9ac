"""What a system has of programs, as values that can be compared: a request that fails on purpose changes none of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .access import Access
from .context import Iommufd
from .events import EventFile
from .ioas import Ioas

if TYPE_CHECKING:
    from .objects import Object
    from .process import OpenFile, System

__all__ = ["changes", "holdings"]


def holdings(system: System, files: Iterable[OpenFile | None]) -> dict[str, Any]:
    """By what it is: page tables with the pages in them, devices, and the objects of ``files``, those that are open."""
    engine = system.hardware.engine
    found: dict[str, Any] = {
        "page tables": {number: engine.mapped_pages(number) for number in engine.domains()},
        "pages of page tables": engine.pool_pages()[0],
    }
    for device in system.devices.values():
        group = device.group
        tables = {pasid: str(at.hwpt) for pasid, at in group.pasids.items()}
        attached = [str(each) for each in group.attached]
        found[str(device)] = device.owner, group.file, group.bound, str(group.hwpt), attached, tables
    for number, file in enumerate(file for file in files if isinstance(file, Iommufd)):
        for held in file.objects:
            found[f"{held} of /dev/iommu {number}"] = held.users, _parts_of(held)
    return found


def _parts_of(held: Object) -> object:
    if isinstance(held, Ioas):
        areas = [(area.first, area.last, area.target, area.tag.access) for area in held.space.areas]
        users = sorted(str(user) for user in (*held.hwpts, *held.accesses))
        return areas, held.space.ranges(), held.space.alignment, held.huge_pages, users
    if isinstance(held, Access):
        return dict(held.pinned), str(held.ioas)
    return held.is_readable if isinstance(held, EventFile) else None


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not the same, in words."""
    return [
        f"{key}: {before.get(key, 'nothing')}, then {after.get(key, 'nothing')}"
        for key in (*before, *(after.keys() - before.keys()))
        if before.get(key) != after.get(key)
    ]
