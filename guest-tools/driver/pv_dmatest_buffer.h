/* SPDX-License-Identifier: GPL-2.0-only */
/* Buffers of the DMA tests: pages that do not follow each other in memory. */
#ifndef _PV_DMATEST_BUFFER_H
#define _PV_DMATEST_BUFFER_H

#include <linux/dma-mapping.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>

#include "pv_dmatest.h"

#define PVDT_GUARD_BYTE		0xa5

/**
 * struct pvdt_buffer - scattered pages, one after the other for the CPU and for the device
 * @cpu: where the CPU sees them
 * @iova: where the device does
 * @size: bytes
 * @dir: direction of its DMA
 * @count: pages
 * @pages: the pages
 * @sgt: their scatter/gather list
 */
struct pvdt_buffer {
	u8 *cpu;
	dma_addr_t iova;
	size_t size;
	enum dma_data_direction dir;
	unsigned int count;
	struct page **pages;
	struct sg_table sgt;
};

static inline struct device *pvdt_dev(struct pvdt *engine)
{
	return &pvdt_pci_dev(engine)->dev;
}

int pvdt_buffer_map(struct pvdt *engine, struct pvdt_buffer *buffer, size_t size,
		    enum dma_data_direction dir);
void pvdt_buffer_unmap(struct pvdt *engine, struct pvdt_buffer *buffer);
void pvdt_to_device(struct pvdt *engine, struct pvdt_buffer *buffer);
void pvdt_to_cpu(struct pvdt *engine, struct pvdt_buffer *buffer);

#endif /* _PV_DMATEST_BUFFER_H */
