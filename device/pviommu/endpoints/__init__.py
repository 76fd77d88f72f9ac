"""Emulated PCI functions whose DMA the PV-IOMMU translates: one file a device."""
