"""What a PCI function says that it is."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Identity"]


class Identity(NamedTuple):
    """PCI ids; ``class_code`` has 24 bits: base class, subclass, programming interface."""

    vendor: int
    device: int
    class_code: int
    revision: int = 1
