"""The VERSION exchange: what each side can receive. Both directions, no sockets.

Source: QEMU 11.1 ``docs/interop/vfio-user.rst`` and what its client accepts. On the wire QEMU speaks 0.0, rust-vmm
and SPDK 0.1, libvfio-user 0.2 in its own repository and 0.1 in the copy that Debian builds with QEMU; a reply carries
the smaller minor, because QEMU refuses one above its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ProtocolError
from .messages import Header, RegionAccess, Version

__all__ = ["MAJOR", "MINOR", "Capabilities", "Offer", "SessionLimits", "accept", "offer", "parse"]

MAJOR = 0
MINOR = 2

_MAX_FDS = 1024  # libvfio-user refuses a peer that claims more
_MIN_TRANSFER, _MAX_TRANSFER = 4096, 64 << 20  # QEMU reads configuration space in one go; and refuses above 64 MiB
_U64 = 1 << 64


@dataclass(frozen=True)
class SessionLimits:
    """What this side can receive, announced to the peer and enforced. QEMU's bounds are kept: ValueError."""

    max_msg_fds: int = 16
    """descriptors per message, 0 to 16"""
    max_data_xfer_size: int = 1 << 20
    """data bytes per message, 4096 to 64 MiB"""
    max_dma_maps: int = 65535
    """simultaneous DMA maps, 1 to 65535"""
    pgsizes: int = 4096
    """mask of page sizes of DMA maps, a multiple of 4096"""
    write_multiple: bool = False
    """whether REGION_WRITE_MULTI is served"""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_msg_fds", 0, 16),
            ("max_data_xfer_size", _MIN_TRANSFER, _MAX_TRANSFER),
            ("max_dma_maps", 1, 65535),
            ("pgsizes", 4096, _U64 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} {value}: QEMU accepts {low} to {high}")
        if self.pgsizes % 4096:
            raise ValueError(f"pgsizes {self.pgsizes:#x}: QEMU accepts multiples of 4096")

    @property
    def max_frame(self) -> int:
        """Most bytes of a message: headers and one full data transfer."""
        return Header.SIZE + RegionAccess.SIZE + self.max_data_xfer_size

    def to_json(self) -> dict[str, int | bool]:
        """The capabilities object of a VERSION message; ``write_multiple`` only if it is on."""
        found: dict[str, int | bool] = {
            "max_msg_fds": self.max_msg_fds,
            "max_data_xfer_size": self.max_data_xfer_size,
            "max_dma_maps": self.max_dma_maps,
            "pgsizes": self.pgsizes,
        }
        if self.write_multiple:
            found["write_multiple"] = True
        return found


@dataclass(frozen=True)
class Capabilities:
    """What the peer can receive; the defaults are those of the specification for keys it left out."""

    max_msg_fds: int = 1
    max_data_xfer_size: int = 1 << 20
    max_dma_maps: int = 65535
    pgsizes: int = 4096
    write_multiple: bool = False


@dataclass(frozen=True)
class Offer:
    """A parsed VERSION message."""

    major: int
    minor: int
    capabilities: Capabilities
    named: frozenset[str] = frozenset()
    """the capabilities that the message names; the others have their defaults"""


def parse(payload: bytes) -> Offer:
    """Decode the payload of a VERSION message, from either side; :class:`ProtocolError` says what is wrong."""
    if len(payload) < Version.SIZE:
        raise ProtocolError(f"VERSION payload of {len(payload)} bytes: at least {Version.SIZE} are needed")
    version = Version.unpack(payload)
    if version.major != MAJOR:
        raise ProtocolError(f"VERSION {version.major}.{version.minor}: only major version {MAJOR} is supported")
    text = payload[Version.SIZE :]
    found = _capabilities_object(text) if text else {}
    return Offer(version.major, version.minor, _capabilities(found), frozenset(found))


def offer(limits: SessionLimits, minor: int = MINOR) -> bytes:
    """The payload of a VERSION message that announces ``limits``."""
    return _message(minor, limits.to_json())


def _message(minor: int, capabilities: Mapping[str, int | bool]) -> bytes:
    text = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
    return Version(MAJOR, minor).pack() + text.encode() + b"\0"


def accept(payload: bytes, limits: SessionLimits) -> tuple[bytes, Offer]:
    """Answer a client's VERSION payload: the reply payload, and the client's offer with the minor agreed on.

    ``write_multiple`` in the returned offer and in the reply is true only if both sides have it. A capability that the
    client did not name is in the reply only if the limit is below the default that the client assumes: otherwise the
    client would exceed it. :class:`ProtocolError` if the offer is malformed.
    """
    proposed = parse(payload)
    agreed = proposed.capabilities.write_multiple and limits.write_multiple
    minor = min(proposed.minor, MINOR)
    named = {
        name: value
        for name, value in _with_write_multiple(limits, agreed).to_json().items()
        if name in proposed.named or _is_below_default(name, value)
    }
    reply = _message(minor, named)
    found = proposed.capabilities
    capabilities = Capabilities(found.max_msg_fds, found.max_data_xfer_size, found.max_dma_maps, found.pgsizes, agreed)
    return reply, Offer(MAJOR, minor, capabilities, proposed.named)


def _is_below_default(name: str, value: int | bool) -> bool:
    default = getattr(Capabilities, name)
    return bool(default & ~value if name == "pgsizes" else value < default)


def _with_write_multiple(limits: SessionLimits, on: bool) -> SessionLimits:
    return SessionLimits(limits.max_msg_fds, limits.max_data_xfer_size, limits.max_dma_maps, limits.pgsizes, on)


def _capabilities_object(text: bytes) -> dict[str, Any]:
    """The capabilities in the JSON of a VERSION message, unchecked."""
    if text[-1] != 0:
        raise ProtocolError("VERSION JSON must end in NUL")
    try:
        document = json.loads(text[:-1].decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, huge numbers; or nesting without end
        raise ProtocolError(f"VERSION JSON cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ProtocolError("VERSION JSON must be an object")
    found = document.get("capabilities", {})
    if not isinstance(found, dict):
        raise ProtocolError("VERSION capabilities must be an object")
    return found


def _capabilities(found: dict[str, Any]) -> Capabilities:
    """Decode them; unknown keys are ignored, as by QEMU."""
    for name in ("migration", "twin_socket"):
        if not isinstance(found.get(name, {}), dict):
            raise ProtocolError(f"VERSION capability {name} must be an object")
    for name in ("pgsize", "max_bitmap_size"):
        _integer(found.get("migration", {}), name, 0, 0, _U64 - 1)
    write_multiple = found.get("write_multiple", False)
    if not isinstance(write_multiple, bool):
        raise ProtocolError("VERSION capability write_multiple must be true or false")
    return Capabilities(
        max_msg_fds=_integer(found, "max_msg_fds", Capabilities.max_msg_fds, 0, _MAX_FDS),
        max_data_xfer_size=_integer(found, "max_data_xfer_size", Capabilities.max_data_xfer_size, 1, _U64 - 1),
        max_dma_maps=_integer(found, "max_dma_maps", Capabilities.max_dma_maps, 0, _U64 - 1),
        pgsizes=_integer(found, "pgsizes", Capabilities.pgsizes, 1, _U64 - 1),
        write_multiple=write_multiple,
    )


def _integer(found: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = found.get(name, default)
    # bool is an int in Python, not in JSON
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProtocolError(f"VERSION capability {name} must be an integer")
    if not low <= value <= high:
        raise ProtocolError(f"VERSION capability {name} {value}: {low} to {high} are accepted")
    return value
