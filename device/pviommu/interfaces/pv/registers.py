"""What the PV-IOMMU's registers do: choose a profile, reset, set rings up."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from pviommu_abi.registers import REGISTERS, Feature, Profile, Reset, RingControl, RingStatus, Status
from vfio_user import Steps

from ...counters import Counters
from ...dma.memory import GuestMemory
from ...pci.registers import RegisterFile
from .execution import Executor
from .profile import XenProfile
from .ring import CommandRing
from .ring_setup import RingSetup, overlaps

__all__ = ["PvRegisters", "RegisterOwner"]

log = logging.getLogger(__name__)

LOOK_NS = 1_000_000
"""How long the search for memory that the guest uses goes on before others have a turn."""
FEATURES = Feature(PROFILE_XEN_2024=1, POSTED=1, PROFILE_XEN_V7=1, BATCH_2014=1)
"""What every configuration has."""
_ENABLE = int(RingControl.ENABLE)


class RegisterOwner(Protocol):
    """The function that the registers belong to."""

    name: str
    counters: Counters
    memory: GuestMemory

    def on_reset(self) -> None:
        """Reset all of the device; calls :meth:`PvRegisters.reset`."""

    def on_function_reset(self) -> None:
        """The same, and what was blocked stays so until it is attached."""

    def drain(self) -> Iterator[None]:
        """Execute what each ring holds now, in steps."""


class PvRegisters:
    """The handlers of :attr:`file`, and what the guest has set up for its rings."""

    def __init__(
        self,
        owner: RegisterOwner,
        instance: int,
        rings: Sequence[CommandRing],
        executor: Executor,
        profiles: Mapping[int, XenProfile],
        *,
        guest_tables: bool = True,
    ) -> None:
        """``guest_tables``: whether contexts may have tables that the guest owns."""
        self._owner = owner
        self._rings = rings
        self._executor = executor
        self._profiles = profiles
        self._setups: list[RingSetup] = []
        self.load([RingSetup()] * len(rings))
        self.file = RegisterFile(REGISTERS, self)
        self.file["FEATURES"] = FEATURES | (Feature.GUEST_TABLES if guest_tables else 0)
        self.file["INSTANCE"] = instance
        self.file["MAX_RINGS"] = len(rings)

    @property
    def rings_on(self) -> bool:
        """Whether any ring is on."""
        return any(ring.enabled for ring in self._rings)

    def reset(self) -> None:
        """Everything as at power-on; turning the rings off is up to their owner."""
        self.load([RingSetup()] * len(self._rings))
        self.file.reset()

    def save(self) -> tuple[RingSetup, ...]:
        """The set-up of each ring; the registers themselves are saved by their file."""
        return tuple(map(replace, self._setups))

    def load(self, setups: Sequence[RingSetup]) -> None:
        """Take over ``setups``. Raises ValueError if they are not of as many rings as there are."""
        if len(setups) != len(self._rings):
            raise ValueError(f"set-ups of {len(setups)} rings, and there are {len(self._rings)}")
        self._setups = list(map(replace, setups))

    def _judge(self, accepted: bool) -> bool:
        """Say in STATUS whether a write was accepted, and return that."""
        status = self.file["STATUS"]
        self.file["STATUS"] = status & ~Status.REFUSED if accepted else status | Status.REFUSED
        return accepted

    # -- the device -------------------------------------------------------------------------------------------------

    def read_status(self, _: int) -> int:
        return self.file["STATUS"] | (Status.RINGS_ON if self.rings_on else 0)

    def read_doorbells(self, _: int) -> int:
        return self._owner.counters.doorbells

    def write_doorbell(self, _: int, __: int) -> None:
        self._executor.waits.rung()
        self._owner.counters.doorbells += 1  # it has woken the loop, and the rings say what there is to do

    def accept_profile(self, _: int, value: int) -> bool:
        return self._judge(not self.rings_on and (value == Profile.NONE or value in self._profiles))

    def write_profile(self, _: int, value: int) -> None:
        self._owner.on_reset()
        self._executor.select(self._profiles.get(value))
        self.file["PROFILE"] = value

    def accept_reset(self, _: int, value: int) -> bool:
        return value in list(Reset) or self._judge(False)

    def write_reset(self, _: int, value: int) -> Steps | None:
        return _begun(self._reset_after_drain(value))

    def _reset_after_drain(self, value: int) -> Iterator[None]:
        yield from self._owner.drain()
        if value == Reset.BLOCKED:
            self._owner.on_function_reset()
        else:
            self._owner.on_reset()
        self._judge(True)

    # -- the selected ring ------------------------------------------------------------------------------------------

    @property
    def _ring(self) -> CommandRing:
        return self._rings[self.file["RING_SELECT"]]

    @property
    def _setup(self) -> RingSetup:
        return self._setups[self.file["RING_SELECT"]]

    def accept_ring_select(self, _: int, value: int) -> bool:
        return self._judge(value < len(self._rings))

    def _set_up(self, name: str, value: int) -> None:
        if self._judge(not self._ring.enabled):
            setattr(self._setup, name, value)

    def read_ring_type(self, _: int) -> int:
        return self._setup.kind

    def write_ring_type(self, _: int, value: int) -> None:
        self._set_up("kind", value)

    def read_ring_entries(self, _: int) -> int:
        return self._setup.entries

    def write_ring_entries(self, _: int, value: int) -> None:
        self._set_up("entries", value)

    def read_ring_base_lo(self, _: int) -> int:
        return self._setup.base_low

    def write_ring_base_lo(self, _: int, value: int) -> None:
        self._set_up("base_low", value)

    def read_ring_base_hi(self, _: int) -> int:
        return self._setup.base_high

    def write_ring_base_hi(self, _: int, value: int) -> None:
        self._set_up("base_high", value)

    def read_ring_control(self, _: int) -> int:
        return _ENABLE if self._ring.enabled else 0

    def write_ring_control(self, _: int, value: int) -> Steps | None:
        ring, setup = self._ring, self._setup
        if value == 0:
            ring.disable()
            self._judge(True)
        elif value == _ENABLE and not ring.enabled and self._may_enable(setup, ring):
            return _begun(self._enable_in_used_memory(setup, ring))
        else:
            self._judge(False)
        return None

    def _may_enable(self, setup: RingSetup, ring: CommandRing) -> bool:
        return (
            self.file["PROFILE"] != Profile.NONE
            and setup.is_legal()
            and ring.is_rewound()
            and not overlaps(setup, self._rings, self._setups)
        )

    def _enable_in_used_memory(self, setup: RingSetup, ring: CommandRing) -> Iterator[None]:
        """Turn a ring on, unless the guest uses other memory than its hypervisor has handed over."""
        is_used = yield from self._owner.memory.is_used_by_guest(LOOK_NS)
        if is_used:
            ring.enable(setup.base, setup.entries)
            self.file["STATUS"] &= ~Status.MEMORY_NOT_SHARED
        else:
            self.file["STATUS"] |= Status.MEMORY_NOT_SHARED
            log.error(
                "%s: the memory files that QEMU handed over hold no data, so the guest uses other memory: "
                "the memory backend needs share=on",
                self._owner.name,
                extra={"event": "memory-not-shared"},
            )
        self._judge(is_used)

    def read_ring_status(self, _: int) -> int:
        return (RingStatus.ENABLED if self._ring.enabled else 0) | (RingStatus.BROKEN if self._ring.broken else 0)


def _begun(steps: Iterator[None]) -> Steps | None:
    """Take the first step; returns the rest, if there is one."""
    try:
        next(steps)
    except StopIteration:
        return None
    return steps
