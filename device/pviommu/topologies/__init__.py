"""``pviommu topology``: checks, lists and shows topology files; see :mod:`pviommu.topology`."""
