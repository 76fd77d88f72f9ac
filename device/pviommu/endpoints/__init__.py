"""Emulated PCI functions that do DMA: one file a device. They know nothing of what translates it."""

ENDPOINTS = {
    "dma-test": "dma_test.DmaTestEngine",
    "template": "template.Template",
}
"""Kinds of endpoint: file of this folder and class, which are imported when a machine has such an endpoint."""
