"""Devices that are wrong on purpose, for the self-check to find out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from pviommu.engine import Access, Engine, Outcome, Run, TranslationFault, UnmapMode
from pviommu.interfaces.pv import function
from pviommu.interfaces.pv.contexts import Contexts
from pviommu.machine import Machine
from pviommu.pci.function import Environment
from pviommu.topology import Topology


class StaleEngine(Engine):
    """An unmap leaves translations in the IOTLB."""

    def unmap(self, ctx: int, dfn: int, nr: int, mode: UnmapMode = UnmapMode.UNTIL_HOLE) -> Outcome:
        cached = dict(self._iotlb._blocks)
        outcome = super().unmap(ctx, dfn, nr, mode)
        self._iotlb._blocks.update(cached)
        return outcome


class PermissiveEngine(Engine):
    """Everything is mapped readable and writeable."""

    def map(self, ctx: int, dfn: int, gfn: int, nr: int, access: Access, **how: Any) -> Outcome:
        return super().map(ctx, dfn, gfn, nr, Access(3) if access else access, **how)


class HastyEngine(Engine):
    """Only the first byte of a DMA is looked at."""

    def translate(self, stream: int, iova: int, length: int, access: Access) -> list[Run] | TranslationFault:
        found = super().translate(stream, iova, min(length, 1), access)
        return [Run(found[0].gpa, length)] if isinstance(found, list) and found else found


class LeakyEngine(Engine):
    """A context that is freed keeps its pages."""

    def free_domain(self, number: int) -> Any:
        used = self._pool.free
        stop = super().free_domain(number)
        self._pool.free = used
        return stop


class ForgivingContexts(Contexts):
    """Whatever unblocks an endpoint ends a hold too."""

    def unblock(self, stream: int) -> None:
        self._held.discard(stream)
        super().unblock(stream)


WRONG = (StaleEngine, PermissiveEngine, HastyEngine, LeakyEngine, ForgivingContexts)


def machine_with(wrong: type[Engine] | type[Contexts]) -> Callable[[Topology, Environment], Machine]:
    """A machine whose engine or contexts are wrong from the beginning: methods are bound while the machine is built."""

    def build(topology: Topology, environment: Environment) -> Machine:
        right = "Engine" if issubclass(wrong, Engine) else "Contexts"
        with mock.patch.object(function, right, wrong):
            return Machine.build(topology, environment)

    return build
