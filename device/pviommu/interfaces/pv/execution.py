"""All command rings: which of them has its turn when, and for how long."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ...pci.function import Environment
from ...pci.shared_memory import fence
from ...probes import Probes
from .operations import Operations
from .order import DRAIN_NS, STEP_NS, Order
from .page_operation import PageKinds
from .profile import Reply, XenProfile
from .ring import CommandRing
from .ring_core import Poll, RingCore
from .ring_execution import Notifier, RingExecutor
from .vendor import VendorOperations
from .waits import Waits, WaitsState

__all__ = ["Executor", "ExecutorState"]

MOST_SLOTS = 256
"""Most slots of a ring in one step."""


class ExecutorState(Struct, frozen=True):
    """The saved state of an :class:`Executor`, without the rings and the choice of a profile."""

    waits: WaitsState = WaitsState()
    busy_rings: int = 1


class Executor:
    """The command rings of one PV-IOMMU and the operations that they carry.

    Between two pieces of a long operation other rings have their turns, and so do sockets.
    """

    def __init__(
        self,
        rings: Sequence[CommandRing],
        vendor: VendorOperations,
        environment: Environment,
        notifier: Notifier,
        core: RingCore | None = None,
    ) -> None:
        """``core``: what made ``rings``, if it carries out slots too."""
        self.waits = Waits(environment.counters)
        self.order = Order(environment.inputs, environment.counters)
        self.operations = Operations(vendor, self.order, notifier.name)
        self._rings = rings
        self._executors = [
            RingExecutor(ring, self.operations, self.waits, environment, notifier, core) for ring in rings
        ]
        self.order.rings = self._executors
        self._busy_rings = 1
        """how many rings had work in the last step that found any"""
        self._inputs = environment.inputs
        self._core = core
        self._watched = PageKinds(0)

    def select(self, profile: XenProfile | None) -> None:
        """Carry out slots of this profile's class from now on, and none of another's."""
        self.operations.select(profile)
        self._select_in_core()

    def bind(self, probes: Probes, owner: str) -> None:
        """Make each slot a probe, ``ring.decode``."""
        operations = self.operations
        begin, go_on = operations.begin, operations.go_on

        def bind() -> None:
            probed = probes.probe_pieces("ring.decode", begin, go_on, lambda answer: isinstance(answer, Reply), owner)
            if probed != (operations.begin, operations.go_on):
                operations.begin, operations.go_on = probed  # type: ignore[method-assign,assignment]

        probes.bound(bind)

    def watch(self, kinds: PageKinds) -> None:
        """From now on Python carries out every slot of these kinds, so that probes see them; a core does the others."""
        self._watched = kinds
        self._select_in_core()

    def _select_in_core(self) -> None:
        if self._core is not None:
            profile = self.operations.profile
            rules = None if profile is None or profile.denied else profile.page_rules
            self._core.select(rules, PageKinds.BOTH & ~self._watched)

    def work(self) -> bool:
        """Execute a bounded number of slots of each ring, for a bounded time. Returns whether there were any."""
        self.order.drain_left_ns = DRAIN_NS
        busy = 0
        share = STEP_NS // self._busy_rings
        for ring in self._rings:
            if ring.entries:
                executor = self._executors[ring.number]
                count = executor.pending()
                if ring.operation:
                    if executor.is_held:
                        continue
                elif not count:
                    continue
                executor.execute(min(count, MOST_SLOTS), self._inputs.now_ns() + share)
                busy += 1
        self._busy_rings = busy or 1
        return busy > 0

    def spin(self, poll: Poll) -> bool:
        """Let the core poll the rings. Returns whether it executed anything."""
        if self._core is None or self._is_in_progress():
            return False
        report = self._core.spin(poll)
        if report.waits:
            self.waits.seen(report.waits)
        self._executors[report.ring].settle(report)
        return report.slots > 0

    def _is_in_progress(self) -> bool:
        operations = self.operations
        if operations.may_be_in_progress:
            operations.may_be_in_progress = any(ring.operation for ring in self._rings)
        return operations.may_be_in_progress

    def _may_go_on(self) -> bool:
        """Whether there is an operation in progress that no rule holds."""
        return (
            self.operations.may_be_in_progress
            and self._is_in_progress()
            and any(ring.operation and not self._executors[ring.number].is_held for ring in self._rings)
        )

    def take_waits(self) -> int:
        """How many times somebody in the guest began to wait since the last call, as far as that can be told."""
        return self.waits.take(ring for ring in self._rings if ring.enabled)

    def is_pressed(self) -> bool:
        """Whether there is work that cannot wait a moment: somebody polls for it, or it takes more than one step."""
        return self._may_go_on() or any(
            ring.is_awaited() or self._executors[ring.number].pending() >= MOST_SLOTS
            for ring in self._rings
            if ring.enabled
        )

    def arm(self) -> bool:
        """Ask for doorbells. Returns whether the loop may sleep now: no ring has got work in the meantime."""
        rings = [ring for ring in self._rings if ring.enabled]
        for ring in rings:
            ring.arm()
        fence()
        return not self._may_go_on() and not any(
            not ring.operation and self._executors[ring.number].pending() for ring in rings
        )

    def disarm(self) -> None:
        """Doorbells are not needed: the rings are being polled."""
        for ring in self._rings:
            if ring.enabled:
                ring.disarm()

    def reset(self) -> None:
        """No profile, and nobody waits for anything."""
        self.select(None)
        self.load(ExecutorState())

    def save(self) -> ExecutorState:
        """The state."""
        return ExecutorState(self.waits.save(), self._busy_rings)

    def load(self, state: ExecutorState) -> None:
        """Take over a state; rings and the profile are there already. Raises ValueError if an operation in progress
        waits for a ring that does not exist.
        """
        for ring in self._rings:
            if ring.operation:
                self.order.check(ring.operation.progress.targets)
        self.operations.may_be_in_progress = True
        self.order.reset()
        self.waits.load(state.waits)
        self._busy_rings = state.busy_rings
