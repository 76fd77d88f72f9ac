// SPDX-License-Identifier: GPL-2.0-only
/*
 * Buffers of the DMA tests. Their pages do not follow each other in memory, so that only a
 * translating IOMMU makes one run of device addresses of them.
 */

#define pr_fmt(fmt) "pv_dmatest: " fmt

#include <linux/mm.h>
#include <linux/vmalloc.h>

#include "pv_dmatest_buffer.h"

static void pvdt_free_pages(struct pvdt_buffer *buffer)
{
	while (buffer->count)
		__free_page(buffer->pages[--buffer->count]);
	kvfree(buffer->pages);
}

/* Neighbouring pages come out of the allocator in rising order, so the list is turned round. */
static int pvdt_alloc_pages(struct pvdt_buffer *buffer)
{
	unsigned int wanted = buffer->size >> PAGE_SHIFT, i;

	buffer->pages = kvcalloc(wanted, sizeof(*buffer->pages), GFP_KERNEL);
	if (!buffer->pages)
		return -ENOMEM;
	for (buffer->count = 0; buffer->count < wanted; buffer->count++) {
		buffer->pages[buffer->count] = alloc_page(GFP_KERNEL);
		if (!buffer->pages[buffer->count]) {
			pvdt_free_pages(buffer);
			return -ENOMEM;
		}
	}
	for (i = 0; i < wanted / 2; i++)
		swap(buffer->pages[i], buffer->pages[wanted - 1 - i]);
	return 0;
}

/* Allocates and maps a buffer of at least @size bytes, filled with the guard byte. */
int pvdt_buffer_map(struct pvdt *engine, struct pvdt_buffer *buffer, size_t size,
		    enum dma_data_direction dir)
{
	int ret;

	buffer->size = PAGE_ALIGN(size);
	buffer->dir = dir;
	ret = pvdt_alloc_pages(buffer);
	if (ret)
		return ret;
	buffer->cpu = vmap(buffer->pages, buffer->count, VM_MAP, PAGE_KERNEL);
	if (!buffer->cpu) {
		ret = -ENOMEM;
		goto err_pages;
	}
	memset(buffer->cpu, PVDT_GUARD_BYTE, buffer->size);
	ret = sg_alloc_table_from_pages(&buffer->sgt, buffer->pages, buffer->count, 0, buffer->size,
					GFP_KERNEL);
	if (ret)
		goto err_vmap;
	ret = dma_map_sgtable(pvdt_dev(engine), &buffer->sgt, dir, 0);
	if (ret)
		goto err_sg;
	buffer->iova = sg_dma_address(buffer->sgt.sgl);
	return 0;

err_sg:
	sg_free_table(&buffer->sgt);
err_vmap:
	vunmap(buffer->cpu);
err_pages:
	pvdt_free_pages(buffer);
	return ret;
}

void pvdt_buffer_unmap(struct pvdt *engine, struct pvdt_buffer *buffer)
{
	dma_unmap_sgtable(pvdt_dev(engine), &buffer->sgt, buffer->dir, 0);
	sg_free_table(&buffer->sgt);
	vunmap(buffer->cpu);
	pvdt_free_pages(buffer);
}

/* Hands the buffer over: to the device before a request, to the CPU before it looks. */
void pvdt_to_device(struct pvdt *engine, struct pvdt_buffer *buffer)
{
	dma_sync_sgtable_for_device(pvdt_dev(engine), &buffer->sgt, buffer->dir);
}

void pvdt_to_cpu(struct pvdt *engine, struct pvdt_buffer *buffer)
{
	dma_sync_sgtable_for_cpu(pvdt_dev(engine), &buffer->sgt, buffer->dir);
}
