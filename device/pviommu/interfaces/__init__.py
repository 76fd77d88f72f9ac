"""What a guest programs an IOMMU by, a package each."""
