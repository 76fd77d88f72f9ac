"""Formats of translation tables, as data for `walk`: Arm's (VMSAv8-64), and those of x86-64 and VT-d.

Sources: Arm Architecture Reference Manual (DDI 0487), chapter D8, and its functions AArch64.S2InconsistentSL and
AArch64.S2InvalidSL; Intel SDM volume 3A, 4.5; Intel VT-d specification, 9.8. Each function raises ValueError, which
names the value and the rule, for what the architecture does not allow.
"""

from functools import lru_cache

from .walk import ANY, NEVER, Grants, Level, Pattern, Rules, Tables, WalkFaultKind

GRANULES = (12, 14, 16)
"""Bits of a page: 4, 16 and 64 KiB."""
INPUT_BITS = (25, 48)
"""Input bits of a stage, at least and at most: T0SZ 39 to 16."""
SMALL_BITS = {12: 16, 14: 16, 16: 17}
"""At least, by granule, with small tables (FEAT_TTST)."""
WIDE_BITS = 52
"""Input bits at most with 52-bit addresses (FEAT_LPA and FEAT_LVA with 64 KiB, FEAT_LPA2 otherwise)."""
CONCATENATED_BITS = 4
"""Up to 16 tables may form the first level of a stage 2."""
LAST_LEVEL = 3
_LARGEST_BLOCK = {12: 1, 14: 2, 16: 2}
"""Lowest level with blocks, by granule; one lower with 52-bit addresses."""
_CONTIGUOUS = {12: {1: 4, 2: 4, 3: 4}, 14: {2: 5, 3: 7}, 16: {2: 5, 3: 5}}
"""Bits of the number of entries that the contiguous bit joins, by granule and level."""
_STAGE2_OUTPUT = {(12, 0): 44, (14, 1): 42, (16, 1): 44}
"""Output bits of the machine that a stage 2 needs at least to begin at this level, by granule and level."""
_AF, _CONTIGUOUS_BIT = 1 << 10, 1 << 52
_DBM, _AP_USER, _AP_READ_ONLY = 1 << 51, 1 << 6, 1 << 7
_AP_TABLE_NO_USER, _AP_TABLE_READ_ONLY = 1 << 61, 1 << 62
_S2_READ, _S2_WRITE = 1 << 6, 1 << 7
_FREE = Grants(ANY, ANY)


def arm_stage1(
    granule: int,
    input_bits: int,
    root: int,
    output_bits: int,
    *,
    wide: bool = False,
    small: bool = False,
    hierarchical: bool = True,
    unprivileged: bool = False,
    checks_access: bool = True,
    updates_access: bool = False,
    updates_dirty: bool = False,
) -> Tables:
    """A stage 1, for the addresses of one TTBR: 64 - TxSZ bits of them.

    `granule`: bits of a page. `wide`: descriptors have 52-bit addresses. `small`: tables for fewer than 25 bits are
    allowed. Not `hierarchical`: APTable is ignored (HAD). `unprivileged`: the accesses are. Not `checks_access`: leaves
    need no access flag (AFFD).
    """
    _check_granule(granule)
    least, most = SMALL_BITS[granule] if small else INPUT_BITS[0], WIDE_BITS if wide else INPUT_BITS[1]
    if not least <= input_bits <= most:
        raise ValueError(f"stage 1 of {input_bits} input bits: must be {least}..{most} with {1 << granule} byte pages")
    start = LAST_LEVEL - (input_bits - granule - 1) // (granule - 3)
    user = _AP_USER if unprivileged else 0
    table_user = _AP_TABLE_NO_USER if unprivileged else 0
    grants = Grants(Pattern(user, user), Pattern(user | _AP_READ_ONLY, user))
    table_grants = Grants(Pattern(table_user, 0), Pattern(table_user | _AP_TABLE_READ_ONLY, 0))
    clean = Pattern(_DBM | _AP_READ_ONLY, _DBM | _AP_READ_ONLY)
    rules = _arm_rules(granule, wide, checks_access, grants, table_grants if hierarchical else _FREE, clean)
    levels = _arm_levels(granule, input_bits, start, wide)
    return Tables(_aligned(root, levels), levels, rules, input_bits, output_bits, False, updates_access, updates_dirty)


def arm_stage2(
    granule: int,
    input_bits: int,
    start: int,
    root: int,
    output_bits: int,
    *,
    machine_bits: int = 48,
    wide: bool = False,
    small: bool = False,
    checks_access: bool = True,
    updates_access: bool = False,
    updates_dirty: bool = False,
) -> Tables:
    """A stage 2 that begins at level `start`, with up to 16 tables side by side there. `machine_bits`: of the largest
    physical address of the machine, on which the levels depend at which a stage 2 may begin; otherwise as
    :func:`arm_stage1`.
    """
    _check_granule(granule)
    stride = granule - 3
    what = f"stage 2 of {input_bits} input bits from level {start} with {1 << granule} byte pages"
    lowest = {12: -1 if wide else 0, 14: 0 if wide else 1, 16: 1}[granule]
    if not lowest <= start <= LAST_LEVEL or (start == LAST_LEVEL and granule == 12 and not small):
        raise ValueError(f"{what}: it may begin at levels {lowest}..{2 if granule == 12 and not small else 3}")
    needed = WIDE_BITS if wide and start == lowest and granule != 16 else _STAGE2_OUTPUT.get((granule, start), 0)
    if machine_bits < needed:
        raise ValueError(f"{what}: that level is for machines of {needed} address bits, this one has {machine_bits}")
    first = (LAST_LEVEL - start) * stride + granule
    least = max(first + 1, SMALL_BITS[granule] if small else INPUT_BITS[0])
    most = min(first + stride + CONCATENATED_BITS, WIDE_BITS if wide else INPUT_BITS[1])
    if not least <= input_bits <= most:
        raise ValueError(f"{what}: from there they must be {least}..{most}")
    grants = Grants(Pattern(_S2_READ, _S2_READ), Pattern(_S2_WRITE, _S2_WRITE))
    clean = Pattern(_DBM | _S2_WRITE, _DBM)
    rules = _arm_rules(granule, wide, checks_access, grants, _FREE, clean)
    levels = _arm_levels(granule, input_bits, start, wide)
    return Tables(_aligned(root, levels), levels, rules, input_bits, output_bits, False, updates_access, updates_dirty)


def x86_64(depth: int, root: int, output_bits: int, *, unprivileged: bool = False, updates: bool = True) -> Tables:
    """Tables of 4 or 5 levels as processors have them, which are also VT-d's first stage. Addresses are canonical:
    their upper bits are alike. `updates`: the accessed and dirty bits are maintained.
    """
    _check_depth(depth, 4)
    user = 1 << 2 if unprivileged else 0
    grants = Grants(Pattern(user, user), Pattern(user | 1 << 1, user | 1 << 1))
    return _intel(depth, root, output_bits, 1, grants, 1 << 5, 1 << 6, 13, signed=True, updates=updates)


def vtd_second_stage(depth: int, root: int, output_bits: int, *, updates: bool = False) -> Tables:
    """VT-d's second stage of 3 to 5 levels: 39, 48 or 57 address bits. `updates`: accessed and dirty bits are."""
    _check_depth(depth, 3)
    grants = Grants(Pattern(1, 1), Pattern(2, 2))
    return _intel(depth, root, output_bits, 3, grants, 1 << 8, 1 << 9, 12, signed=False, updates=updates)


def _check_granule(granule: int) -> None:
    if granule not in GRANULES:
        raise ValueError(f"pages of {granule} bits: must be one of {GRANULES}")


def _check_depth(depth: int, least: int) -> None:
    if not least <= depth <= 5:
        raise ValueError(f"tables of {depth} levels: must be {least}..5")


def _aligned(root: int, levels: tuple[Level, ...]) -> int:
    """A table lies at a multiple of its size; the bits below are ignored."""
    return root & -8 * (levels[0].index_mask + 1)


@lru_cache(maxsize=256)
def _arm_levels(granule: int, input_bits: int, start: int, wide: bool) -> tuple[Level, ...]:
    top, levels = 50 if wide and granule != 16 else 48, []
    for number in range(start, LAST_LEVEL + 1):
        shift = granule + (LAST_LEVEL - number) * (granule - 3)
        has_blocks = _LARGEST_BLOCK[granule] - wide <= number
        block = Pattern(0b10, 0) if has_blocks else NEVER
        is_last = number == LAST_LEVEL
        levels.append(
            Level(
                number,
                shift,
                (1 << (input_bits - shift if number == start else granule - 3)) - 1,
                leaf=Pattern(0b10, 0b10) if is_last else block,
                table=NEVER if is_last else Pattern(0b10, 0b10),
                leaf_address=(1 << top) - (1 << shift),
                leaf_reserved=0,
                contiguous=_CONTIGUOUS[granule].get(number, 0),
            )
        )
    return tuple(levels)


@lru_cache(maxsize=64)
def _arm_rules(
    granule: int, wide: bool, checks_access: bool, grants: Grants, table_grants: Grants, clean: Pattern
) -> Rules:
    high, high_shift, top = 0, 0, 48
    if wide:  # bits 51:48 are in bits 15:12 with 64 KiB pages, bits 51:50 in bits 9:8 otherwise
        high, high_shift, top = (0xF000, 36, 48) if granule == 16 else (0x300, 42, 50)
    return Rules(
        present=1,
        table_address=(1 << top) - (1 << granule),
        table_reserved=0,
        high=high,
        high_shift=high_shift,
        leaf_grants=grants,
        table_grants=table_grants,
        table_accessed=0,
        leaf_accessed=_AF,
        needs_accessed=checks_access,
        clean=clean,
        dirty=clean.mask & ~_DBM,
        contiguous=_CONTIGUOUS_BIT,
        neither=WalkFaultKind.NOT_PRESENT,
    )


def _intel(
    depth: int,
    root: int,
    output_bits: int,
    present: int,
    grants: Grants,
    accessed: int,
    dirty: int,
    low: int,
    *,
    signed: bool,
    updates: bool,
) -> Tables:
    """`low`: the lowest bit of a large leaf's address field that is reserved."""
    beyond = (1 << 52) - (1 << output_bits)
    levels = tuple(_intel_level(number, low, beyond) for number in range(depth, 0, -1))
    rules = Rules(
        present=present,
        table_address=(1 << 52) - (1 << 12),
        table_reserved=beyond,
        high=0,
        high_shift=0,
        leaf_grants=grants,
        table_grants=grants,
        table_accessed=accessed,
        leaf_accessed=accessed,
        needs_accessed=False,
        clean=Pattern(1 << 1 | dirty, 1 << 1),
        dirty=dirty,
        contiguous=0,
        neither=WalkFaultKind.MALFORMED,
    )
    return Tables(root & -(1 << 12), levels, rules, 12 + 9 * depth, output_bits, signed, updates, updates)


@lru_cache(maxsize=64)
def _intel_level(number: int, low: int, beyond: int) -> Level:
    shift = 12 + 9 * (number - 1)
    large = 1 << 7
    leaf = {1: ANY, 2: Pattern(large, large), 3: Pattern(large, large)}.get(number, NEVER)
    table = NEVER if number == 1 else Pattern(large, 0)
    misaligned = (1 << shift) - (1 << low) if number > 1 else 0
    return Level(number, shift, 511, leaf, table, (1 << 52) - (1 << shift), beyond | misaligned, 0)
