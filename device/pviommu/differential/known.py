"""Where QEMU's SMMUv3 does otherwise than the architecture says: each row of the table in docs/smmuv3.md ("Where others
differ") that a stimulus can meet.

What one does to an event is undone before events are compared. The others explain a difference that was found, from
what is known of the stimulus; behind some of them both sides are not alike any more, and the rest of the stimulus says
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from smmuv3.commands import COMMAND, Cfgi0, Opcode, Sync0, Tlbi0, Tlbi1
from smmuv3.events import Event1, EventClass, EventType
from smmuv3.registers import PAGE_1, REGISTER, Cr0, IrqControl, QueueConsumer
from smmuv3.structures import Cd0, L1Std, Ste0, Ste1, Ste2, SteConfig
from wire_layout.registers import AccessKind, BitFields

from .comparison import Found
from .sides import READER, WRITER
from .stimuli import OAS, SID_BITS, THERE, Access, Read, Reset, Step, Stimulus, Tables, Write

__all__ = ["DIFFERENCES", "FIXES", "Judgement", "judge"]

Event = tuple[int, int, int, int]
Explains = Callable[[Stimulus, Found], bool]
FIXES: dict[str, Callable[[Event, Event], Event]] = {}
"""By row: QEMU's event as it should be, by ours."""
DIFFERENCES: dict[str, tuple[Explains, bool]] = {}
"""By row: whether it explains a difference, and whether the rest of the stimulus is void."""


@dataclass
class Judgement:
    """What is to be said of a stimulus."""

    unexplained: list[Found] = field(default_factory=list)
    met: set[str] = field(default_factory=set)
    """rows of the table"""


def judge(stimulus: Stimulus, found: list[Found]) -> Judgement:
    """Which differences are known, and which are not."""
    judgement = Judgement()
    for each in found:
        left = _fixed(each, judgement.met)
        if left is None:
            continue
        rows = [row for row, (explains, _) in DIFFERENCES.items() if explains(stimulus, left)]
        judgement.met.update(rows)
        if not rows:
            judgement.unexplained.append(left)
        elif any(DIFFERENCES[row][1] for row in rows):
            break
    return judgement


def _fix(row: str) -> Callable[[Callable[[Event, Event], Event]], Callable[[Event, Event], Event]]:
    def add(fix: Callable[[Event, Event], Event]) -> Callable[[Event, Event], Event]:
        FIXES[row] = fix
        return fix

    return add


def _of(row: str, *, voids: bool = False) -> Callable[[Explains], Explains]:
    def add(explains: Explains) -> Explains:
        DIFFERENCES[row] = explains, voids
        return explains

    return add


# -- events ---------------------------------------------------------------------------------------------------------

_TRANSLATION = range(EventType.F_TRANSLATION, EventType.F_PERMISSION + 1)
_LARGEST_TABLE = 1 << 20
_S2, _RNW, _TTRNW = int(Event1.S2), int(Event1.RNW), int(Event1.TTRNW)


def _kind(event: Event) -> int:
    return event[0] & 0xFF


def _class(event: Event) -> int:
    return Event1(event[1]).CLASS


@_fix("fetch address of F_CD_FETCH")
def _fetch_address(event: Event, _: Event) -> Event:
    first, second, address, last = event
    return (first, second, 0, address) if _kind(event) == EventType.F_CD_FETCH and not last else event


@_fix("stage 2 refuses a lower table of stage 1")
def _stage_2(event: Event, _: Event) -> Event:
    first, second, address, last = event
    is_meant = _kind(event) in _TRANSLATION and _class(event) == EventClass.TT
    return (first, second | _S2, address, last) if is_meant else event


@_fix("RnW of faults of class TT and CD")
def _direction(event: Event, ours: Event) -> Event:
    first, second, address, last = event
    kinds = (*_TRANSLATION, EventType.F_WALK_EABT)
    if _kind(event) not in kinds or not second & _S2 or _class(event) == EventClass.IN or not second & _RNW:
        return event
    return first, second & ~_RNW | ours[1] & (_RNW | _TTRNW), address, last


@_fix("IPA of an event")
def _ipa(event: Event, _: Event) -> Event:
    first, second, address, last = event
    return (first, second, address, last & ~0xFFF) if _kind(event) in _TRANSLATION and second & _S2 else event


@_fix("IPA of a translation that was read before")
def _forgotten(event: Event, ours: Event) -> Event:
    first, second, address, last = event
    is_meant = _kind(event) == EventType.F_PERMISSION and second & _S2 and _class(event) == EventClass.IN
    return (first, second, address, ours[3]) if is_meant and not last else event


@_fix("IPA of a refused first table")
def _first_table(event: Event, ours: Event) -> Event:
    first, second, address, last = event
    is_meant = _kind(event) in _TRANSLATION and second & _S2 and _class(event) == EventClass.TT
    return (first, second, address, ours[3]) if is_meant and 0 < ours[3] - last < _LARGEST_TABLE else event


def _fixed(found: Found, met: set[str]) -> Found | None:
    """A difference without what is known of events; None if nothing is left of it."""
    ours, theirs = found.ours, found.theirs
    if found.what != "events" or not (isinstance(ours, tuple) and isinstance(theirs, tuple)):
        return found
    if len(ours) != len(theirs):
        return found
    fixed = []
    for event, other in zip(theirs, ours, strict=True):
        for row, fix in FIXES.items():
            becomes = fix(event, other)
            if becomes != event:
                met.add(row)
                event = becomes
        fixed.append(event)
    return None if tuple(fixed) == ours else found._replace(theirs=tuple(fixed))


# -- registers ------------------------------------------------------------------------------------------------------

_IN_USE = ("CR1", "CR2", "STRTAB_BASE", "STRTAB_BASE_CFG", "CMDQ_BASE", "CMDQ_CONS", "EVENTQ_BASE", "EVENTQ_PROD")
_CONSUMED = 4
"""Commands of the driver's reset."""
_WORDS = {word for each in THERE for place in each.places for word in range(place, place + each.size, 4)}
_DECLARED = {place: each.size for each in THERE for place in each.places}
_IMPLEMENTED = {
    each.name: sum(int(part) for part in each.holds.fields if part.access is not AccessKind.RES0)
    for each in THERE
    if each.holds and issubclass(each.holds, BitFields)
}
_CONTROLS = _IMPLEMENTED["CR0"] & ~(Cr0.PRIQEN | Cr0.ATSCHK)
_INTERRUPTS = _IMPLEMENTED["IRQ_CTRL"] & ~IrqControl.PRIQ_IRQEN
_SIGNIFICANT = _IMPLEMENTED | {
    "CR0": _CONTROLS,
    "CR0ACK": _CONTROLS,
    "IRQ_CTRL": _INTERRUPTS,
    "IRQ_CTRLACK": _INTERRUPTS,
    "EVENTQ_CONS": _IMPLEMENTED["EVENTQ_CONS"] & ~QueueConsumer.ERR,
}
"""Bits of what both SMMUs have, which is neither ATS nor page requests."""


def _step(found: Found, stimulus: Stimulus) -> Step | None:
    """The step behind which a difference was found; None: at the end."""
    return stimulus.steps[found.step] if found.step < len(stimulus.steps) else None


def _accesses(stimulus: Stimulus) -> list[Access]:
    return [step for step in stimulus.steps if isinstance(step, Access)]


def _is_written(stimulus: Stimulus, name: str) -> bool:
    register = REGISTER[name]
    return any(
        each.value is not None and each.offset < register.offset + register.size <= each.offset + max(each.size, 8)
        for each in _accesses(stimulus)
    )


def _register_of(found: Found, stimulus: Stimulus) -> str:
    """The register that a difference is about, whether it was read by a step or at the end."""
    if found.what in REGISTER:
        return found.what
    step = _step(found, stimulus)
    if isinstance(step, Access):
        for each in THERE:
            if any(place <= step.offset < place + each.size for place in each.places):
                return each.name
    return ""


@_of("an access of 8 bytes to a multiple of 4", voids=True)
def _unaligned(stimulus: Stimulus, _: Found) -> bool:
    return any(each.size == 8 and each.offset % 8 for each in _accesses(stimulus))


@_of("the second page", voids=True)
def _alias(stimulus: Stimulus, _: Found) -> bool:
    return any(each.offset not in _WORDS and each.offset ^ PAGE_1 in _WORDS for each in _accesses(stimulus))


@_of("registers of what there is not")
def _of_nothing(stimulus: Stimulus, found: Found) -> bool:
    step = _step(found, stimulus)
    return isinstance(step, Access) and step.offset not in _WORDS and not found.ours


@_of("GERRORN", voids=True)
def _gerrorn(stimulus: Stimulus, _: Found) -> bool:
    return _is_written(stimulus, "GERRORN")


@_of("registers that are in use", voids=True)
def _in_use(stimulus: Stimulus, found: Found) -> bool:
    name = _register_of(found, stimulus)
    if name == "GERROR":  # what the queue stopped at, which was another one
        return _is_written(stimulus, "CMDQ_BASE") or _is_written(stimulus, "CMDQ_CONS")
    return name in _IN_USE and _is_written(stimulus, name)


@_of("reserved bits of registers")
def _reserved(stimulus: Stimulus, found: Found) -> bool:
    mask = _SIGNIFICANT.get(_register_of(found, stimulus))
    if mask is None or not isinstance(found.ours, int) or not isinstance(found.theirs, int):
        return False
    return not (found.ours ^ found.theirs) & mask


# -- commands -------------------------------------------------------------------------------------------------------

_LACKING = (
    *(Opcode.TLBI_EL3_ALL, Opcode.TLBI_EL3_VA, Opcode.TLBI_EL2_ALL, Opcode.TLBI_EL2_ASID, Opcode.TLBI_EL2_VA),
    *(Opcode.TLBI_EL2_VAA, Opcode.ATC_INV, Opcode.PRI_RESP, Opcode.RESUME, Opcode.STALL_TERM),
)


def _stopped(found: Found) -> tuple[int, int] | None:
    """The command that ours calls illegal and QEMU does not."""
    is_meant = found.what.startswith("stopped at") and isinstance(found.ours, bytes) and found.ours != found.theirs
    return COMMAND.unpack(found.ours) if is_meant and isinstance(found.ours, bytes) else None


@_of("commands without their feature", voids=True)
def _lacking(_: Stimulus, found: Found) -> bool:
    command = _stopped(found)
    return command is not None and command[0] & 0xFF in _LACKING


@_of("TLBI with TG and nothing else", voids=True)
def _range(_: Stimulus, found: Found) -> bool:
    command = _stopped(found)
    if command is None or command[0] & 0xFF not in (Opcode.TLBI_NH_VA, Opcode.TLBI_NH_VAA, Opcode.TLBI_S2_IPA):
        return False
    first, second = Tlbi0(command[0]), Tlbi1(command[1])
    return (
        bool(second.TG) and not first.NUM and not first.SCALE and (not second.TTL or (second.TG, second.TTL) == (2, 1))
    )


@_of("reserved CS of CMD_SYNC", voids=True)
def _signal(_: Stimulus, found: Found) -> bool:
    command = _stopped(found)
    return command is not None and command[0] & 0xFF == Opcode.SYNC and Sync0(command[0]).CS == 3


@_of("a Secure PREFETCH", voids=True)
def _prefetch(_: Stimulus, found: Found) -> bool:
    command = _stopped(found)
    return command is not None and command[0] & 0xFF in (1, 2) and bool(Cfgi0(command[0]).SSEC)


# -- transactions ---------------------------------------------------------------------------------------------------


def _types(value: object) -> set[int]:
    """Types of events."""
    return {_kind(event) for event in value} if isinstance(value, tuple) else set()


def _only(value: object, *types: EventType) -> bool:
    """Whether there are no events but of these types; none at all if the guest does not want them."""
    return _types(value) <= set(types)


def _descriptors(stimulus: Stimulus, stage: str = "s") -> Iterator[tuple[Tables, int, int]]:
    """(tables, level, descriptor) of all that were written."""
    scene = stimulus.scene
    for name, word in scene.words.items():
        tables = scene.stage1 if name.startswith("s1") else scene.stage2
        if not name.startswith(stage) or name.startswith("ste") or tables is None:
            continue
        kind = name.split(".")[1]
        yield tables, tables.leaf_level if kind == "leaf" else int(kind.removeprefix("table")), word


def _iovas(stimulus: Stimulus) -> list[int]:
    return [step.iova for step in stimulus.steps if isinstance(step, Write | Read)]


def _of_dma(found: Found, stimulus: Stimulus) -> bool:
    return isinstance(_step(found, stimulus), Write | Read)


def _ste(stimulus: Stimulus) -> tuple[Ste0, Ste2]:
    words = stimulus.scene.words
    return Ste0(words["ste.0"]), Ste2(words["ste.2"])


def _output_bits(stimulus: Stimulus, stage: str) -> int:
    """Of a stage, as far as its structure says."""
    words = stimulus.scene.words
    code = Cd0(words.get("cd.0", 0)).IPS if stage == "s1" else Ste2(words["ste.2"]).S2PS
    return (32, 36, 40, 42, 44, 44, 44, 44)[code]


@_of("reserved bits above a pointer", voids=True)
def _above(stimulus: Stimulus, found: Found) -> bool:
    words = stimulus.scene.words
    reserved = (1 << 64) - (1 << 52)
    is_there = words.get("l1std.0", 0) & reserved or words["ste.0"] & reserved & ~Ste0.S1CDMAX
    is_meant = _only(found.theirs, EventType.F_STE_FETCH, EventType.F_CD_FETCH)
    return _of_dma(found, stimulus) and bool(is_there) and is_meant


@_of("LOG2SIZE beyond SIDSIZE", voids=True)
def _log2size(stimulus: Stimulus, found: Found) -> bool:
    sizes = [step.config & 0x3F for step in stimulus.steps if isinstance(step, Reset)]
    return _of_dma(found, stimulus) and max(sizes) > SID_BITS


@_of("events beyond a full queue", voids=True)
def _full(stimulus: Stimulus, found: Found) -> bool:
    step = _step(found, stimulus)
    is_long = isinstance(step, Write | Read) and step.times > 1 << stimulus.queues.evtq_bits
    return is_long and found.what in ("events", "overflow", "active", "interrupts")


@_of("L1STD.Span", voids=True)
def _span(stimulus: Stimulus, found: Found) -> bool:
    descriptor = stimulus.scene.words.get("l1std.0")
    if descriptor is None or not _of_dma(found, stimulus) or not _only(found.ours, EventType.C_BAD_STREAMID):
        return False
    return any(sid >> max(L1Std(descriptor).SPAN - 1, 0) for sid in (WRITER, READER))


@_of("FMT of the stream table", voids=True)
def _format(stimulus: Stimulus, found: Found) -> bool:
    formats = [step.config >> 16 & 3 for step in stimulus.steps if isinstance(step, Reset)]
    return _of_dma(found, stimulus) and formats == [1, 0]


@_of("a block where the architecture has none", voids=True)
def _block(stimulus: Stimulus, found: Found) -> bool:
    is_there = any(
        word & 3 == 1 and level < (1 if tables.granule == 12 else 2) for tables, level, word in _descriptors(stimulus)
    )
    return _of_dma(found, stimulus) and is_there


@_of("order at a leaf", voids=True)
def _order(stimulus: Stimulus, found: Found) -> bool:
    later = {EventType.F_ACCESS, EventType.F_PERMISSION}
    is_meant = _types(found.ours) == {EventType.F_ADDR_SIZE} and _types(found.theirs) <= later
    return _of_dma(found, stimulus) and found.what == "events" and is_meant


@_of("a table beyond the output size", voids=True)
def _table(stimulus: Stimulus, found: Found) -> bool:
    is_there = any(
        (word & 0xFFFF_FFFF_F000) >> _output_bits(stimulus, stage)
        for stage in ("s1", "s2")
        for _, _, word in _descriptors(stimulus, stage)
    )
    return _of_dma(found, stimulus) and is_there and _only(found.ours, EventType.F_ADDR_SIZE)


@_of("a bypassing stream beyond the OAS", voids=True)
def _beyond(stimulus: Stimulus, found: Found) -> bool:
    is_bypassing = not _ste(stimulus)[0].CONFIG & 1
    is_meant = is_bypassing and _only(found.ours, EventType.F_ADDR_SIZE)
    return _of_dma(found, stimulus) and is_meant and any(iova >> OAS for iova in _iovas(stimulus))


@_of("S1ContextPtr beyond the OAS", voids=True)
def _pointer(stimulus: Stimulus, found: Found) -> bool:
    pointer = _ste(stimulus)[0] & int(Ste0.S1CONTEXTPTR)
    return _of_dma(found, stimulus) and bool(pointer >> OAS) and _only(found.ours, EventType.C_BAD_STE)


@_of("a stage 2 whose first level is not possible", voids=True)
def _first_level(stimulus: Stimulus, found: Found) -> bool:
    ste0, ste2 = _ste(stimulus)
    is_meant = bool(ste0.CONFIG & 2) and _only(found.ours, EventType.C_BAD_STE)
    return _of_dma(found, stimulus) and is_meant and not _is_possible(ste2)


def _geometry(ste2: Ste2) -> tuple[int, int, int]:
    """Granule of a stage 2, 0 if it is reserved, input bits and first level."""
    granule = {0: 12, 1: 16, 2: 14}.get(ste2.S2TG, 0)
    return granule, 64 - ste2.S2T0SZ, (2 if granule == 12 else 3) - ste2.S2SL0


def _is_possible(ste2: Ste2) -> bool:
    """Whether a stage 2 may begin where it says, for an OAS of 44 bits (DDI 0487, AArch64.S2InconsistentSL and
    S2InvalidSL).
    """
    granule, bits, start = _geometry(ste2)
    if not granule or not 25 <= bits <= OAS or ste2.S2SL0 == 3 or (granule != 12 and ste2.S2SL0 > 2):
        return False
    below = granule + (3 - start) * (granule - 3)
    return 1 <= bits - below <= granule - 3 + 4


@_of("a stage 2 of more bits than S2PS", voids=True)
def _input(stimulus: Stimulus, found: Found) -> bool:
    ste0, ste2 = _ste(stimulus)
    is_longer = _output_bits(stimulus, "s2") < 64 - ste2.S2T0SZ
    is_meant = bool(ste0.CONFIG & 2) and is_longer and _only(found.theirs, EventType.C_BAD_STE)
    return _of_dma(found, stimulus) and is_meant


@_of("tables side by side in stage 2", voids=True)
def _side_by_side(stimulus: Stimulus, found: Found) -> bool:
    ste0, ste2 = _ste(stimulus)
    granule, bits, start = _geometry(ste2)
    if not granule:
        return False
    first = granule + (4 - start) * (granule - 3)
    is_behind = ste0.CONFIG == SteConfig.NESTED or any(iova >> first for iova in _iovas(stimulus))
    return _of_dma(found, stimulus) and bool(ste0.CONFIG & 2) and bits > first and is_behind


@_of("a translated TTB", voids=True)
def _ttb(stimulus: Stimulus, found: Found) -> bool:
    is_nested = _ste(stimulus)[0].CONFIG == SteConfig.NESTED
    first = found.ours[0] if isinstance(found.ours, tuple) and found.ours else None
    is_meant = first is not None and bool(first[1] & _S2) and _class(first) == EventClass.TT
    return stimulus.kind == "caches" and is_nested and is_meant and _of_dma(found, stimulus)


def _has_limits(stimulus: Stimulus) -> bool:
    """Whether a table of stage 1 lets nothing below it be written (APTable)."""
    return any(name.startswith("s1.table") and word >> 62 & 1 for name, word in stimulus.scene.words.items())


@_of("APTable of a translation that was read before", voids=True)
def _aptable(stimulus: Stimulus, found: Found) -> bool:
    before = [step for step in stimulus.steps[: found.step] if isinstance(step, Write | Read)]
    is_meant = found.what == "events" and not found.theirs and _only(found.ours, EventType.F_PERMISSION)
    return _of_dma(found, stimulus) and bool(before) and _has_limits(stimulus) and is_meant


@_of("fields of stage 1 without it", voids=True)
def _unused(stimulus: Stimulus, found: Found) -> bool:
    ste0, ste1 = _ste(stimulus)[0], Ste1(stimulus.scene.words["ste.1"])
    is_meant = not ste0.CONFIG & 1 and _only(found.theirs, EventType.C_BAD_STE)
    return _of_dma(found, stimulus) and bool(ste0.S1CDMAX or ste1.S1STALLD) and is_meant


@_of("a producer more than a queue ahead", voids=True)
def _ahead(stimulus: Stimulus, _: Found) -> bool:
    wrap = (2 << stimulus.queues.cmdq_bits) - 1
    written = [each.value for each in _accesses(stimulus) if each.offset == REGISTER["CMDQ_PROD"].offset]
    ahead = [(value - _CONSUMED) & wrap for value in written if value is not None]
    return any(each > wrap >> 1 for each in ahead)


@_of("S2HA and S2HD without HTTU", voids=True)
def _dirty(stimulus: Stimulus, found: Found) -> bool:
    ste0, ste2 = _ste(stimulus)
    is_meant = bool(ste0.CONFIG & 2 and (ste2.S2HA or ste2.S2HD)) and _only(found.ours, EventType.C_BAD_STE)
    return _of_dma(found, stimulus) and is_meant


@_of("a TTB that the address does not need", voids=True)
def _other_half(stimulus: Stimulus, found: Found) -> bool:
    cd0, theirs = Cd0(stimulus.scene.words.get("cd.0", 0)), found.theirs
    is_nested = _ste(stimulus)[0].CONFIG == SteConfig.NESTED
    is_outside = isinstance(found.ours, tuple) and all(_class(event) == EventClass.IN for event in found.ours)
    has_both = is_nested and (is_outside or not (cd0.EPD0 or cd0.EPD1))
    is_meant = isinstance(theirs, tuple) and all(event[1] & _S2 and _class(event) == EventClass.TT for event in theirs)
    return _of_dma(found, stimulus) and has_both and bool(theirs) and is_meant


@_of("APTable and what is below it", voids=True)
def _limit_first(stimulus: Stimulus, found: Found) -> bool:
    is_meant = found.what == "events" and _types(found.theirs) == {EventType.F_PERMISSION}
    earlier = {EventType.F_TRANSLATION, EventType.F_ADDR_SIZE, EventType.F_ACCESS, EventType.F_WALK_EABT}
    return _of_dma(found, stimulus) and _has_limits(stimulus) and is_meant and _types(found.ours) <= earlier
