"""The environment that an endpoint is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..dma.access import Copier
from ..dma.atc import Atc
from ..dma.pages import PageRequester
from ..dma.path import Memory
from ..dma.translator import Translator
from ..hosted import Helper
from ..pci.capabilities import Capability
from ..pci.function import Environment
from .options import Options

__all__ = ["Surroundings"]


@dataclass(frozen=True)
class Surroundings:
    """All that an endpoint knows of its machine."""

    name: str
    """its name, for its socket and in logs"""
    stream: int
    """its stream ID, by which its IOMMU knows it"""
    translator: Translator
    environment: Environment
    """the clock and other inputs, the counters"""
    options: Any = field(default_factory=Options)
    """an instance of the endpoint class's ``OPTIONS``"""
    capabilities: Sequence[Capability] = ()
    """the capability by which the guest's driver finds its IOMMU"""
    siblings: Mapping[str, object] = field(default_factory=dict)
    """the endpoints of the same machine by name: all of them, once the machine is complete"""
    copier: Copier | None = None
    """copies to and from its guest memory faster than Python, if there is such a copier"""
    atc: Atc | None = None
    """its cache of translations, if its function has ATS"""
    requester: PageRequester | None = None
    """its page requests, if its function has those"""
    pasid_bits: int = 0
    """bits of the PASIDs that its requests may have; 0: they have none"""
    translator_of: Callable[[int], Translator] | None = None
    """what translates its requests with a PASID"""
    helper: Callable[[], Helper | None] = lambda: None
    """makes native code that does the plain traffic of a network card, if there is such code"""
    memory: Memory | None = None
    """what the translator's addresses lead to, if it is not what its client announces"""
