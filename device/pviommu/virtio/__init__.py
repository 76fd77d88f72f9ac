"""What all virtio devices have (Virtual I/O Device specification, version 1.2): features, registers, split and packed
rings. What is a device is :mod:`pviommu.endpoints.virtio_device`.
"""
