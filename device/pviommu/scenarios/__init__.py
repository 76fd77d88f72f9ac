"""Scenarios without a virtual machine: the commands ``pviommu faults``, and the guests that are played for them."""
