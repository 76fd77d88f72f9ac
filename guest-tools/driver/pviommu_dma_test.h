/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The DMA test engine. Generated from the declarations of pviommu_abi; do not edit. */
#ifndef _PVIOMMU_DMA_TEST_H
#define _PVIOMMU_DMA_TEST_H

#include <linux/types.h>
#ifdef __KERNEL__
#include <linux/build_bug.h>
#else
#include <assert.h>
#endif

/*
 * Registers, descriptors, scatter/gather
 *
 * The DMA test engine: registers, descriptors and scatter/gather entries.
 *
 * BAR 0 (4 KiB) holds trapped registers, BAR 2 (64 KiB, shared memory) the descriptors and the
 * scatter/gather entries, BAR 4 the MSI-X table (one vector). Descriptors lie in the device and
 * not in guest memory on purpose: what became of a request can be read even when the IOMMU lets
 * the device reach nothing.
 *
 * A descriptor is a request of its own: it is translated over its whole span before a byte moves,
 * and refused whole.
 */

#define PVDT_REG_MAGIC                          0x000
#define PVDT_REG_VERSION                        0x004
#define PVDT_REG_ENTRIES                        0x008
#define PVDT_REG_SG_ENTRIES                     0x00c
#define PVDT_REG_MAX_LENGTH                     0x010
#define PVDT_REG_CONTROL                        0x014
#define PVDT_REG_PRODUCER                       0x018
#define PVDT_REG_CONSUMER                       0x01c

#define PVDT_VENDOR_ID                          0x1234       /* default PCI vendor id */
#define PVDT_DEVICE_ID                          0x5057       /* default PCI device id */
#define PVDT_MAGIC                              0x54445650   /* value of register MAGIC */
#define PVDT_VERSION                            1            /* value of register VERSION */
#define PVDT_REGISTER_BAR                       0            /* BAR of the registers */
#define PVDT_SHARED_BAR                         2            /* BAR of descriptors and entries */
#define PVDT_SHARED_BAR_SIZE                    0x10000      /* bytes */
#define PVDT_ENTRIES                            256          /* descriptors of the queue */
#define PVDT_SG_ENTRIES                         2048         /* scatter/gather entries */
#define PVDT_SG_OFFSET                          0x8000       /* first scatter/gather entry */
#define PVDT_MAX_LENGTH                         0x400000     /* most bytes of one descriptor */

/* Bits of CONTROL. */
#define PVDT_CONTROL_ENABLE                     0x1
/* cancels what is queued and clears PRODUCER and CONSUMER; reads as 0 */
#define PVDT_CONTROL_RESET                      0x2

/* What a descriptor asks for. */
#define PVDT_OP_COPY                            1            /* move length bytes from src to dst */
#define PVDT_OP_FILL                            2            /* write pattern over and over to dst */
/* CRC-32 (IEEE 802.3, as zlib has it) of src into checksum */
#define PVDT_OP_CHECKSUM                        3
#define PVDT_OP_VERIFY                          4            /* compare src with pattern over and over */

/* Flags of a descriptor. */
/* src names scatter/gather entries: index | count << 32 */
#define PVDT_FLAG_SRC_SG                        0x1
/* dst names scatter/gather entries: index | count << 32 */
#define PVDT_FLAG_DST_SG                        0x2
#define PVDT_FLAG_INTERRUPT                     0x4          /* raise vector 0 when it is finished */
/* its DMA has pasid; invalid unless the guest has turned PASIDs on */
#define PVDT_FLAG_PASID                         0x8

/* What became of a descriptor. */
#define PVDT_STATUS_PENDING                     0
#define PVDT_STATUS_DONE                        1
/* refused by the IOMMU, nothing moved; detail is the first refused address */
#define PVDT_STATUS_FAULT                       2
/* unknown operation or flags, or a length, index or count past its limit; nothing moved */
#define PVDT_STATUS_INVALID                     3
/* VERIFY found a difference; detail is its offset in bytes */
#define PVDT_STATUS_MISMATCH                    4
#define PVDT_STATUS_CANCELLED                   5            /* a reset came first */

/**
 * struct pvdt_descriptor - One request
 * @op: DmaOp
 * @flags: DescriptorFlags
 * @pad0: 0
 * @length: bytes, 1 to MAX_LENGTH
 * @src: device address or scatter/gather entries
 * @dst: device address or scatter/gather entries
 * @pattern: eight bytes, in memory order
 * @detail: OUT: refused address or offset of the difference
 * @checksum: OUT: CRC-32
 * @reason: OUT: EventReason of a fault
 * @access: OUT: EventAccess of a fault
 * @pad1: 0
 * @pasid: PASID of its DMA, with the flag
 * @status: OUT: DescriptorStatus, written last
 */
struct pvdt_descriptor {
	__u8	op;
	__u8	flags;
	__le16	pad0;
	__le32	length;
	__le64	src;
	__le64	dst;
	__le64	pattern;
	__le64	detail;
	__le32	checksum;
	__le16	reason;
	__le16	access;
	__le64	pad1;
	__le32	pasid;
	__le32	status;
};
static_assert(sizeof(struct pvdt_descriptor) == 64);

/**
 * struct pvdt_sg_entry - One scatter/gather entry. The lengths of a list must add up to the descriptor's length
 * @address: device address
 * @length: bytes, not 0
 * @pad0: 0
 */
struct pvdt_sg_entry {
	__le64	address;
	__le32	length;
	__le32	pad0;
};
static_assert(sizeof(struct pvdt_sg_entry) == 16);

#endif /* _PVIOMMU_DMA_TEST_H */
