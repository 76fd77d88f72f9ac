"""What every virtio device on PCI does: negotiation, status, queues, notifications (virtio 1.2, sections 2 and 4.1).

A device derives from :class:`VirtioDevice` and overrides :meth:`VirtioDevice.serve`. All else, with what a guest may do
wrong, is here and in :mod:`pviommu.virtio`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from vfio_user import RegionIndex, Steps
from wire_layout.registers import Register

from ..dma.fault import DmaRefusedError
from ..hosted import NAP_MS, SHORT_NAP_MS
from ..pci.registers import RegisterFile
from ..virtio import packed, split
from ..virtio.features import REQUIRED, RING_PACKED, RING_RESET, DeviceStatus
from ..virtio.layout import (
    CONFIG_OFFSET,
    NO_VECTOR,
    NOTIFY_OFFSET,
    PCI_CFG_DATA,
    REGISTER_BAR,
    REGISTER_BAR_SIZE,
    Isr,
    capabilities,
    pci_cfg,
    registers,
)
from ..virtio.packed import PackedRing
from ..virtio.ring import Buffer, QueueState, Ring, RingError
from ..virtio.split import SplitRing
from .endpoint import Endpoint, Surroundings

__all__ = [
    "EAGER_NS",
    "LEAST_POLL_NS",
    "MOST_ANSWERS",
    "MOST_EAGER_NS",
    "MOST_POLL_NS",
    "PASSED_OVER",
    "STEP_NS",
    "WRONG",
    "VirtioDevice",
]

log = logging.getLogger(__name__)

STEP_NS = 100_000
"""A step ends with the buffer that takes it past this."""
LEAST_POLL_NS, MOST_POLL_NS = 100_000, 5_000_000
"""How long a queue is looked at after its last buffer, before the driver is asked to notify of the next one, which
traps. Twice as long as before each time that the notification comes so soon that looking on would have found the
buffer, up to the most; half as long when it comes later, down to the least: as KVM polls for a vCPU that halts.
"""
EAGER_NS, MOST_EAGER_NS = 100_000, 2_000_000
"""How much of that time the naps between two looks are short: for an answer, twice as long as answers take, if that is
less than the most.
"""
MOST_ANSWERS, WRONG = 8, 4
"""The most credit for answers that came as expected, each of which earns 1, and what one that did not come costs."""
PASSED_OVER = 64
"""Answers that are not expected any more once there is no credit, before the next one is."""
_MSIX_BAR = 4
_CONFIG = int(RegionIndex.CONFIG)
_LIVE, _NEEDS_RESET = int(DeviceStatus.DRIVER_OK), int(DeviceStatus.DEVICE_NEEDS_RESET)
_FEATURES_OK = int(DeviceStatus.FEATURES_OK)
_MASK = 0xFFFFFFFF


class _Registers(RegisterFile):
    """Registers that notice when the driver reads the device's configuration."""

    handlers: VirtioDevice

    def read(self, offset: int, count: int) -> bytes:
        if CONFIG_OFFSET <= offset < NOTIFY_OFFSET:
            self.handlers.config_is_read()
        return super().read(offset, count)


@dataclass
class _Polling:
    """How one queue is looked at."""

    window_ns: int = LEAST_POLL_NS
    until_ns: int = 0
    eager_until_ns: int = 0
    """until then it is looked at more often"""
    used: int = -1
    """how many of its buffers had been used when that began"""
    asked_ns: int = -MOST_POLL_NS
    """when the driver was asked to notify"""
    answers: int = MOST_ANSWERS
    """credit; negative: so many answers are not expected"""
    answer_ns: int = LEAST_POLL_NS
    """how long an answer is looked for"""
    expects: bool = False
    """whether it is looked at because an answer is expected"""
    expected_ns: int = 0
    """since when"""
    usual_ns: int = 0
    """after how long answers have come, on average, the last ones most"""
    is_missing: bool = False
    """whether the last answer did not come in that time"""

    def notified(self, now_ns: int) -> None:
        self.used = -1
        if self.is_missing:
            self.is_missing = False
            if now_ns - self.expected_ns < MOST_POLL_NS:
                self.answer_ns = min(2 * self.answer_ns, MOST_POLL_NS)
                self.answers = min(max(self.answers, 0) + WRONG, MOST_ANSWERS)
                return
        is_soon = now_ns - self.asked_ns + self.window_ns < MOST_POLL_NS
        self.window_ns = min(2 * self.window_ns, MOST_POLL_NS) if is_soon else max(self.window_ns // 2, LEAST_POLL_NS)

    def begin(self, now_ns: int, used: int) -> None:
        """It has been used: look at it for a while."""
        self._look(now_ns, self.window_ns, EAGER_NS, used)
        if self.expects:
            self.expects = False
            self.answers = min(self.answers + 1, MOST_ANSWERS)
            self.usual_ns += (now_ns - self.expected_ns - self.usual_ns) // 4

    def expect(self, now_ns: int, used: int) -> None:
        """Look for an answer."""
        self.expects, self.expected_ns = True, now_ns
        eager_ns = 2 * self.usual_ns if EAGER_NS < 2 * self.usual_ns <= MOST_EAGER_NS else EAGER_NS
        self._look(now_ns, self.answer_ns, eager_ns, used)

    def _look(self, now_ns: int, window_ns: int, eager_ns: int, used: int) -> None:
        self.until_ns, self.eager_until_ns, self.used = now_ns + window_ns, now_ns + eager_ns, used

    def is_worth_expecting(self) -> bool:
        """Whether the last answers came."""
        if self.answers < 0:
            self.answers += 1
        return self.answers >= 0

    def end(self, now_ns: int) -> None:
        """The driver was asked to notify."""
        self.asked_ns = now_ns
        if self.expects:
            self.expects, self.is_missing = False, True
            self.answers -= WRONG
            if self.answers < 0:
                self.answers = -PASSED_OVER


class VirtioDevice(Endpoint):
    """A virtio device. It accepts no driver that would bypass the IOMMU (ACCESS_PLATFORM).

    What a driver does wrong with a ring, and DMA to a ring that is refused, sets DEVICE_NEEDS_RESET: nothing is certain
    in that ring any more. Then the device does nothing until it is reset.
    """

    class State(Endpoint.State):
        status: int = 0
        """DEVICE_STATUS"""
        driver_features: int = 0
        queues: list[QueueState] = msgspec.field(default_factory=list)
        """by number; those at the end that the driver has not touched may be missing"""
        config_changed: bool = False
        """since the driver last read any of the configuration"""

    state: State

    def __init__(
        self, surroundings: Surroundings, *, queues: int, queue_size: int, config: Iterable[Register], features: int
    ) -> None:
        """``queues``, each of up to ``queue_size`` entries, a power of two; ``config``: registers of the device's own,
        from offset 0 on; ``features``: what is offered, the :data:`.virtio.features.REQUIRED` ones in any case.
        """
        super().__init__(surroundings)
        self.offered = features | REQUIRED
        self.queue_size = queue_size
        self._queue_count = queues
        declared = registers(queues, config)
        self.registers = _Registers(declared, self)
        self.registers["NUM_QUEUES"] = queues
        self.registers["QUEUE_SIZE"] = queue_size
        self.add_register_bar(REGISTER_BAR, self.registers, REGISTER_BAR_SIZE)
        self._vectors = queues + 1
        self.add_msix_bar(_MSIX_BAR, vectors=self._vectors, size=4096, pba_offset=0x800)
        length = max(each.places[-1] + each.size for each in declared if each.offset < NOTIFY_OFFSET) - CONFIG_OFFSET
        for capability in capabilities(queues, length):
            self._pci_cfg = self.config.add_capability(*capability)
        self._rings: dict[int, Ring] = {}
        """the queues that are enabled"""
        self._kicked: dict[int, None] = {}
        """the queues of which the driver has notified"""
        self._polling = [_Polling() for _ in range(queues)]
        self._polls = False
        """whether a queue without buffers is to be looked at again in the next turn"""

    # -- what a device does -----------------------------------------------------------------------------------------

    def serve(self, deadline_ns: int) -> bool:
        """Use buffers, until the deadline. Returns whether there was anything to do. Refused DMA that it does not
        catch, and :class:`.virtio.ring.RingError`, set DEVICE_NEEDS_RESET.
        """
        raise NotImplementedError

    def fits(self, features: int) -> bool:
        """Whether the driver's choice among the features offered is one that the device can work with."""
        return True

    # -- what a device may ask for ----------------------------------------------------------------------------------

    def has(self, feature: int) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.state.driver_features & feature)

    @property
    def is_live(self) -> bool:
        """Whether the driver is ready, and nothing has gone wrong since."""
        return self.state.status & (_LIVE | _NEEDS_RESET) == _LIVE

    def ring(self, queue: int) -> Ring | None:
        """A queue, if it is enabled."""
        return self._rings.get(queue)

    def buffers(self, queue: int, count: int = 1) -> Sequence[Buffer]:
        """The next buffers of a queue, ``count`` of them if the driver has made so many available. If not, they are
        looked for again in the next turns, or the driver is asked to notify of more.
        """
        ring = self._rings.get(queue)
        if ring is None:
            return ()
        if ring.state.asked:
            return ring.fetched
        found = ring.fetched if ring.is_dry else ring.peek(count)  # one look in a step is enough
        if len(found) >= count:
            return found
        now, polling = self.inputs.now_ns(), self._polling[queue]
        if polling.used != ring.used:
            polling.begin(now, ring.used)
        elif now > polling.until_ns and ring.ask():
            polling.end(now)
            return found
        self._polls = True
        if now < polling.eager_until_ns:
            self.nap_ms = SHORT_NAP_MS
        return found

    def expect(self, queue: int) -> None:
        """A buffer of this queue is likely to follow soon, as the answer to what another one was just given. It is
        looked for without a notification, unless that was in vain several times."""
        ring, polling = self._rings.get(queue), self._polling[queue]
        if ring is not None and ring.state.asked and polling.is_worth_expecting():
            ring.hush()
            ring.state.asked = False
            polling.expect(self.inputs.now_ns(), ring.used)

    def longest_answer_ns(self, queue: int) -> int:
        """How long an answer on this queue is looked for, if one is worth expecting of which the driver would notify
        otherwise; 0: it is not."""
        ring, polling = self._rings.get(queue), self._polling[queue]
        return polling.answer_ns if ring is not None and ring.state.asked and polling.answers >= 0 else 0

    def expected(self, queue: int, time_ns: int, used: int) -> None:
        """As :meth:`expect`, of what somebody else began to look for at that time, when ``used`` buffers had been
        used."""
        ring = self._rings.get(queue)
        if ring is not None:
            ring.state.asked = False
            self._polling[queue].expect(time_ns, used)

    def config_change(self) -> None:
        """The configuration, or the device's status, is not what it was: tell the driver."""
        self.state.config_changed = True
        if self.state.status & _LIVE:
            self.registers["ISR_STATUS"] |= Isr.CONFIGURATION
            self._interrupt_at(self.registers["CONFIG_MSIX_VECTOR"])

    def needs_reset(self, why: str) -> None:
        """The device cannot go on before a reset; ``why`` is for the log."""
        if not self.state.status & _NEEDS_RESET:
            log.warning("%s: needs a reset: %s", self.name, why)
            self.state.status |= _NEEDS_RESET
            self.config_change()

    # -- steps ------------------------------------------------------------------------------------------------------

    def work(self) -> bool:
        if not self.is_live or not self.config.bus_master:
            return False
        try:
            for queue in list(self._kicked):
                self._notified(queue)
                del self._kicked[queue]
            self._polls, self.may_nap, self.nap_ms = False, True, NAP_MS
            for ring in self._rings.values():
                ring.is_dry = False
            busy = self.serve(self.inputs.now_ns() + STEP_NS)
            for ring in self._rings.values():
                if ring.publish():
                    self._interrupt_for(ring.state.vector)
        except RingError as error:
            self.needs_reset(str(error))
            return False
        except DmaRefusedError as error:
            self.needs_reset(f"a ring is out of its reach: {error}")
            return False
        self.may_nap &= not busy
        return busy or self._polls

    def _notified(self, queue: int) -> None:
        """The driver has notified. More of that is not needed as long as the queue is looked at anyway."""
        ring = self._rings.get(queue)
        if ring is not None:
            ring.notified()
            ring.state.asked = False
            self._polling[queue].notified(self.inputs.now_ns())

    def _interrupt_for(self, vector: int) -> None:
        if vector == NO_VECTOR:
            self.registers["ISR_STATUS"] |= Isr.QUEUE
        self._interrupt_at(vector)

    def _interrupt_at(self, vector: int) -> None:
        if vector != NO_VECTOR:
            self.interrupt(vector)

    def cancel_dma(self) -> None:
        """What the rings are mapped to is gone, and what was in progress in them is unknown."""
        if self.is_live and self._rings:
            self.needs_reset("its DMA was cancelled")

    def reset_device(self) -> None:
        super().reset_device()
        self._forget()

    def _forget(self) -> None:
        self.state = self.State()
        self._rings.clear()
        self._kicked.clear()
        self._polling = [_Polling() for _ in range(self._queue_count)]

    def on_load(self) -> None:
        for number, queue in enumerate(self.state.queues):
            if queue.enabled:
                self._rings[number] = self._new_ring(queue)
                self._kicked[number] = None  # a notification that came after the last step is not in the state

    # -- registers: the device --------------------------------------------------------------------------------------

    def read_device_feature(self, _: int) -> int:
        return self.offered >> 32 * min(self.registers["DEVICE_FEATURE_SELECT"], 2) & _MASK

    def read_driver_feature(self, _: int) -> int:
        return self.state.driver_features >> 32 * min(self.registers["DRIVER_FEATURE_SELECT"], 2) & _MASK

    def write_driver_feature(self, _: int, value: int) -> None:
        shift = 32 * self.registers["DRIVER_FEATURE_SELECT"]
        if shift <= 32 and not self.state.status & _FEATURES_OK:  # after that they are settled
            kept = self.state.driver_features & ~(_MASK << shift)
            self.state.driver_features = (kept | value << shift) & self.offered

    def write_config_msix_vector(self, _: int, value: int) -> None:
        self.registers["CONFIG_MSIX_VECTOR"] = self._checked_vector(value)

    def _checked_vector(self, vector: int) -> int:
        return vector if vector < self._vectors else NO_VECTOR

    def read_device_status(self, _: int) -> int:
        return self.state.status

    def write_device_status(self, _: int, value: int) -> None:
        """The driver only adds bits, and 0 resets the device."""
        if not value:
            self.dma.give_up()
            self._forget()
            self.registers.reset()
            return
        status = self.state.status | value & ~_NEEDS_RESET
        if status & ~self.state.status & _FEATURES_OK and not self._accepts(self.state.driver_features):
            status &= ~_FEATURES_OK
        if not status & _FEATURES_OK:
            status &= ~_LIVE
        self.state.status = status

    def _accepts(self, features: int) -> bool:
        return features & REQUIRED == REQUIRED and self.fits(features)

    def config_is_read(self) -> None:
        """The driver reads some of the configuration."""
        if self.state.config_changed:
            self.state.config_changed = False
            self.registers["CONFIG_GENERATION"] = self.registers["CONFIG_GENERATION"] + 1 & 0xFF

    def read_isr_status(self, _: int) -> int:
        status, self.registers["ISR_STATUS"] = self.registers["ISR_STATUS"], 0
        return status

    # -- registers: the selected queue ------------------------------------------------------------------------------

    def _selected(self) -> QueueState | None:
        """The state of the queue that is selected, if there is such a queue."""
        number = self.registers["QUEUE_SELECT"]
        if number >= self._queue_count:
            return None
        while len(self.state.queues) <= number:
            self.state.queues.append(QueueState(self.queue_size))
        return self.state.queues[number]

    def write_queue_select(self, _: int, number: int) -> None:
        queue = self._selected()
        values = queue or QueueState()
        self.registers["QUEUE_SIZE"] = values.size
        self.registers["QUEUE_MSIX_VECTOR"] = values.vector
        self.registers["QUEUE_ENABLE"] = values.enabled
        self.registers["QUEUE_NOTIFY_OFF"] = number if queue else 0
        self.registers["QUEUE_DESC"] = values.desc
        self.registers["QUEUE_DRIVER"] = values.driver
        self.registers["QUEUE_DEVICE"] = values.device
        self.registers["QUEUE_RESET"] = 0

    def _is_configurable(self, *_: int) -> bool:
        queue = self._selected()
        return queue is not None and not queue.enabled

    accept_queue_desc = accept_queue_driver = accept_queue_device = accept_queue_msix_vector = _is_configurable

    def accept_queue_size(self, _: int, value: int) -> bool:
        return self._is_configurable() and 0 < value <= self.queue_size

    def write_queue_size(self, _: int, value: int) -> None:
        if queue := self._selected():
            queue.size = value

    def write_queue_msix_vector(self, _: int, value: int) -> None:
        if queue := self._selected():
            queue.vector = self.registers["QUEUE_MSIX_VECTOR"] = self._checked_vector(value)

    def write_queue_desc(self, _: int, value: int) -> None:
        if queue := self._selected():
            queue.desc = value

    def write_queue_driver(self, _: int, value: int) -> None:
        if queue := self._selected():
            queue.driver = value

    def write_queue_device(self, _: int, value: int) -> None:
        if queue := self._selected():
            queue.device = value

    def accept_queue_enable(self, _: int, value: int) -> bool:
        return value == 1 and self._is_configurable() and bool(self.state.status & _FEATURES_OK)

    def write_queue_enable(self, _: int, __: int) -> None:
        if not (queue := self._selected()):
            return
        number = self.registers["QUEUE_SELECT"]
        is_packed = self.has(RING_PACKED)
        alignment = packed.ALIGNMENT if is_packed else split.ALIGNMENT
        parts = zip((queue.desc, queue.driver, queue.device), alignment, strict=True)
        queue.enabled = True
        if any(address % multiple for address, multiple in parts):
            self.needs_reset(f"queue {number} is at addresses that are not multiples of {alignment}")
        elif not is_packed and queue.size & (queue.size - 1):
            self.needs_reset(f"queue {number} of {queue.size} entries: not a power of two")
        else:
            self._rings[number] = self._new_ring(queue)
            self._kicked[number] = None  # what the driver made available before

    def _new_ring(self, queue: QueueState) -> Ring:
        kind = PackedRing if self.has(RING_PACKED) else SplitRing
        return kind(queue, self.dma, self.state.driver_features)

    def accept_queue_reset(self, _: int, value: int) -> bool:
        return value == 1 and self._selected() is not None and self.has(RING_RESET)

    def write_queue_reset(self, _: int, __: int) -> None:
        number = self.registers["QUEUE_SELECT"]
        self.dma.give_up()
        self.state.queues[number] = QueueState(self.queue_size)
        self._rings.pop(number, None)
        self._kicked.pop(number, None)
        self.write_queue_select(0, number)

    def write_notify(self, queue: int, _: int) -> None:
        self._kicked[queue] = None

    # -- registers through configuration space ----------------------------------------------------------------------

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        if index == _CONFIG and self._touches_pci_cfg(offset, count) and (target := self._pci_cfg_target()):
            bar, place, length = target
            self.config.set(
                self._pci_cfg + PCI_CFG_DATA, int.from_bytes(self.bars[bar].read(place, length), "little"), 4
            )
        return super().region_read(index, offset, count)

    def region_write(self, index: int, offset: int, data: bytes) -> Steps | None:
        steps = super().region_write(index, offset, data)
        if index == _CONFIG and self._touches_pci_cfg(offset, len(data)) and (target := self._pci_cfg_target()):
            bar, place, length = target
            return self.bars[bar].write(place, self.config.read(self._pci_cfg + PCI_CFG_DATA, length))
        return steps

    def _touches_pci_cfg(self, offset: int, count: int) -> bool:
        first = self._pci_cfg + PCI_CFG_DATA
        return offset < first + 4 and first < offset + count

    def _pci_cfg_target(self) -> tuple[int, int, int] | None:
        """BAR, offset and length of the access that pci_cfg_data stands for, if it is one."""
        bar, place, length = pci_cfg(self.config.read(self._pci_cfg, PCI_CFG_DATA))
        if length not in (1, 2, 4) or place % length or bar not in self.bars:
            return None
        return (bar, place, length) if place + length <= self.bars[bar].region.size else None
