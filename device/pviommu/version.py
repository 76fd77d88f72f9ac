"""What ``pviommu --version`` says."""

from __future__ import annotations

from pviommu_abi.registers import ABI_VERSION

from . import __version__
from .native.build import LibraryError, find_library
from .process.serve import PROFILES

__all__ = ["describe"]


def describe() -> str:
    """Version, interface to the guest, and the core that ``pviommu serve`` would choose; a line each."""
    return "\n".join(
        (f"pviommu {__version__}", f"ABI {ABI_VERSION}", f"profiles {' '.join(PROFILES)}", f"core {_core()}")
    )


def _core() -> str:
    from .native.core import native_core

    try:
        native_core()
        return f"native, {find_library()}"
    except LibraryError as error:
        return f"python; {error}"
