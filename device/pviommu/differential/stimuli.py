"""Stimuli: what a guest might do with an SMMUv3, as plain values, drawn from a seed.

Each is whole by itself: it begins with a reset, so it can be repeated alone. Structures and tables are written out by
hand here, so that no format is taken from the code that is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from smmuv3.commands import COMMAND, Cfgi0, Completion, Opcode, Sync0, Tlbi0, Tlbi1, cfgi, sync, tlbi
from smmuv3.registers import PAGE_1, REGISTERS, Cr0
from smmuv3.structures import Cd0, Ste0, Ste1, Ste2, SteConfig

from .sides import RAM, RAM_SIZE, READER, WRITER, Queues

__all__ = [
    "KINDS",
    "OAS",
    "SID_BITS",
    "THERE",
    "VOID",
    "Access",
    "Issue",
    "Read",
    "Recover",
    "Reset",
    "Scene",
    "Step",
    "Stimulus",
    "Store",
    "Tables",
    "Write",
    "draw",
]

OAS, SID_BITS = 44, 16
THERE = tuple(each for each in REGISTERS if not each.name.startswith("PRIQ") and "_IRQ_CFG" not in each.name)
"""Registers of both: neither has page requests or MSIs of its own. QEMU has ATS where the host's SMMU translates
only.
"""
VOID = (0xC000_0000, 0xFFF0_0000, 0xABC_DE00_0000)
"""Addresses without RAM or anything else, on both sides."""
_TABLE, _SECOND, _CD = RAM + 0x40_0000, RAM + 0x80_0000, RAM + 0xA0_0000
_ROOTS = (RAM + 0x100_0000, RAM + 0x180_0000)
"""Tables of stage 1, by half..."""
_ROOT_2 = RAM + 0x200_0000
"""... and of stage 2; each level has :data:`_STRIDE` bytes."""
_STRIDE = 0x10_0000
_COMMANDS, _EVENTS = RAM + 0x280_0000, RAM + 0x2A0_0000
_DATA, _DATA_SIZE = RAM + 0x300_0000, 0xF0_0000
"""Where DMA is to lead."""
_DOWN = -0x4000_0000
"""With both stages, an IPA is so far below its address: where there is no RAM."""
_GRANULES = (12, 14, 16)
_TG0, _TG1 = {12: 0, 16: 1, 14: 2}, {14: 1, 12: 2, 16: 3}
_LEAF = 0x743
"""AF, inner shareable, AP[1], a page."""
_LEAF_2 = 0x7C3
"""AF, inner shareable, readable and writeable, a page."""
_MAIR = 0xF404_FF44
_LAST_SIZE = 5
"""Of the codes of address sizes: 48 bits."""


class Store(NamedTuple):
    """Memory is written."""

    address: int
    data: bytes


class Reset(NamedTuple):
    """The driver's reset, with a stream table."""

    table: int
    config: int


class Access(NamedTuple):
    """An access of the register frame; ``value`` None: it is read."""

    offset: int
    size: int
    value: int | None = None


class Issue(NamedTuple):
    """Commands."""

    commands: tuple[bytes, ...]


class Recover(NamedTuple):
    """What a driver does about a global error."""


class Write(NamedTuple):
    """DMA of the writing device."""

    iova: int
    length: int = 4
    may_be_old: bool = False
    """whether the architecture allows what was true before the last :class:`Store`, too"""
    times: int = 1


class Read(NamedTuple):
    """DMA of the reading one."""

    iova: int
    length: int = 4
    may_be_old: bool = False
    times: int = 1


Step = Store | Reset | Access | Issue | Recover | Write | Read


@dataclass
class Tables:
    """Tables of one stage, for one address."""

    granule: int
    bits: int
    start: int
    leaf_level: int
    root: int
    places: list[int] = field(default_factory=list)
    """of the descriptors, from the first on"""


@dataclass
class Scene:
    """What the rules about known differences want to know of a stimulus."""

    span: int | None = None
    """of the first level of the stream table, if there is one"""
    split: int = 0
    changed: tuple[str, ...] = ()
    """what was made otherwise than it should be"""
    stage1: Tables | None = None
    stage2: Tables | None = None
    words: dict[str, int] = field(default_factory=dict)
    """structures and descriptors, by what they are"""


@dataclass(frozen=True)
class Stimulus:
    """What is done to both sides."""

    seed: str
    kind: str
    queues: Queues
    steps: tuple[Step, ...]
    scene: Scene

    @property
    def sets_format(self) -> bool:
        """Whether STRTAB_BASE_CFG.FMT may be another one afterwards than in stimuli beside it."""
        writes = [step for step in self.steps if isinstance(step, Access) and step.value is not None]
        return self.kind == "formats" or any(each.offset % PAGE_1 in range(0x81, 0x8C) for each in writes)


def draw(seed: str, two_levels: bool) -> Stimulus:
    """The stimulus of a seed. ``two_levels``: of its stream table."""
    random = Random(seed)
    kind = random.choices(tuple(KINDS), [weight for weight, _ in KINDS.values()])[0]
    queues = Queues(_COMMANDS, _EVENTS, random.choice((7, 8)), random.choice((2, 5, 7)))
    scene, steps = KINDS[kind][1](random, two_levels)
    return Stimulus(seed, kind, queues, tuple(steps), scene)


# -- registers ------------------------------------------------------------------------------------------------------


def _registers(random: Random, two_levels: bool) -> tuple[Scene, list[Step]]:
    """Accesses of the register frame, while everything is off or on."""
    scene, steps = _valid(random, two_levels).finished()
    if random.random() < 0.5:
        steps.append(Access(0x20, 4, 0))
    known = [register for register in THERE if register.offset not in _IDENTIFICATION]
    for _ in range(random.randint(1, 8)):
        register = random.choice(known)
        offset, size = register.offset, register.size
        if random.random() < 0.2:
            size = random.choice((4, 8))
        if size == 4 and register.size == 8 and random.random() < 0.5:
            offset += 4
        if random.random() < 0.06:
            offset, size = random.choice((random.randrange(0x60, 0x8000, 4), offset ^ PAGE_1)), 4
        is_read = random.random() < 0.3
        steps.append(Access(offset, size, None if is_read else _register_value(random, register.name, size)))
    return scene, steps


_IDENTIFICATION = range(0xFD0, 0x1000)
"""Of whoever made it."""


def _register_value(random: Random, name: str, size: int) -> int:
    if name in ("STRTAB_BASE", "CMDQ_BASE", "EVENTQ_BASE"):
        place = random.choice((*VOID, _COMMANDS, _EVENTS, _DATA)) + random.randrange(0, 1 << 16, 32)
        value = place | random.choice((0, 1 << 62, random.getrandbits(5), 7 << 60))
    elif name == "CR0":  # the queues lie where they lay
        value = random.choice((random.getrandbits(32), random.getrandbits(4), int(Cr0.CMDQEN)))
    elif name in ("CMDQ_PROD", "CMDQ_CONS", "EVENTQ_PROD", "EVENTQ_CONS"):
        value = random.choice((0, random.getrandbits(3), random.getrandbits(9), random.getrandbits(32)))
    else:
        value = random.choice((0, (1 << 32) - 1, random.getrandbits(32), 1 << random.randrange(32)))
    return value & (1 << 8 * size) - 1


# -- commands -------------------------------------------------------------------------------------------------------


def _commands(random: Random, two_levels: bool) -> tuple[Scene, list[Step]]:
    """Commands of all kinds, and a driver that goes on behind one that is illegal."""
    scene, steps = _valid(random, two_levels).finished()
    for _ in range(random.randint(1, 4)):
        steps.append(Issue(tuple(_command(random) for _ in range(random.randint(1, 6)))))
        steps.append(Recover())
    steps.append(Issue((sync(Completion.IRQ),)))
    return scene, steps


def _command(random: Random) -> bytes:
    first = random.choice(tuple(Opcode)) if random.random() < 0.95 else random.getrandbits(8)
    dwords = (_sync_fields if first == Opcode.SYNC else _tlbi_fields if first in _TLBI else _cfgi_fields)(random)
    if random.random() < 0.03:
        dwords = (dwords[0] | 1 << random.randrange(8, 64), dwords[1])
    return COMMAND.pack(dwords[0] & ~0xFF | first, dwords[1])


_TLBI = tuple(opcode for opcode in Opcode if opcode.name.startswith("TLBI"))


def _sync_fields(random: Random) -> tuple[int, int]:
    return int(Sync0(CS=random.choice((0, 1, 2, 2, 2, 3)), MSH=random.getrandbits(2))), 0


def _cfgi_fields(random: Random) -> tuple[int, int]:
    ssid = random.getrandbits(20) if random.random() < 0.1 else 0
    first = Cfgi0(SSEC=int(random.random() < 0.05), SSV=int(bool(ssid)), SSID=ssid, SID=_sid(random))
    return int(first), random.choice((0, 1, random.getrandbits(5)))


def _tlbi_fields(random: Random) -> tuple[int, int]:
    tg = random.choice((0, 0, 1, 2, 3))
    has_range = tg and random.random() < 0.7
    num, scale = (random.getrandbits(5), random.getrandbits(5)) if has_range else (0, 0)
    first = Tlbi0(NUM=num, SCALE=scale, VMID=random.choice((0, 1, random.getrandbits(16))), ASID=_asid(random))
    second = Tlbi1(LEAF=random.getrandbits(1), TTL=random.getrandbits(2) if tg else 0, TG=tg)
    return int(first), int(second) | random.getrandbits(52) << 12


def _sid(random: Random) -> int:
    return random.choice((WRITER, READER, 0, random.getrandbits(5), random.getrandbits(16), random.getrandbits(32)))


def _asid(random: Random) -> int:
    return random.choice((0, 1, 7, random.getrandbits(16)))


# -- transactions ---------------------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """Memory that a transaction goes by, before it is written."""

    random: Random
    scene: Scene
    memory: dict[int, int] = field(default_factory=dict)
    """dwords by address"""
    names: dict[int, str] = field(default_factory=dict)
    config: int = 5
    table: int = _TABLE
    iova: int = 0
    target: int = 0
    """where that leads"""

    def put(self, address: int, name: str, *dwords: int) -> None:
        for place, dword in enumerate(dwords):
            self.memory[address + 8 * place] = dword
            self.names[address + 8 * place] = f"{name}.{place}"

    def named(self, prefix: str) -> list[int]:
        """Addresses of what has such a name."""
        return [address for address, name in self.names.items() if name.startswith(prefix)]

    def finished(self) -> tuple[Scene, list[Step]]:
        """The scene, and the steps that bring both sides there."""
        for address in self.named("ste.2"):  # what QEMU's has no answer to
            ste2 = Ste2(self.memory[address] | Ste2.S2AA64)
            self.memory[address] = int(ste2.replace(S2PS=min(ste2.S2PS, _LAST_SIZE)))
        for address in self.named("cd.0"):
            cd0 = Cd0(self.memory[address])
            self.memory[address] = int(cd0.replace(IPS=min(cd0.IPS, _LAST_SIZE)))
        self.scene.words = {name: self.memory[address] for address, name in self.names.items()}
        steps: list[Step] = [Store(address, dword.to_bytes(8, "little")) for address, dword in self.memory.items()]
        if self.target >> 12 in range(RAM >> 12, RAM + RAM_SIZE >> 12):
            steps.append(Store(self.target, self.random.randbytes(8)))
        return self.scene, [*steps, Reset(self.table, self.config)]


def _valid(random: Random, two_levels: bool, kind: SteConfig | None = None) -> _Draft:
    """Everything as it should be: the stream is translated, or let through."""
    draft = _Draft(random, Scene())
    if kind is None:
        weights = {SteConfig.STAGE_1: 12, SteConfig.STAGE_2: 4, SteConfig.NESTED: 5, SteConfig.BYPASS: 1}
        kind = random.choices(tuple(weights), list(weights.values()))[0]
    draft.target = _DATA + random.randrange(0, _DATA_SIZE, 4)
    shift = _DOWN if kind is SteConfig.NESTED else 0
    draft.iova = draft.target
    if kind & 1:
        _draw_stage1(draft, shift)
    if kind & 2:
        _draw_stage2(draft, kind is SteConfig.NESTED)
    _draw_streams(draft, two_levels, kind, shift)
    return draft


def _draw_streams(draft: _Draft, two_levels: bool, kind: SteConfig, shift: int) -> None:
    random, scene = draft.random, draft.scene
    ste0 = Ste0(V=1, CONFIG=kind) | _CD - shift
    ste1 = Ste1(S1CIR=1, S1COR=1, S1CSH=3, SHCFG=1)
    ste2, ste3 = 0, 0
    if kind & 2 and scene.stage2 is not None:
        tables = scene.stage2
        sl0 = (2 if tables.granule == 12 else 3) - tables.start
        ste2 = Ste2(S2VMID=random.choice((0, 1, 77)), S2T0SZ=64 - tables.bits, S2SL0=sl0, S2TG=_TG0[tables.granule])
        ste2 |= Ste2(S2AA64=1, S2R=1, S2PS=random.choice((4, 4, 4, 5, 1)), S2SH0=3, S2IR0=1, S2OR0=1)
        ste3 = tables.root
    table = draft.table
    if two_levels:
        scene.split = split = random.choice((6, 8, 10))
        draft.config = 1 << 16 | split << 6 | random.choice((16, 16, 11, 5))
        scene.span = random.choice((6, 7, split + 1)) if split > 5 else 6
        draft.put(table, "l1std", _SECOND | scene.span)
        table = _SECOND
    else:
        draft.config = random.choice((5, 6, 8, 16))
    for sid in (WRITER, READER):
        draft.put(table + sid * 64, "ste", int(ste0), int(ste1), int(ste2), int(ste3))


def _draw_stage1(draft: _Draft, shift: int) -> None:
    random = draft.random
    half = random.random() < 0.3
    granule, bits = random.choice(_GRANULES), 64 - random.choice((16, 16, 17, 20, 24, 25, 25, 28, 32, 33, 36, 39))
    start = 3 - (bits - granule - 1) // (granule - 3)
    root = _ROOTS[half]
    draft.scene.stage1 = tables = Tables(granule, bits, start, _leaf_level(random, granule, start), root)
    inner = draft.target
    offset = (1 << granule + (3 - tables.leaf_level) * (granule - 3)) - 1
    draft.iova = random.getrandbits(bits) & ~offset | inner & offset
    permissions = random.choice((0, 0, 0, 1 << 11, 1 << 6, 1 << 52))
    _write_tables(draft, tables, "s1", _LEAF ^ permissions if permissions == 1 << 6 else _LEAF | permissions, shift)
    if half:
        draft.iova |= (1 << 64) - (1 << bits)
    is_high = int(half)
    cd0 = Cd0(V=1, AA64=1, R=1, A=1, ASET=1, ASID=_asid(random), IPS=random.choice((4, 4, 5, 1)))
    sizes = Cd0(T0SZ=64 - bits, TG0=_TG0[granule], EPD1=1, T1SZ=25, TG1=2, IR0=1, OR0=1, SH0=3)
    if half:
        sizes = Cd0(T1SZ=64 - bits, TG1=_TG1[granule], EPD0=1, T0SZ=25, IR1=1, OR1=1, SH1=3)
    ttb = [0, 0]
    ttb[is_high] = root - shift
    draft.put(_CD, "cd", int(cd0) | int(sizes), *ttb, _MAIR)


def _draw_stage2(draft: _Draft, is_nested: bool) -> None:
    """Stage 2 has pages or blocks for the target, and for all that stage 1 reads."""
    random = draft.random
    granule = random.choice(_GRANULES)
    bits, start = random.choice(_stage2_forms(granule))
    level = _leaf_level(random, granule, start)
    if is_nested:  # whole blocks, so that tables and target are not in each other's way
        level = max(2, start)
    tables = draft.scene.stage2 = Tables(granule, bits, start, level, _ROOT_2)
    shift = granule + (3 - level) * (granule - 3)
    if not is_nested:
        draft.iova = random.getrandbits(min(bits, OAS)) & -(1 << shift) | draft.target & (1 << shift) - 1
        _write_tables(draft, tables, "s2", _LEAF_2, 0, draft.iova)
        return
    stage1 = draft.scene.stage1
    wanted = {_CD, draft.target, *(stage1.places if stage1 else ())}
    for address in sorted({each >> shift << shift for each in wanted}):
        name = "s2" if address == draft.target >> shift << shift else "s2-tables"
        _write_tables(draft, tables, name, _LEAF_2, 0, address - _DOWN, address)


def _stage2_forms(granule: int) -> list[tuple[int, int]]:
    """Sizes and first levels of a stage 2 that reach all IPAs."""
    forms = []
    for start in range(0 if granule == 12 else 1, 3):
        top = granule + (3 - start) * (granule - 3)
        if (granule, start) == (14, 1) or start:
            forms += [(bits, start) for bits in range(33, OAS + 1) if 1 <= bits - top <= granule - 3 + 4]
        else:
            forms += [(bits, start) for bits in range(40, OAS + 1)]
    return forms


def _leaf_level(random: Random, granule: int, start: int) -> int:
    least = max(start, 1 if granule == 12 else 2)
    level: int = random.choice((3, 3, *range(least, 4)))
    return level


def _write_tables(
    draft: _Draft, tables: Tables, name: str, leaf: int, shift: int, address: int | None = None, output: int = 0
) -> None:
    """Descriptors for an address, the draft's if none is given, one level behind the other."""
    address, output = draft.iova if address is None else address, output or draft.target
    address &= (1 << tables.bits) - 1
    stride, table, places = tables.granule - 3, tables.root, []
    for level in range(tables.start, tables.leaf_level + 1):
        low = tables.granule + (3 - level) * stride
        high = tables.bits if level == tables.start else low + stride
        place = table + ((address & (1 << high) - 1) >> low) * 8
        places.append(place)
        # by what is above, so that each table of a level has a place of its own
        table = tables.root + (level - tables.start + 1) * _STRIDE + (address >> low & 3) * (_STRIDE >> 2)
        if level == tables.leaf_level:
            kind = leaf if level == 3 else leaf & ~2
            draft.put(place, f"{name}.leaf", (output >> low << low) - shift | kind)
        else:
            draft.put(place, f"{name}.table{level}", table - shift | 3)
    tables.places = places


def _change(draft: _Draft) -> None:
    """Make one thing otherwise."""
    random = draft.random
    how = random.choices(tuple(_CHANGES), [weight for weight, _ in _CHANGES.values()])[0]
    done = _CHANGES[how][1](draft)
    if done:
        draft.scene.changed = (*draft.scene.changed, f"{how}: {done}")


def _flip(draft: _Draft) -> str:
    """Toggle a bit of a structure or a descriptor, for both devices."""
    random = draft.random
    prefix = random.choice(sorted({name.split(".")[0] for name in draft.names.values()}))
    name = random.choice(sorted({name for name in draft.names.values() if name.startswith(prefix + ".")}))
    bits = _flippable(name)
    if not bits:
        return ""
    bit = random.choice(bits)
    for address in draft.named(name):
        draft.memory[address] ^= 1 << bit
    return f"{name} bit {bit}"


def _flippable(name: str) -> Sequence[int]:
    fields = {
        "ste.0": (*range(6), *range(52, 64)),
        "ste.1": range(64),
        "ste.2": range(64),
        "ste.3": (0, 1, 2, 3, 50, 51, *range(52, 64)),
        "cd.0": range(64),
        "cd.1": (0, 1, 2, 3, *range(46, 64)),
        "cd.2": (0, 1, 2, 3, *range(46, 64)),
        "l1std.0": (0, 1, 2, 3, 4, 5, *range(52, 64)),
    }
    return fields.get(name, (*range(12), *range(44, 64)))


def _void(draft: _Draft) -> str:
    """A pointer leads to nothing."""
    random = draft.random
    tables = [name for name in draft.names.values() if ".table" in name]
    pointers = [*tables, *tables, "ste.0", "cd.1", "cd.2", "ste.3", "l1std.0", "s1.leaf.0", "s2.leaf.0"]
    name = random.choice([each for each in pointers if each in draft.names.values()])
    place = random.choice((*VOID, *((1 << OAS, 1 << OAS + 2 | 0x5000_0000) if name != "l1std.0" else ())))
    mask = 0xF_FFFF_FFFF_F000 if name not in ("ste.0", "l1std.0", "cd.1", "cd.2", "ste.3") else 0xF_FFFF_FFFF_FFC0
    for address in draft.named(name):
        draft.memory[address] = draft.memory[address] & ~mask | place & mask & (1 << 52) - 1
    return f"{name} leads to {place:#x}"


def _invalid(draft: _Draft) -> str:
    """A descriptor is invalid, in one way or another, or a block where none may be."""
    random = draft.random
    name = random.choice([each for each in draft.names.values() if each[:2] in ("s1", "s2")] or ["ste.0"])
    kind = random.choice((0, 1, 2))
    for address in draft.named(name):
        draft.memory[address] = draft.memory[address] & ~3 | kind
    return f"{name} is of type {kind}"


def _elsewhere(draft: _Draft) -> str:
    """The address is another one."""
    random = draft.random
    tables = draft.scene.stage1 or draft.scene.stage2
    bits = tables.bits if tables else OAS
    draft.iova = (draft.iova ^ 1 << random.choice((bits, bits, bits - 1, 55, 56, 63, random.randrange(12, 64)))) % (
        1 << 64
    )
    return f"iova {draft.iova:#x}"


def _sizes(draft: _Draft) -> str:
    """Sizes, granules and first levels that are drawn from all that can be written."""
    random = draft.random
    field_ = random.choice(("T0SZ", "T1SZ", "TG0", "TG1", "IPS", "S2T0SZ", "S2SL0", "S2TG", "S2PS", "EPD0", "EPD1"))
    kind, name = (Ste2, "ste.2") if field_.startswith("S2") else (Cd0, "cd.0")
    value = random.getrandbits(6) & (1 << _width(kind, field_)) - 1
    for address in draft.named(name):
        draft.memory[address] = int(kind(draft.memory[address]).replace(**{field_: value}))
    return f"{field_}={value}" if draft.named(name) else ""


def _width(kind: type[Cd0 | Ste2], name: str) -> int:
    field_: int = getattr(kind, name)
    return field_.bit_count()


def _table(draft: _Draft) -> str:
    """The stream table is smaller, or elsewhere."""
    random = draft.random
    if random.random() < 0.3:
        draft.table = random.choice(VOID)
        return f"STRTAB_BASE {draft.table:#x}"
    if draft.scene.span is not None and random.random() < 0.7:
        span = random.choice((0, 4, 5, random.getrandbits(5)))
        draft.memory[_TABLE] = draft.memory[_TABLE] & ~0x1F | span
        draft.scene.span = span
        return f"SPAN={span}"
    draft.config = draft.config & ~0x3F | random.choice((0, 2, 3, 4, 19, 63))
    return f"LOG2SIZE={draft.config & 0x3F}"


_CHANGES: dict[str, tuple[int, Callable[[_Draft], str]]] = {
    "bit": (8, _flip),
    "pointer": (3, _void),
    "descriptor": (3, _invalid),
    "address": (2, _elsewhere),
    "size": (2, _sizes),
    "table": (1, _table),
}


def _transactions(random: Random, two_levels: bool) -> tuple[Scene, list[Step]]:
    """DMA by structures and tables, of which up to two things are otherwise than they should be."""
    draft = _valid(random, two_levels)
    for _ in range(random.choices((0, 1, 2), (2, 6, 2))[0]):
        _change(draft)
    is_bypassing = Ste0(draft.memory[draft.named("ste.0")[0]]).CONFIG == SteConfig.BYPASS
    if is_bypassing and not draft.iova >> OAS:
        draft.iova = draft.target  # beside RAM there is what answers in QEMU's machine
    scene, steps = draft.finished()
    for _ in range(random.choice((1, 1, 2))):
        steps.append(_dma(random, draft.iova))
    if random.random() < 0.03:
        steps.append(Write(draft.iova, times=6))
    return scene, steps


def _dma(random: Random, iova: int, may_be_old: bool = False) -> Write | Read:
    length = random.choice((4, 4, 4, 1, 2))
    return (Write if random.random() < 0.75 else Read)(iova, length, may_be_old)


def _off(random: Random, two_levels: bool) -> tuple[Scene, list[Step]]:
    """DMA while translation is off, with GBPA as it may be."""
    draft = _valid(random, two_levels)
    scene, steps = draft.finished()
    value = random.choice((1 << 31, 0, 1 << 31)) | random.choice((0, 1 << 20)) | random.getrandbits(20) & 0x33F1F
    steps += [Access(0x20, 4, random.choice((0, 4, 8, 0xC))), Access(0x44, 4, value)]
    iova = random.choice((draft.target, draft.target, VOID[0], 1 << OAS))
    return scene, [*steps, _dma(random, iova), Access(0x44, 4, 1 << 31)]


def _formats(random: Random, _: bool) -> tuple[Scene, list[Step]]:
    """A linear stream table after one of two levels."""
    before, after = _valid(random, True), _valid(random, False)
    steps = [*before.finished()[1], _dma(random, before.iova)]
    scene, more = after.finished()
    return scene, [*steps, *more, _dma(random, after.iova)]


def _caches(random: Random, two_levels: bool) -> tuple[Scene, list[Step]]:
    """DMA, a change, DMA that may still see what was before, an invalidation that reaches it, and DMA."""
    draft = _valid(random, two_levels, random.choice((SteConfig.STAGE_1, SteConfig.STAGE_2, SteConfig.NESTED)))
    scene, steps = draft.finished()
    steps.append(Write(draft.iova))
    what = random.choice([each for each in ("s1.leaf.0", "s2.leaf.0", "cd.0", "ste.0") if each in scene.words])
    cd, ste2 = scene.words.get("cd.0", 0), scene.words["ste.2"]
    asid, vmid = Cd0(cd).ASID, Ste2(ste2).S2VMID
    change = {"cd.0": 1 << 31, "ste.0": 1}.get(what, random.choice((1, 1 << 10)))
    places = draft.named(what)
    steps += [Store(place, (draft.memory[place] ^ change).to_bytes(8, "little")) for place in places]
    if random.random() < 0.5:
        steps.append(Write(draft.iova, 4, True))
    steps.append(Issue((*_reaching(random, draft, what, asid, vmid), sync())))
    steps += [Write(draft.iova)] * random.choice((1, 2))
    return scene, steps


def _reaching(random: Random, draft: _Draft, what: str, asid: int, vmid: int) -> tuple[bytes, ...]:
    """Commands of which one makes an SMMU forget what has changed."""
    ipa = draft.iova
    if what == "cd.0":
        enough: tuple[tuple[bytes, ...], ...] = (
            tuple(cfgi(Opcode.CFGI_CD, sid) for sid in (WRITER, READER)),
            tuple(cfgi(Opcode.CFGI_CD_ALL, sid) for sid in (WRITER, READER)),
            (cfgi(Opcode.CFGI_STE_RANGE, span=31),),
        )
    elif what == "ste.0":
        enough = (
            tuple(cfgi(Opcode.CFGI_STE, sid, leaf=True) for sid in (WRITER, READER)),
            (cfgi(Opcode.CFGI_STE_RANGE, 0, span=4),),
            (cfgi(Opcode.CFGI_STE_RANGE, span=31),),
        )
    elif what == "s2.leaf.0":
        nh_all = tlbi(Opcode.TLBI_NH_ALL, vmid=vmid)
        stage1 = draft.scene.stage1
        by_ipa = tlbi(Opcode.TLBI_S2_IPA, draft.target - _DOWN if stage1 else ipa, vmid=vmid)
        enough = ((by_ipa, nh_all), (tlbi(Opcode.TLBI_S12_VMALL, vmid=vmid),), (tlbi(Opcode.TLBI_NSNH_ALL),))
    else:
        tables = draft.scene.stage1
        granule = 0 if tables is None else (tables.granule - 10) // 2
        page = 1 << 2 * granule + 10
        first = draft.iova & -page
        enough = (
            (tlbi(Opcode.TLBI_NH_VA, draft.iova, vmid=vmid, asid=asid, leaf=True),),
            (tlbi(Opcode.TLBI_NH_VA, first, vmid=vmid, asid=asid, granule=granule, num=3),),
            (tlbi(Opcode.TLBI_NH_VAA, draft.iova, vmid=vmid),),
            (tlbi(Opcode.TLBI_NH_ASID, vmid=vmid, asid=asid),)
            if draft.scene.words["s1.leaf.0"] & 1 << 11
            else (tlbi(Opcode.TLBI_NH_ALL, vmid=vmid),),
            (tlbi(Opcode.TLBI_NH_ALL, vmid=vmid),),
            (tlbi(Opcode.TLBI_NSNH_ALL),),
        )
    return random.choice(enough)


KINDS: dict[str, tuple[float, Callable[[Random, bool], tuple[Scene, list[Step]]]]] = {
    "registers": (4, _registers),
    "commands": (4, _commands),
    "transactions": (14, _transactions),
    "off": (1, _off),
    "caches": (8, _caches),
    "formats": (0.05, _formats),
}
"""Weights, and what draws the scene and its steps."""
