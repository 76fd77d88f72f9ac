"""What a function is given by its machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..counters import Counters
from ..dma.memory_file import MemoryFiles
from ..inputs import Inputs
from ..probes import Probes

__all__ = ["Environment"]


@dataclass(frozen=True)
class Environment:
    """What the functions of a machine share."""

    inputs: Inputs
    counters: Counters
    files: MemoryFiles = field(init=False)
    """the files of guest memory"""

    probes: Probes = field(default_factory=Probes)
    """who watches which place"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", MemoryFiles(self.inputs))
