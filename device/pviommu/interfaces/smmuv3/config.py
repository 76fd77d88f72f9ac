"""What an SMMU is built with, checked once, and what its identification registers say of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ADDRESS_SIZES",
    "DEVICE_ID",
    "MAX_CACHE_ENTRIES",
    "MAX_QUEUE_BITS",
    "MAX_SSID_BITS",
    "MAX_STALLS",
    "MissingCoreError",
    "SmmuConfig",
]

DEVICE_ID = 0x505A
"""Default PCI device ID."""
ADDRESS_SIZES = (32, 36, 40, 42, 44, 48, 52)
"""Bits of addresses by the code of IDR5.OAS, CD.IPS and STE.S2PS."""
_MAX_SID_BITS, MAX_SSID_BITS, MAX_QUEUE_BITS = 32, 20, 19
MAX_CACHE_ENTRIES = 1 << 16
"""of each cache"""
MAX_STALLS = (1 << 16) - 1
_MIN_QUEUE_BITS = 7
"""Linux refuses command queues of 64 entries or fewer."""


class MissingCoreError(ValueError):
    """A setting needs the native core."""


@dataclass(frozen=True)
class SmmuConfig:
    """Settings of an SMMU. Raises ValueError naming the setting, the value and the rule."""

    sid_bits: int = 16
    ssid_bits: int = 0
    """of SubstreamIDs (PASIDs); 0: there are none"""
    cmdq_bits: int = 10
    evtq_bits: int = 10
    """log2 of the most entries of a queue"""
    address_bits: int = 44
    """of physical addresses, which for the guest are those of its memory"""
    stage2: bool = False
    """whether the guest may use stage 2 itself, for guests of its own"""
    cache_entries: int = 512
    """of each cache: translations of a stage, STEs, CDs; 0: nothing is cached"""
    strict: bool = False
    """whether what is cached is compared with memory whenever it is used; as much is cached as possible then"""
    commands_per_turn: int = 256
    httu: int = 0
    """what a walk updates in tables: 1 access flags, 2 dirty state too. Guest memory must be one that can be compared
    and exchanged"""
    stalls: int = 0
    """stalled transactions at a time, at most; 0: faults never stall"""
    ats: bool = False
    """whether endpoints may ask for translations and keep them"""
    priq_bits: int = 0
    """log2 of the most entries of the queue of page requests; 0: endpoints make none. With ``ats``"""
    msi: bool = False
    """whether it writes MSIs itself: to memory; interrupt controllers are out of its reach"""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("sid_bits", 1, _MAX_SID_BITS),
            ("ssid_bits", 0, MAX_SSID_BITS),
            ("cmdq_bits", _MIN_QUEUE_BITS, MAX_QUEUE_BITS),
            ("evtq_bits", 1, MAX_QUEUE_BITS),
            ("priq_bits", 0, MAX_QUEUE_BITS),
            ("cache_entries", 0, MAX_CACHE_ENTRIES),
            ("commands_per_turn", 1, 1 << 16),
            ("stalls", 0, MAX_STALLS),
            ("httu", 0, 2),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} {value}: must be {least}..{most}")
        if self.priq_bits and not self.ats:
            raise ValueError(f"priq_bits {self.priq_bits}: must be 0 without ats")
        if self.address_bits not in ADDRESS_SIZES[:-1]:
            raise ValueError(f"address_bits {self.address_bits}: must be one of {ADDRESS_SIZES[:-1]}")

    def identification(self) -> dict[str, int]:
        """Values of registers by name."""
        from smmuv3.registers import Idr0, Idr1, Idr3, Idr5  # imported late: a topology needs the limits only

        stage2 = int(self.stage2)
        return {
            "IDR0": Idr0(
                S2P=stage2,
                S1P=1,
                TTF=2,
                COHACC=1,
                HTTU=self.httu,
                ATS=int(self.ats),
                PRI=int(self.priq_bits > 0),
                ASID16=1,
                MSI=int(self.msi),
                VMID16=1,
                CD2L=int(self.ssid_bits > 0),
                TTENDIAN=2,
                STALL_MODEL=int(not self.stalls),
                TERM_MODEL=1,
                ST_LEVEL=1,
            ),
            "IDR1": Idr1(
                SIDSIZE=self.sid_bits,
                SSIDSIZE=self.ssid_bits,
                PRIQS=self.priq_bits,
                EVENTQS=self.evtq_bits,
                CMDQS=self.cmdq_bits,
            ),
            "IDR3": Idr3(HAD=1, XNX=stage2, RIL=1, BBML=2),
            "IDR5": Idr5(
                OAS=ADDRESS_SIZES.index(self.address_bits), GRAN4K=1, GRAN16K=1, GRAN64K=1, STALL_MAX=self.stalls
            ),
        }
