/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The XOR endpoint. Generated from the declarations of pviommu_abi; do not edit. */
#ifndef _PVIOMMU_XOR_H
#define _PVIOMMU_XOR_H

#include <linux/types.h>
#ifdef __KERNEL__
#include <linux/build_bug.h>
#else
#include <assert.h>
#endif

/*
 * Registers
 *
 * The XOR endpoint, an example of a device: it XORs every byte of a buffer with a key.
 *
 * BAR 0 (4 KiB) holds trapped registers, BAR 4 the MSI-X table (one vector). ADDRESS and LENGTH
 * say where the buffer is, a write to START begins. Vector 0 is raised when STATUS is no longer
 * BUSY, before which nothing should be written.
 */

#define PVXOR_REG_KEY                           0x000
#define PVXOR_REG_LENGTH                        0x004
#define PVXOR_REG_ADDRESS                       0x008
#define PVXOR_REG_START                         0x010
#define PVXOR_REG_STATUS                        0x014

#define PVXOR_VENDOR_ID                         0x1234       /* PCI vendor id */
#define PVXOR_DEVICE_ID                         0x5059       /* PCI device id */
#define PVXOR_REGISTER_BAR                      0            /* BAR of the registers */
#define PVXOR_MAX_LENGTH                        0x10000      /* most bytes of a buffer */

/* Values of STATUS. */
#define PVXOR_STATUS_IDLE                       0
#define PVXOR_STATUS_BUSY                       1
#define PVXOR_STATUS_DONE                       2
#define PVXOR_STATUS_REFUSED                    3            /* by the IOMMU: the buffer is as it was */
#define PVXOR_STATUS_CANCELLED                  4            /* the IOMMU was reset first */

#endif /* _PVIOMMU_XOR_H */
