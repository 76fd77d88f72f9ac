"""Emulated PCI functions that do DMA: one file per device. They do not know what translates it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["ENDPOINTS", "WITH_OPTIONS", "endpoint_class"]

ENDPOINTS = {
    "dma-test": "dma_test.DmaTestEngine",
    "template": "template.Template",
    "virtio-net": "virtio_net.VirtioNet",
    "xor": "xor.Xor",
}
"""Kinds of endpoint: file of this folder and class, which are imported when a machine has such an endpoint."""
WITH_OPTIONS = frozenset({"virtio-net", "xor"})
"""Kinds whose class has ``OPTIONS``: they are checked even if a topology sets none of them."""


def endpoint_class(kind: str) -> type[Endpoint]:
    """The class of one of :data:`ENDPOINTS`."""
    module, _, name = ENDPOINTS[kind].partition(".")
    found: type[Endpoint] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found
