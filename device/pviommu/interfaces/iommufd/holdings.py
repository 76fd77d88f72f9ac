"""What a system has of programs, as values that can be compared: a request that fails on purpose changes none of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ...engine import AddressSpace
from .access import Access
from .context import Iommufd
from .devices import Device
from .events import EventFile
from .group import Container
from .ioas import Backing, Ioas

if TYPE_CHECKING:
    from .objects import Object
    from .process import OpenFile, System

__all__ = ["changes", "holdings"]


def holdings(system: System, files: Iterable[OpenFile | None]) -> dict[str, Any]:
    """By what it is: page tables with the pages in them, what devices are given to, and the objects of ``files``, those
    that are open. What there is not has no key.
    """
    engine = system.hardware.engine
    found: dict[str, Any] = {f"page table {number}": engine.mapped_pages(number) for number in engine.domains()}
    found["pages of page tables"] = engine.pool_pages()[0]
    for device in system.devices.values():
        found |= {f"{what} of {device}": held for what, held in _held_by(device) if held}
    open_files = list(files)
    for number, file in enumerate(file for file in open_files if isinstance(file, Iommufd)):
        for held in file.objects:
            found[f"{held} of /dev/iommu {number}"] = held.users, _parts_of(held)
    for number, container in enumerate(file for file in open_files if isinstance(file, Container)):
        found |= {f"{group} in container {number}": True for group in container.groups}
        if container.type1:
            found[f"type1 of container {number}"] = _areas(container.type1.space), container.type1.tracks_dirty
    return found


def _held_by(device: Device) -> Iterator[tuple[str, object]]:
    group = device.group
    yield from (("owner", device.owner), ("file of the group", group.file), ("bound files of the group", group.bound))
    yield "page table", group.hwpt and (str(group.hwpt), [str(each) for each in group.attached])
    for pasid, at in group.pasids.items():
        yield f"page table with PASID {pasid}", str(at.hwpt)


def _areas(space: AddressSpace[Backing]) -> tuple[object, ...]:
    areas = [(area.first, area.last, area.target, area.tag.access) for area in space.areas]
    return areas, space.ranges(), space.alignment


def _parts_of(held: Object) -> object:
    if isinstance(held, Ioas):
        return _areas(held.space), held.huge_pages, sorted(str(user) for user in (*held.hwpts, *held.accesses))
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
