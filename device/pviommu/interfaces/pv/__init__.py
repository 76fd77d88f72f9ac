"""The PV-IOMMU function: registers, rings, events, and the profiles that turn slots into engine calls."""
