"""The guest-visible contract of the PV-IOMMU, declared once.

``slots``      command slots, what all operations share
``xen_2024``   the operations of the June 2024 header
``xen_v7``     those of versions 4 to 7 of the series
``vendor``     vendor operations, those of this device
``shared``     the shared BAR: index lines, event ring, capability area
``registers``  trapped registers, PCI identity, the endpoints' vendor capability
``dma_test``   the DMA test engine
``c_header``   makes the C headers of the guest drivers from the above
``abi_page``   makes the ABI page of the documentation from the above

``python -m pviommu_abi DIRECTORY`` writes the headers and the page.
"""
