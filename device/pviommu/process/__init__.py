"""The process around a server: ``pviommu serve``, its log, and its interfaces to service managers."""
