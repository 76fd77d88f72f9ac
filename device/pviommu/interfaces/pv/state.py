"""The saved state of the PV-IOMMU: a record from each part of it that has state."""

from __future__ import annotations

from msgspec import Struct

from ...engine import EngineState
from ...pci.state import FunctionState
from .bindings import BindingsState
from .contexts import ContextsState
from .events import EventRingState
from .execution import ExecutorState
from .guest_tables import TablesState
from .patience import PatienceState
from .profile import Targets
from .ring import CommandRingState
from .ring_setup import RingSetup
from .xen_v7 import XenV7State

__all__ = ["PvIommuState"]


class PvIommuState(Struct, frozen=True):
    """The whole function. Its register says which profile is selected; the other profile has no state."""

    function: FunctionState
    engine: EngineState
    contexts: ContextsState
    bindings: BindingsState
    events: EventRingState
    rings: tuple[CommandRingState, ...]
    setups: tuple[RingSetup, ...]
    """the set-up of each ring, as the guest has written it"""
    executor: ExecutorState
    xen_v7: XenV7State
    patience: PatienceState
    backlogs: dict[int, Targets]
    """by stream: what its request in progress waits for"""
    capability_generation: int
    tables: dict[int, TablesState] = {}
    """by context: the guest's own"""
    steps: dict[int, int] = {}
    """by in-flight line that was ever used"""
