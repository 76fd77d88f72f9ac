"""What an IOMMU did lately, bounded, and what that says of a DMA that was refused."""
