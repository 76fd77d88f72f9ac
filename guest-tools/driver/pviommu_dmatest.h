/* SPDX-License-Identifier: GPL-2.0-only */
/* The driver of the DMA test engine, for its own tests and for those of other modules. */
#ifndef _PVIOMMU_DMATEST_H
#define _PVIOMMU_DMATEST_H

#include <linux/types.h>

#include "pviommu_dma_test.h"

struct pci_dev;
struct pvdt;

/**
 * struct pvdt_request - one descriptor, in the CPU's byte order
 * @op: PVDT_OP_*
 * @flags: PVDT_FLAG_*, without PVDT_FLAG_INTERRUPT
 * @length: bytes
 * @src: device address, or scatter/gather entries
 * @dst: device address, or scatter/gather entries
 * @pattern: eight bytes, in memory order
 * @status: OUT: PVDT_STATUS_*
 * @detail: OUT: refused address, or offset of the difference
 * @checksum: OUT: CRC-32
 * @reason: OUT: PVIOMMU_EVENT_* of a fault
 * @access: OUT: PVIOMMU_ACCESS_* of a fault
 */
struct pvdt_request {
	u8 op;
	u8 flags;
	u32 length;
	u64 src;
	u64 dst;
	u64 pattern;
	u32 status;
	u64 detail;
	u32 checksum;
	u16 reason;
	u16 access;
};

/**
 * enum pvdt_wait - how to wait for a request
 * @PVDT_POLL: look at the descriptor's status
 * @PVDT_INTERRUPT: sleep until the interrupt
 */
enum pvdt_wait {
	PVDT_POLL,
	PVDT_INTERRUPT,
};

static inline u64 pvdt_sg_list(u32 index, u32 count)
{
	return index | (u64)count << 32;
}

int pvdt_run_many(struct pvdt *engine, struct pvdt_request *requests, unsigned int count,
		  enum pvdt_wait wait);
int pvdt_run(struct pvdt *engine, struct pvdt_request *request, enum pvdt_wait wait);
void pvdt_set_sg(struct pvdt *engine, u32 index, u64 address, u32 length);
struct pci_dev *pvdt_pci_dev(struct pvdt *engine);
unsigned int pvdt_interrupts(struct pvdt *engine);
struct list_head *pvdt_kept(struct pvdt *engine);
void pvdt_free_kept(struct pvdt *engine);

struct ktap;
int pvdt_tests_run(struct ktap *ktap);

/**
 * struct pvdt_client_ops - operations of an engine for other modules
 * @get: the engine with this number, counted from 0 in the order of probing, or NULL; while it is
 *	held, its removal waits
 * @put: gives it back
 * @run: runs one request; 0, -ETIMEDOUT after which the engine was reset, or the errno of a reset
 *	that failed. The request has its status then
 * @run_many: runs as many as PVDT_ENTRIES
 * @pci_dev: its PCI function
 * @reset: resets the function; 0 or a negative errno
 */
struct pvdt_client_ops {
	struct pvdt *(*get)(unsigned int number);
	void (*put)(struct pvdt *engine);
	int (*run)(struct pvdt *engine, struct pvdt_request *request, enum pvdt_wait wait);
	int (*run_many)(struct pvdt *engine, struct pvdt_request *requests, unsigned int count,
			enum pvdt_wait wait);
	struct pci_dev *(*pci_dev)(struct pvdt *engine);
	int (*reset)(struct pvdt *engine);
};

extern const struct pvdt_client_ops pvdt_client_ops;

#endif /* _PVIOMMU_DMATEST_H */
