"""Measurements of the PV-IOMMU, by itself and beside others."""
