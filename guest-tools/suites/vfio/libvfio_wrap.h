/* SPDX-License-Identifier: MIT */
/* The linker's names for --wrap: calls go to __wrap_, the original function is __real_. */
#ifndef LIBVFIO_WRAP_H
#define LIBVFIO_WRAP_H

struct vfio_pci_device;

void __real_vfio_pci_driver_probe(struct vfio_pci_device *device);
void __wrap_vfio_pci_driver_probe(struct vfio_pci_device *device);

#endif
