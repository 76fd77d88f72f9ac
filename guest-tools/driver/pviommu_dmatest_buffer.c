// SPDX-License-Identifier: GPL-2.0-only
/*
 * Buffers of the DMA tests. Their pages are not contiguous in memory, so that only a translating
 * IOMMU can give them contiguous device addresses.
 */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/mm.h>
#include <linux/vmalloc.h>

#include "pviommu_dmatest_buffer.h"

static void pvdt_free_pages(struct pvdt_buffer *buffer)
{
	unsigned int i;

	for (i = 0; i < buffer->count; i++)
		if (buffer->pages[i])
			__free_page(buffer->pages[i]);
	kvfree(buffer->pages);
}

/* The allocator tends to give neighbours, so only every other page is used in order. */
static int pvdt_alloc_pages(struct pvdt_buffer *buffer)
{
	unsigned int half, place, i;

	buffer->count = buffer->size >> PAGE_SHIFT;
	buffer->pages = kvcalloc(buffer->count, sizeof(*buffer->pages), GFP_KERNEL);
	if (!buffer->pages)
		return -ENOMEM;
	half = DIV_ROUND_UP(buffer->count, 2);
	for (i = 0; i < buffer->count; i++) {
		place = i < half ? 2 * i : 2 * (i - half) + 1;
		buffer->pages[place] = alloc_page(GFP_KERNEL);
		if (!buffer->pages[place]) {
			pvdt_free_pages(buffer);
			return -ENOMEM;
		}
	}
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

static void pvdt_buffer_close(struct pvdt *engine, struct pvdt_buffer *buffer)
{
	dma_unmap_sgtable(pvdt_dev(engine), &buffer->sgt, buffer->dir, 0);
	sg_free_table(&buffer->sgt);
	vunmap(buffer->cpu);
}

void pvdt_buffer_unmap(struct pvdt *engine, struct pvdt_buffer *buffer)
{
	pvdt_buffer_close(engine, buffer);
	pvdt_free_pages(buffer);
}

/*
 * For an IOMMU that may not do what it says: the page, which is unmapped, is not used for anything
 * else until the engine's driver is unbound, so that DMA which should have ended is found by
 * pvdt_kept_guarded() and harms nobody.
 */
void pvdt_keep(struct pvdt *engine, struct page *page)
{
	memset(page_address(page), PVDT_GUARD_BYTE, PAGE_SIZE);
	list_add(&page->lru, pvdt_kept(engine));
}

/* Unmaps the buffer, and keeps its pages. */
void pvdt_buffer_unmap_and_keep(struct pvdt *engine, struct pvdt_buffer *buffer)
{
	unsigned int i;

	pvdt_buffer_close(engine, buffer);
	for (i = 0; i < buffer->count; i++)
		pvdt_keep(engine, buffer->pages[i]);
	kvfree(buffer->pages);
}

bool pvdt_kept_guarded(struct pvdt *engine)
{
	struct page *page;

	list_for_each_entry(page, pvdt_kept(engine), lru)
		if (!pvdt_guarded(page_address(page), PAGE_SIZE))
			return false;
	return true;
}

/* The engine does no DMA any more. */
void pvdt_free_kept(struct pvdt *engine)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, pvdt_kept(engine), lru) {
		list_del(&page->lru);
		__free_page(page);
	}
}

/* Syncs the buffer: for the device before a request, for the CPU before it reads. */
void pvdt_to_device(struct pvdt *engine, struct pvdt_buffer *buffer)
{
	dma_sync_sgtable_for_device(pvdt_dev(engine), &buffer->sgt, buffer->dir);
}

void pvdt_to_cpu(struct pvdt *engine, struct pvdt_buffer *buffer)
{
	dma_sync_sgtable_for_cpu(pvdt_dev(engine), &buffer->sgt, buffer->dir);
}

/* Bytes that differ at every distance that a misplaced copy could have. */
void pvdt_scribble(u8 *data, size_t size, u32 seed)
{
	u32 state = seed * 2654435761U + 1;
	size_t i;

	for (i = 0; i < size; i++) {
		state ^= state << 13;
		state ^= state >> 17;
		state ^= state << 5;
		data[i] = state;
	}
}

bool pvdt_guarded(const u8 *data, size_t size)
{
	return !memchr_inv(data, PVDT_GUARD_BYTE, size);
}

bool pvdt_expect_done(struct ktap *ktap, struct pvdt *engine,
		      struct pvdt_request *request, enum pvdt_wait wait)
{
	return EXPECT_EQ(ktap, pvdt_run(engine, request, wait), 0) &&
	       EXPECT_EQ(ktap, request->status, PVDT_STATUS_DONE);
}
