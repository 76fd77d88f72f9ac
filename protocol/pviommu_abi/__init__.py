"""The guest-visible contract of the PV-IOMMU, declared once.

``slots``      command slots and the operations they carry
``shared``     the shared BAR: index lines, event ring, capability area
``registers``  trapped registers, PCI identity, the endpoints' vendor capability
``dma_test``   the DMA test engine
``c_header``   makes the C headers of the guest drivers from the above
``abi_page``   makes the ABI page of the documentation from the above

``python -m pviommu_abi DIRECTORY`` writes the headers and the page.
"""
