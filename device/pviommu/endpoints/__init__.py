"""Emulated PCI functions whose DMA the PV-IOMMU translates: one file a device."""

ENDPOINTS = {
    "dma-test": "dma_test.DmaTestEngine",
    "template": "template.Template",
}
"""Kinds of endpoint: file of this folder and class, which are imported when a machine has such an endpoint."""
