"""The work of a machine, and its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from ..counters import Counters
from ..dma.windows import Windows
from ..hosted import Pollable
from ..inputs import Inputs
from ..pci.function import PciFunction
from .endpoints import Endpoint, Endpoints
from .polled import as_one

__all__ = ["Machine", "Work"]


class Machine(Protocol):
    """What can be served: see :class:`pviommu.machine.Machine`."""

    @property
    def inputs(self) -> Inputs: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def pollables(self) -> Sequence[Pollable]:
        """What is polled."""

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """The functions that do DMA, by name."""

    @property
    def windows(self) -> Windows:
        """The BARs through which they reach each other."""

    def functions(self) -> Iterator[PciFunction]:
        """All that a client may have."""


class Work:
    """Rings come before endpoints: a map that nobody waited for is seen by the DMA that follows it."""

    def __init__(self, machine: Machine) -> None:
        """From now on the endpoints of ``machine`` are ready here, and nowhere else."""
        self.polled = as_one(machine.pollables)
        self.endpoints = Endpoints(machine.inputs, machine.endpoints.values(), machine.windows)
        self.may_nap = False
        """whether the last step did nothing but look, which the next may do after a nap"""

    def step(self) -> bool:
        """One bounded step of everything that has something to do. Returns whether there was anything."""
        done = self.polled.work()
        busy = self.endpoints.work()
        self.may_nap = busy and not done and self.endpoints.may_nap
        return busy or done

    @property
    def is_polled(self) -> bool:
        """Whether there may be work without a notification."""
        return self.polled.is_polled or self.endpoints.is_polled

    def arm(self) -> bool:
        """Ask for doorbells. Returns whether there is no work, so that the loop may sleep."""
        return self.polled.arm() and self.endpoints.arm()

    def disarm(self) -> None:
        """The loop is awake."""
        self.polled.disarm()
        self.endpoints.disarm()
