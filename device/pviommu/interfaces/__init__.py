"""The interfaces by which a guest programs an IOMMU, one package each."""
