"""A virtual SMMUv3: the second interface by which a guest may program an IOMMU (docs/smmuv3.md)."""
