"""A paravirtual IOMMU for virtual machines, made to be looked into and to be broken on purpose."""

__version__ = "0.1.0"
