"""A paravirtual IOMMU for virtual machines that one can see inside and break on purpose."""

__version__ = "0.1.0"
