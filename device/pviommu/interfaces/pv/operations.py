"""Carrying out what slots ask for: by their class, and after other rings where the order matters."""

from __future__ import annotations

import logging
from typing import Protocol

from pviommu_abi.slots import Errno, OpClass, SlotFlags

from .order import Order
from .profile import REFUSED, Answer, Held, Progress, Reply, XenProfile
from .ring import Operation
from .vendor import VendorOperations

__all__ = ["Operations"]

log = logging.getLogger(__name__)

_SLOT_FLAGS = int(SlotFlags.POSTED)
"""A plain number: ``~`` of an IntFlag leaves out bits without a name."""


class Carrier(Protocol):
    """Carries out the operations of one class: see :class:`.profile.XenProfile`."""

    def reorders(self, op: int, payload: bytes, /) -> bool: ...
    def execute(self, op: int, payload: bytes, /) -> Answer: ...
    def go_on(self, op: int, payload: bytes, progress: Progress, /) -> Answer: ...


class Operations:
    """The operations of one PV-IOMMU. An exception inside the device fails the operation in progress and nothing
    else."""

    def __init__(self, vendor: VendorOperations, order: Order, name: str) -> None:
        """``name``: the function's, for logs."""
        self._vendor = vendor
        self._order = order
        self._name = name
        self.may_be_in_progress = False
        """whether a long one has begun since it was last found that none is in progress"""
        self._carriers: dict[int, Carrier] = {}
        """by class"""
        self.select(None)

    def select(self, profile: XenProfile | None) -> None:
        """Carry out slots of this profile's class from now on, and none of another's."""
        self.profile = self._vendor.profile = profile
        self._carriers = {OpClass.VENDOR: self._vendor}
        if profile is not None:
            self._carriers[profile.op_class] = profile

    def begin(self, op_class: int, op: int, flags: int, payload: bytes) -> Answer:
        """Carry out what a slot asks for. If that is long, or has to wait for other rings, nothing is done yet."""
        if flags & ~_SLOT_FLAGS:
            return REFUSED
        carrier = self._carriers.get(op_class)
        if carrier is None:
            return REFUSED
        try:
            if carrier.reorders(op, payload) and (targets := self._order.left_of_others()):
                return Progress(targets=targets)
            return carrier.execute(op, payload)
        except Exception:
            log.exception("%s: operation failed: class %d op %d payload %s", self._name, op_class, op, payload.hex())
            return Reply(-Errno.EIO)

    def go_on(self, operation: Operation) -> Answer:
        """Carry out the next piece of an operation in progress."""
        progress = operation.progress
        try:
            if isinstance(progress, Held) and progress.carry_on is not None:
                return progress.carry_on()
            carrier = self._carriers[operation.op_class]
            if not progress.targets:
                return carrier.go_on(operation.op, operation.payload, progress)
            if not self._order.reach(progress.targets):
                waiting = self._order.held_by(progress.targets)
                return Held(targets=progress.targets, waiting=waiting) if waiting else progress
            return carrier.execute(operation.op, operation.payload)
        except Exception:
            log.exception("%s: operation in progress failed: slot %d", self._name, operation.sequence)
            return Reply(-Errno.EIO)
