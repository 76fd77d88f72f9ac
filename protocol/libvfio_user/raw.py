"""libvfio-user as C declares it: structures, callback types, and every exported function with its types.

Two generations of the library have the same soname and other arguments. They are told apart by what they export, and
:class:`Library` declares the functions of the one that it loads. Nothing is checked here: a wrong argument may end the
process. :mod:`libvfio_user.device` is what checks. Names are those of ``libvfio-user.h``.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable
from ctypes import c_bool, c_char_p, c_int, c_longlong, c_size_t, c_ssize_t, c_uint32, c_uint64, c_void_p
from enum import Enum, IntEnum, IntFlag
from functools import cache
from typing import Any

__all__ = [
    "CALLBACK_TYPES",
    "DMA_REGISTER",
    "DMA_UNREGISTER",
    "IRQ_STATE",
    "LOG",
    "MIGRATION_DATA",
    "MIGRATION_DATA_AT",
    "MIGRATION_PENDING",
    "MIGRATION_PREPARE",
    "MIGRATION_TRANSITION",
    "MIGRATION_WRITTEN",
    "QUIESCE",
    "REGION_ACCESS",
    "RESET",
    "SONAME",
    "CapabilityFlag",
    "CreateFlag",
    "DeviceType",
    "DmaInfo",
    "Generation",
    "IoVec",
    "Irq",
    "Library",
    "LibraryError",
    "MigrationCallbacks",
    "MigrationCallbacks2",
    "MigrationState",
    "PciType",
    "Region",
    "RegionFlag",
    "Reset",
    "Transport",
    "declarations",
]

_LOG = logging.getLogger("libvfio_user")

SONAME = "libvfio-user.so.0"
"""Of both generations."""


class LibraryError(Exception):
    """A library that cannot be used; the text names it and says why. ``path`` may be a bare soname."""

    def __init__(self, path: str, problem: str, *, is_missing: bool = False) -> None:
        super().__init__(f"libvfio-user {path}: {problem}")
        self.path = path
        self.problem = problem
        self.is_missing = is_missing
        """there is no such library at all"""
        self.how = ""
        """what to do, for the end of the text, if a program that uses this package knows that"""

    def __str__(self) -> str:
        return f"{super().__str__()}; {self.how}" if self.how else super().__str__()


class Generation(Enum):
    """Which of the two incompatible interfaces a library has."""

    OF_2022 = "2022"
    """as QEMU bundles it: 10 regions, at most 16 DMA regions, migration through a region (version 1)"""
    CURRENT = "current"
    """of 2026: 9 regions, as many DMA regions as asked for, migration by messages (version 2). Never tried with a real
    library, and some values are guessed: a warning is logged when one is loaded."""


class Transport(IntEnum):
    """``vfu_trans_t``."""

    SOCK = 0
    PIPE = 1


class DeviceType(IntEnum):
    """``vfu_dev_type_t``."""

    PCI = 0


class CreateFlag(IntFlag):
    """``LIBVFIO_USER_FLAG_*``."""

    ATTACH_NB = 1


class RegionFlag(IntFlag):
    """``VFU_REGION_FLAG_*``."""

    READ = 1
    WRITE = 2
    RW = 3
    MEM = 4
    """memory; else the BAR is I/O ports"""
    ALWAYS_CB = 8
    """of the configuration space: every access goes to the callback"""
    BITS_64 = 16
    """:attr:`Generation.CURRENT` only. The value follows from the order of the flags, no header proved it."""
    PREFETCH = 32
    """as :attr:`BITS_64`"""


class CapabilityFlag(IntFlag):
    """``VFU_CAP_FLAG_*``."""

    EXTENDED = 1
    CALLBACK = 2
    READONLY = 4


class Region(IntEnum):
    """Regions of a PCI device."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CFG = 7
    VGA = 8
    MIGR = 9
    """:attr:`Generation.OF_2022` only"""


class Irq(IntEnum):
    """``enum vfu_dev_irq_type``."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class Reset(IntEnum):
    """``vfu_reset_type_t``."""

    DEVICE = 0
    LOST_CONN = 1
    PCI_FLR = 2


class PciType(IntEnum):
    """``vfu_pci_type_t``."""

    CONVENTIONAL = 0
    PCI_X_1 = 1
    PCI_X_2 = 2
    EXPRESS = 3


class MigrationState(IntEnum):
    """``vfu_migr_state_t``."""

    STOP = 0
    RUNNING = 1
    STOP_AND_COPY = 2
    PRE_COPY = 3
    RESUME = 4


class IoVec(ctypes.Structure):
    """``struct iovec``. A base of 0 reads as None."""

    _fields_ = (("iov_base", c_void_p), ("iov_len", c_size_t))


class DmaInfo(ctypes.Structure):
    """``vfu_dma_info_t``: ``iova`` is guest addresses; ``vaddr`` is None if the range is not mapped."""

    _fields_ = (
        ("iova", IoVec),
        ("vaddr", c_void_p),
        ("mapping", IoVec),
        ("page_size", c_size_t),
        ("prot", c_uint32),
    )


_POINTER_TO_U64 = ctypes.POINTER(c_uint64)

# use_errno: what a callback leaves in ctypes.set_errno() is what C finds in errno.
LOG = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p, use_errno=True)
REGION_ACCESS = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_size_t, c_longlong, c_bool, use_errno=True)
QUIESCE = ctypes.CFUNCTYPE(c_int, c_void_p, use_errno=True)
RESET = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, use_errno=True)
DMA_REGISTER = ctypes.CFUNCTYPE(None, c_void_p, ctypes.POINTER(DmaInfo), use_errno=True)
DMA_UNREGISTER = ctypes.CFUNCTYPE(None, c_void_p, ctypes.POINTER(DmaInfo), use_errno=True)
IRQ_STATE = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_uint32, c_bool, use_errno=True)
MIGRATION_TRANSITION = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, use_errno=True)
MIGRATION_PENDING = ctypes.CFUNCTYPE(c_uint64, c_void_p, use_errno=True)
MIGRATION_PREPARE = ctypes.CFUNCTYPE(c_int, c_void_p, _POINTER_TO_U64, _POINTER_TO_U64, use_errno=True)
MIGRATION_DATA_AT = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_uint64, c_uint64, use_errno=True)
MIGRATION_DATA = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_uint64, use_errno=True)
MIGRATION_WRITTEN = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64, use_errno=True)

CALLBACK_TYPES = {
    "vfu_log_fn_t": LOG,
    "vfu_region_access_cb_t": REGION_ACCESS,
    "vfu_device_quiesce_cb_t": QUIESCE,
    "vfu_reset_cb_t": RESET,
    "vfu_dma_register_cb_t": DMA_REGISTER,
    "vfu_dma_unregister_cb_t": DMA_UNREGISTER,
    "vfu_dev_irq_state_cb_t": IRQ_STATE,
}
"""By their names in the header."""


class MigrationCallbacks(ctypes.Structure):
    """``vfu_migration_callbacks_t`` of :attr:`Generation.OF_2022`; ``version`` is 1."""

    _fields_ = (
        ("version", c_int),
        ("transition", MIGRATION_TRANSITION),
        ("get_pending_bytes", MIGRATION_PENDING),
        ("prepare_data", MIGRATION_PREPARE),
        ("read_data", MIGRATION_DATA_AT),
        ("write_data", MIGRATION_DATA_AT),
        ("data_written", MIGRATION_WRITTEN),
    )


class MigrationCallbacks2(ctypes.Structure):
    """``vfu_migration_callbacks_t`` of :attr:`Generation.CURRENT`; ``version`` is 2."""

    _fields_ = (
        ("version", c_int),
        ("transition", MIGRATION_TRANSITION),
        ("read_data", MIGRATION_DATA),
        ("write_data", MIGRATION_DATA),
    )


Declaration = tuple[Any, tuple[Any, ...]]
"""Type of the result and of each argument."""

_CTX = c_void_p
_SGL = c_void_p
_IOV = ctypes.POINTER(IoVec)

_COMMON: dict[str, Declaration] = {
    "dma_sg_size": (c_size_t, ()),
    "vfu_create_ctx": (_CTX, (c_int, c_char_p, c_int, c_void_p, c_int)),
    "vfu_realize_ctx": (c_int, (_CTX,)),
    "vfu_attach_ctx": (c_int, (_CTX,)),
    "vfu_get_poll_fd": (c_int, (_CTX,)),
    "vfu_run_ctx": (c_int, (_CTX,)),
    "vfu_destroy_ctx": (None, (_CTX,)),
    "vfu_get_private": (c_void_p, (_CTX,)),
    "vfu_log": (None, (_CTX, c_int, c_char_p)),  # and what the format asks for
    "vfu_setup_log": (c_int, (_CTX, LOG, c_int)),
    "vfu_setup_region": (
        c_int,
        (_CTX, c_int, c_size_t, REGION_ACCESS, c_int, _IOV, c_uint32, c_int, c_uint64),
    ),
    "vfu_setup_device_quiesce_cb": (None, (_CTX, QUIESCE)),
    "vfu_device_quiesced": (c_int, (_CTX, c_int)),
    "vfu_setup_device_reset_cb": (c_int, (_CTX, RESET)),
    "vfu_setup_device_nr_irqs": (c_int, (_CTX, c_int, c_uint32)),
    "vfu_setup_irq_state_callback": (c_int, (_CTX, c_int, IRQ_STATE)),
    "vfu_irq_trigger": (c_int, (_CTX, c_uint32)),
    "vfu_addr_to_sgl": (c_int, (_CTX, c_void_p, c_size_t, _SGL, c_size_t, c_int)),
    "vfu_sgl_get": (c_int, (_CTX, _SGL, _IOV, c_size_t, c_int)),
    "vfu_sgl_mark_dirty": (None, (_CTX, _SGL, c_size_t)),
    "vfu_sgl_put": (None, (_CTX, _SGL, _IOV, c_size_t)),
    "vfu_sg_is_mappable": (c_bool, (_CTX, _SGL)),
    "vfu_pci_init": (c_int, (_CTX, c_int, c_int, c_int)),
    "vfu_pci_set_id": (None, (_CTX, ctypes.c_uint16, ctypes.c_uint16, ctypes.c_uint16, ctypes.c_uint16)),
    "vfu_pci_set_class": (None, (_CTX, ctypes.c_uint8, ctypes.c_uint8, ctypes.c_uint8)),
    "vfu_pci_get_config_space": (c_void_p, (_CTX,)),
    "vfu_pci_add_capability": (c_ssize_t, (_CTX, c_size_t, c_int, c_void_p)),
    "vfu_pci_find_capability": (c_size_t, (_CTX, c_bool, c_int)),
    "vfu_pci_find_next_capability": (c_size_t, (_CTX, c_bool, c_size_t, c_int)),
}

_OF_GENERATION: dict[Generation, dict[str, Declaration]] = {
    Generation.OF_2022: {
        "vfu_setup_device_dma": (c_int, (_CTX, DMA_REGISTER, DMA_UNREGISTER)),
        "vfu_sgl_read": (c_int, (_CTX, _SGL, c_size_t, c_void_p)),
        "vfu_sgl_write": (c_int, (_CTX, _SGL, c_size_t, c_void_p)),
        "vfu_create_ioeventfd": (c_int, (_CTX, c_uint32, c_int, c_size_t, c_uint32, c_uint32, c_uint64)),
        "vfu_get_migr_register_area_size": (c_size_t, ()),
        "vfu_setup_device_migration_callbacks": (c_int, (_CTX, ctypes.POINTER(MigrationCallbacks), c_uint64)),
    },
    Generation.CURRENT: {
        "vfu_setup_device_dma": (c_int, (_CTX, c_size_t, DMA_REGISTER, DMA_UNREGISTER)),
        "vfu_sgl_read": (c_int, (_CTX, _SGL, c_size_t, c_void_p, c_int)),
        "vfu_sgl_write": (c_int, (_CTX, _SGL, c_size_t, c_void_p, c_int)),
        "vfu_create_ioeventfd": (
            c_int,
            (_CTX, c_uint32, c_int, c_size_t, c_uint32, c_uint32, c_uint64, c_int, c_uint64),
        ),
        "vfu_setup_device_migration_callbacks": (c_int, (_CTX, ctypes.POINTER(MigrationCallbacks2))),
    },
}


def declarations(generation: Generation) -> dict[str, Declaration]:
    """Every exported function of a generation."""
    return {**_COMMON, **_OF_GENERATION[generation]}


class Library:
    """A loaded library: its path, its generation, and its functions by their C names.

    A failed call leaves its errno in :func:`ctypes.get_errno`. Calls release the interpreter's lock, but the library
    itself is not for several threads at a time. Raises :class:`LibraryError`.
    """

    dma_sg_size: Callable[[], int]
    vfu_create_ctx: Callable[[int, bytes, int, int | None, int], int | None]
    vfu_realize_ctx: Callable[[int], int]
    vfu_attach_ctx: Callable[[int], int]
    vfu_get_poll_fd: Callable[[int], int]
    vfu_run_ctx: Callable[[int], int]
    vfu_destroy_ctx: Callable[[int], None]
    vfu_get_private: Callable[[int], int | None]
    vfu_log: Callable[..., None]
    vfu_setup_log: Callable[[int, Any, int], int]
    vfu_setup_region: Callable[[int, int, int, Any, int, Any, int, int, int], int]
    vfu_setup_device_quiesce_cb: Callable[[int, Any], None]
    vfu_device_quiesced: Callable[[int, int], int]
    vfu_setup_device_reset_cb: Callable[[int, Any], int]
    vfu_setup_device_dma: Callable[..., int]
    vfu_setup_device_nr_irqs: Callable[[int, int, int], int]
    vfu_setup_irq_state_callback: Callable[[int, int, Any], int]
    vfu_setup_device_migration_callbacks: Callable[..., int]
    vfu_get_migr_register_area_size: Callable[[], int]
    vfu_irq_trigger: Callable[[int, int], int]
    vfu_addr_to_sgl: Callable[[int, int, int, Any, int, int], int]
    vfu_sgl_get: Callable[[int, Any, Any, int, int], int]
    vfu_sgl_mark_dirty: Callable[[int, Any, int], None]
    vfu_sgl_put: Callable[[int, Any, Any, int], None]
    vfu_sgl_read: Callable[..., int]
    vfu_sgl_write: Callable[..., int]
    vfu_sg_is_mappable: Callable[[int, Any], bool]
    vfu_pci_init: Callable[[int, int, int, int], int]
    vfu_pci_set_id: Callable[[int, int, int, int, int], None]
    vfu_pci_set_class: Callable[[int, int, int, int], None]
    vfu_pci_get_config_space: Callable[[int], int | None]
    vfu_pci_add_capability: Callable[[int, int, int, Any], int]
    vfu_pci_find_capability: Callable[[int, bool, int], int]
    vfu_pci_find_next_capability: Callable[[int, bool, int, int], int]
    vfu_create_ioeventfd: Callable[..., int]

    def __init__(self, path: str | os.PathLike[str] = SONAME) -> None:
        self.path = os.fspath(path)
        """as given: a file, or a soname that the dynamic linker finds"""
        try:
            loaded = ctypes.CDLL(self.path, use_errno=True)
        except OSError as error:
            said = str(error).removeprefix(f"{self.path}: ")  # without it, it is about what the library needs
            is_missing = said != str(error) and os.strerror(errno.ENOENT) in said
            raise LibraryError(self.path, f"it cannot be loaded: {said}", is_missing=is_missing) from error
        is_old = hasattr(loaded, "vfu_get_migr_register_area_size")
        self.generation = Generation.OF_2022 if is_old else Generation.CURRENT
        for name, (result, arguments) in declarations(self.generation).items():
            try:
                function = getattr(loaded, name)
            except AttributeError:
                raise LibraryError(self.path, f"it is of another interface, and has no {name}") from None
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if self.generation is Generation.CURRENT:
            _say_untried(self.path)


@cache
def _say_untried(path: str) -> None:
    """Once for each library."""
    _LOG.warning(
        "libvfio-user %s: its interface is newer than that of 2022, the only one with which these bindings were run; "
        "what they pass to it is in part guessed",
        path,
    )
