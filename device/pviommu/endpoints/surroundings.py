"""What an endpoint is given to live in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..dma.access import Copier
from ..dma.translator import Translator
from ..pci.capabilities import Capability
from ..pci.function import Environment
from .options import Options

__all__ = ["Surroundings"]


@dataclass(frozen=True)
class Surroundings:
    """All that an endpoint knows of its machine."""

    name: str
    """of its socket, and in logs"""
    stream: int
    """names it to what translates its DMA"""
    translator: Translator
    environment: Environment
    """the clock and other inputs, the counters"""
    options: Any = field(default_factory=Options)
    """of the type that the endpoint's class says"""
    capabilities: Sequence[Capability] = ()
    """of its configuration space: how the guest's driver finds out what translates for it"""
    copier: Copier | None = None
    """copies to and from its guest memory, if something faster than Python does"""
