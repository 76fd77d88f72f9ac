"""One guest: drivers of the PV-IOMMU and of the DMA test engine, for tests, self-check and benchmarks.

It knows the interface from the protocol packages, and nothing of the device, which it is used to judge. It reaches a
function (``function.Function``) over vfio-user (``wire``) or by calls in the same process (``local``).
"""
