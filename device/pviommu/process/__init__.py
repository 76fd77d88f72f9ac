"""The process around a server: ``pviommu serve``, its log, and what a host that manages processes sees of it."""
