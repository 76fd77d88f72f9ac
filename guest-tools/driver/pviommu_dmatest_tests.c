// SPDX-License-Identifier: GPL-2.0-only
/* Tests of DMA through the kernel's DMA API. */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "pviommu_dmatest_buffer.h"

/* Only the bytes from @at on may differ from the guard byte; they must be @data. */
static void pvdt_expect_placed(struct ktap *ktap, struct pvdt_buffer *buffer, size_t at,
			       const u8 *data, size_t length)
{
	EXPECT(ktap, !memcmp(buffer->cpu + at, data, length));
	EXPECT(ktap, pvdt_guarded(buffer->cpu, at));
	EXPECT(ktap, pvdt_guarded(buffer->cpu + at + length, buffer->size - at - length));
}

/**
 * struct pvdt_copy - one copy to try
 * @length: bytes
 * @from: offset in the source
 * @to: offset in the destination
 */
struct pvdt_copy {
	size_t length;
	size_t from;
	size_t to;
};

static void pvdt_copy(struct ktap *ktap, struct pvdt *engine, const struct pvdt_copy *copy)
{
	struct pvdt_request request = { .op = PVDT_OP_COPY, .length = copy->length };
	struct pvdt_buffer src, dst;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &src, copy->from + copy->length + PAGE_SIZE,
					     DMA_TO_DEVICE), 0))
		return;
	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &dst, copy->to + copy->length + PAGE_SIZE,
					     DMA_BIDIRECTIONAL), 0))
		goto out;
	pvdt_scribble(src.cpu + copy->from, copy->length, copy->length);
	pvdt_to_device(engine, &src);
	pvdt_to_device(engine, &dst);
	request.src = src.iova + copy->from;
	request.dst = dst.iova + copy->to;
	if (pvdt_expect_done(ktap, engine, &request, PVDT_POLL)) {
		pvdt_to_cpu(engine, &dst);
		pvdt_expect_placed(ktap, &dst, copy->to, src.cpu + copy->from, copy->length);
	}
	pvdt_buffer_unmap(engine, &dst);
out:
	pvdt_buffer_unmap(engine, &src);
}

/* Destinations begin after a guard page. */
static void pvdt_test_copy(struct ktap *ktap, void *subject, unsigned long length)
{
	struct pvdt_copy copy = { .length = length, .from = 0, .to = PAGE_SIZE };

	pvdt_copy(ktap, subject, &copy);
}

static void pvdt_test_unaligned(struct ktap *ktap, void *subject, unsigned long length)
{
	struct pvdt_copy copy = { .length = length, .from = 13, .to = PAGE_SIZE + 1021 };

	pvdt_copy(ktap, subject, &copy);
}

static void pvdt_test_page_crossing(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt_copy copy = { .length = 2, .from = PAGE_SIZE - 1, .to = 2 * PAGE_SIZE - 1 };

	pvdt_copy(ktap, subject, &copy);
}

static void pvdt_test_2m_crossing(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt_request request = { .op = PVDT_OP_COPY, .length = 8191 };
	struct pvdt *engine = subject;
	struct pvdt_buffer buffer;
	size_t boundary, at;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, SZ_4M, DMA_BIDIRECTIONAL), 0))
		return;
	boundary = round_up(buffer.iova + SZ_64K, SZ_2M) - buffer.iova;
	at = boundary - 4095;
	pvdt_scribble(buffer.cpu, request.length, 2);
	pvdt_to_device(engine, &buffer);
	request.src = buffer.iova;
	request.dst = buffer.iova + at;
	EXPECT(ktap, request.dst >> 21 != (request.dst + request.length - 1) >> 21);
	if (pvdt_expect_done(ktap, engine, &request, PVDT_POLL)) {
		pvdt_to_cpu(engine, &buffer);
		EXPECT(ktap, !memcmp(buffer.cpu, buffer.cpu + at, request.length));
		EXPECT(ktap, pvdt_guarded(buffer.cpu + request.length, at - request.length));
		EXPECT(ktap, pvdt_guarded(buffer.cpu + at + request.length,
					  buffer.size - at - request.length));
	}
	pvdt_buffer_unmap(engine, &buffer);
}

void pvdt_test_coherent(struct ktap *ktap, void *subject, unsigned long size)
{
	struct pvdt_request request = { .op = PVDT_OP_COPY, .length = size / 2 };
	struct pvdt *engine = subject;
	dma_addr_t iova;
	u8 *cpu;

	cpu = dma_alloc_coherent(pvdt_dev(engine), size, &iova, GFP_KERNEL);
	if (!EXPECT(ktap, cpu))
		return;
	pvdt_scribble(cpu, size / 2, size);
	memset(cpu + size / 2, 0, size / 2);
	request.src = iova;
	request.dst = iova + size / 2;
	if (pvdt_expect_done(ktap, engine, &request, PVDT_POLL))
		EXPECT(ktap, !memcmp(cpu, cpu + size / 2, size / 2));
	dma_free_coherent(pvdt_dev(engine), size, cpu, iova);
}

void pvdt_test_single(struct ktap *ktap, void *subject, unsigned long length)
{
	struct pvdt_request request = {
		.op = PVDT_OP_FILL, .length = length, .pattern = PVDT_PATTERN
	};
	struct pvdt *engine = subject;
	const size_t skip = 3;
	u64 pattern = PVDT_PATTERN;
	unsigned int i;
	u8 *data;

	data = kmalloc(skip + length, GFP_KERNEL);
	if (!EXPECT(ktap, data))
		return;
	memset(data, PVDT_GUARD_BYTE, skip + length);
	request.dst = dma_map_single(pvdt_dev(engine), data + skip, length, DMA_FROM_DEVICE);
	if (EXPECT_EQ(ktap, dma_mapping_error(pvdt_dev(engine), request.dst), 0)) {
		pvdt_expect_done(ktap, engine, &request, PVDT_POLL);
		dma_unmap_single(pvdt_dev(engine), request.dst, length, DMA_FROM_DEVICE);
		for (i = 0; i < length; i++)
			if (data[skip + i] != ((u8 *)&pattern)[i % sizeof(pattern)])
				break;
		EXPECT_EQ(ktap, i, length);
		EXPECT(ktap, pvdt_guarded(data, skip));
	}
	kfree(data);
}

static void pvdt_test_scattered(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt *engine = subject;
	struct pvdt_buffer buffer;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, 8 * PAGE_SIZE, DMA_TO_DEVICE), 0))
		return;
	EXPECT(ktap, buffer.sgt.orig_nents > 1);
	EXPECT_EQ(ktap, buffer.sgt.nents, 1);
	pvdt_buffer_unmap(engine, &buffer);
}

static void pvdt_test_high_iova(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt_request request = { .op = PVDT_OP_COPY, .length = PAGE_SIZE };
	struct pvdt *engine = subject;
	struct pvdt_buffer buffer;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, 2 * PAGE_SIZE, DMA_BIDIRECTIONAL),
		       0))
		return;
	EXPECT(ktap, buffer.iova >= SZ_4G);
	pvdt_scribble(buffer.cpu, PAGE_SIZE, 4);
	pvdt_to_device(engine, &buffer);
	request.src = buffer.iova;
	request.dst = buffer.iova + PAGE_SIZE;
	if (pvdt_expect_done(ktap, engine, &request, PVDT_POLL)) {
		pvdt_to_cpu(engine, &buffer);
		EXPECT(ktap, !memcmp(buffer.cpu, buffer.cpu + PAGE_SIZE, PAGE_SIZE));
	}
	pvdt_buffer_unmap(engine, &buffer);
}

static void pvdt_test_high_frame(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt_copy copy = { .length = PAGE_SIZE, .to = PAGE_SIZE };
	struct pvdt *engine = subject;
	struct pvdt_buffer buffer;
	bool high;

	if (!EXPECT_EQ(ktap, pvdt_buffer_map(engine, &buffer, PAGE_SIZE, DMA_TO_DEVICE), 0))
		return;
	high = page_to_phys(buffer.pages[0]) >= SZ_4G;
	pvdt_buffer_unmap(engine, &buffer);
	/* the allocator prefers high frames, so the buffers of the copy lie there as well */
	if (EXPECT(ktap, high))
		pvdt_copy(ktap, engine, &copy);
}

const struct ktap_case pvdt_all_cases[] = {
	{ "copies 1 byte", pvdt_test_copy, 1 },
	{ "copies 2 bytes", pvdt_test_copy, 2 },
	{ "copies 3 bytes", pvdt_test_copy, 3 },
	{ "copies 7 bytes", pvdt_test_copy, 7 },
	{ "copies 8 bytes", pvdt_test_copy, 8 },
	{ "copies 63 bytes", pvdt_test_copy, 63 },
	{ "copies 64 bytes", pvdt_test_copy, 64 },
	{ "copies 4095 bytes", pvdt_test_copy, 4095 },
	{ "copies 4096 bytes", pvdt_test_copy, 4096 },
	{ "copies 4097 bytes", pvdt_test_copy, 4097 },
	{ "copies 8191 bytes", pvdt_test_copy, 8191 },
	{ "copies 64 KiB and 3 bytes", pvdt_test_copy, SZ_64K + 3 },
	{ "copies 2 MiB less 1 byte", pvdt_test_copy, SZ_2M - 1 },
	{ "copies 2 MiB", pvdt_test_copy, SZ_2M },
	{ "copies 2 MiB and 1 byte", pvdt_test_copy, SZ_2M + 1 },
	{ "copies 4 MiB", pvdt_test_copy, SZ_4M },
	{ "copies 1 byte between unaligned addresses", pvdt_test_unaligned, 1 },
	{ "copies 4096 bytes between unaligned addresses", pvdt_test_unaligned, 4096 },
	{ "copies 64 KiB between unaligned addresses", pvdt_test_unaligned, SZ_64K },
	{ "copies across a page boundary", pvdt_test_page_crossing },
	{ "copies across a 2 MiB boundary of device addresses", pvdt_test_2m_crossing },
	{ "reaches a coherent page", pvdt_test_coherent, SZ_4K },
	{ "reaches 1 MiB of coherent memory", pvdt_test_coherent, SZ_1M },
	{ "fills an unaligned dma_map_single buffer", pvdt_test_single, 1500 },
	{ "scattered pages become one run of device addresses", pvdt_test_scattered },
	{ "reaches memory through a device address above 4 GiB", pvdt_test_high_iova },
	{ "reaches a guest frame above 4 GiB", pvdt_test_high_frame },
	{ "checksum of 1 byte is the kernel's", pvdt_test_checksum, 1 },
	{ "checksum of 64 KiB and 5 bytes is the kernel's", pvdt_test_checksum, SZ_64K + 5 },
	{ "verify finds a difference in the first byte", pvdt_test_verify, 0 },
	{ "verify finds a difference in the middle", pvdt_test_verify, 40001 },
	{ "verify finds a difference in the last byte", pvdt_test_verify, SZ_64K - 1 },
	{ "scatters and gathers", pvdt_test_scatter_gather },
	{ "the queue wraps", pvdt_test_wrap },
	{ "completion comes by interrupt", pvdt_test_interrupt },
	{ "a DMA_TO_DEVICE mapping cannot be written through", pvdt_test_read_only },
	{ "reaches shared memory of another engine", pvdt_test_peer_shared },
	{ "reaches registers of another engine", pvdt_test_peer_registers },
	{ "what is neither memory nor a BAR of an engine cannot be mapped: EFAULT",
	  pvdt_test_no_peer },
};

/* the last ones reach BARs, or expect that something else is none: not every IOMMU does */
#define PVDT_BAR_CASES	3

const unsigned int pvdt_nr_all_cases = ARRAY_SIZE(pvdt_all_cases);
const unsigned int pvdt_nr_memory_cases = ARRAY_SIZE(pvdt_all_cases) - PVDT_BAR_CASES;

const struct ktap_case pvdt_quick_cases[] = {
	{ "copies 8191 bytes", pvdt_test_copy, 8191 },
	{ "reaches a coherent page", pvdt_test_coherent, SZ_4K },
	{ "completion comes by interrupt", pvdt_test_interrupt },
};

const unsigned int pvdt_nr_quick_cases = ARRAY_SIZE(pvdt_quick_cases);
