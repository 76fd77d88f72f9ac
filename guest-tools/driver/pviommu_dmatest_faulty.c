// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMA while the device follows a scenario of faults: a map may fail, DMA may be refused, an engine
 * may stop, but what is done must be right, nothing else may change, and after its reset an engine
 * works again.
 */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/string.h>

#include "pviommu_dmatest_buffer.h"

#define PVDT_FAULTY_ROUNDS	96
#define PVDT_GLANCE_ROUNDS	12
/* once in so many rounds a DMA goes where nothing is ever mapped */
#define PVDT_FAULTY_ASTRAY	12
/* once in so many rounds a buffer is contiguous, so that one command maps several pages */
#define PVDT_FAULTY_LARGE	5
#define PVDT_FAULTY_ORDER	3
/* addresses are given out from the top, so this one never is */
#define PVDT_FAULTY_NOWHERE	0x10000
/* so many requests in a row that are not finished: the resets between them were in vain */
#define PVDT_FAULTY_STOPS	2

/**
 * struct pvdt_faulty - what became of the rounds
 * @done: transfers that are done, all bytes in their place
 * @unmapped: maps that failed
 * @refused: transfers that were refused
 * @stopped: requests that their engine did not finish
 * @in_a_row: of them, those after the last one that it finished
 */
struct pvdt_faulty {
	unsigned int done;
	unsigned int unmapped;
	unsigned int refused;
	unsigned int stopped;
	unsigned int in_a_row;
};

/* An engine that does not finish the request was reset, and must finish the next one. */
static void pvdt_faulty_run(struct ktap *ktap, struct pvdt *engine, struct pvdt_faulty *sum,
			    struct pvdt_request *request)
{
	int ret = pvdt_run(engine, request, PVDT_POLL);

	if (ret) {
		EXPECT_EQ(ktap, ret, -ETIMEDOUT);
		sum->stopped++;
		sum->in_a_row++;
		EXPECT(ktap, sum->in_a_row < PVDT_FAULTY_STOPS);
	} else {
		sum->in_a_row = 0;
	}
}

/* Refused or cancelled: by the engine's reset after it did not finish it, or by the IOMMU's. */
static void pvdt_faulty_undone(struct ktap *ktap, struct pvdt_faulty *sum,
			       const struct pvdt_request *request)
{
	if (request->status != PVDT_STATUS_CANCELLED &&
	    EXPECT_EQ(ktap, request->status, PVDT_STATUS_FAULT))
		sum->refused++;
}

static void pvdt_faulty_look(struct ktap *ktap, struct pvdt_faulty *sum, struct pvdt_buffer *src,
			     struct pvdt_buffer *dst, const struct pvdt_request *request)
{
	size_t length = request->length;

	if (request->status == PVDT_STATUS_DONE) {
		sum->done++;
		EXPECT(ktap, !memcmp(dst->cpu + PAGE_SIZE, src->cpu, length));
	} else {
		pvdt_faulty_undone(ktap, sum, request);
	}
	EXPECT(ktap, pvdt_guarded(dst->cpu, PAGE_SIZE));
	EXPECT(ktap, pvdt_guarded(dst->cpu + PAGE_SIZE + length, dst->size - PAGE_SIZE - length));
}

static void pvdt_faulty_copy(struct ktap *ktap, struct pvdt *engine, struct pvdt_faulty *sum,
			     unsigned int round)
{
	struct pvdt_request request = { .op = PVDT_OP_COPY, .length = 1 + round * 977 % SZ_16K };
	struct pvdt_buffer src, dst;

	if (pvdt_buffer_map(engine, &src, request.length, DMA_TO_DEVICE)) {
		sum->unmapped++;
		return;
	}
	if (pvdt_buffer_map(engine, &dst, request.length + 2 * PAGE_SIZE, DMA_BIDIRECTIONAL)) {
		sum->unmapped++;
		goto out;
	}
	pvdt_scribble(src.cpu, request.length, round);
	pvdt_to_device(engine, &src);
	pvdt_to_device(engine, &dst);
	request.src = src.iova;
	request.dst = dst.iova + PAGE_SIZE;
	pvdt_faulty_run(ktap, engine, sum, &request);
	pvdt_to_cpu(engine, &dst);
	pvdt_faulty_look(ktap, sum, &src, &dst, &request);
	pvdt_buffer_unmap_and_keep(engine, &dst);
out:
	pvdt_buffer_unmap_and_keep(engine, &src);
}

static void pvdt_faulty_fill(struct ktap *ktap, struct pvdt *engine, struct pvdt_faulty *sum,
			     u8 *cpu, dma_addr_t iova, size_t size)
{
	struct pvdt_request request = {
		.op = PVDT_OP_FILL, .pattern = PVDT_PATTERN,
		.dst = iova + PAGE_SIZE, .length = size - 2 * PAGE_SIZE,
	};
	u64 pattern = PVDT_PATTERN;
	size_t i;

	pvdt_faulty_run(ktap, engine, sum, &request);
	dma_sync_single_for_cpu(pvdt_dev(engine), iova, size, DMA_BIDIRECTIONAL);
	if (request.status == PVDT_STATUS_DONE) {
		sum->done++;
		for (i = 0; i < request.length; i += sizeof(pattern))
			if (memcmp(cpu + PAGE_SIZE + i, &pattern, sizeof(pattern)))
				break;
		EXPECT_EQ(ktap, i, request.length);
	} else {
		pvdt_faulty_undone(ktap, sum, &request);
	}
	EXPECT(ktap, pvdt_guarded(cpu, PAGE_SIZE));
	EXPECT(ktap, pvdt_guarded(cpu + size - PAGE_SIZE, PAGE_SIZE));
}

static void pvdt_faulty_large(struct ktap *ktap, struct pvdt *engine, struct pvdt_faulty *sum)
{
	const size_t size = PAGE_SIZE << PVDT_FAULTY_ORDER;
	struct page *page = alloc_pages(GFP_KERNEL, PVDT_FAULTY_ORDER);
	unsigned int i;
	dma_addr_t iova;

	if (!EXPECT(ktap, page))
		return;
	/* each is freed by itself */
	split_page(page, PVDT_FAULTY_ORDER);
	memset(page_address(page), PVDT_GUARD_BYTE, size);
	iova = dma_map_page(pvdt_dev(engine), page, 0, size, DMA_BIDIRECTIONAL);
	if (dma_mapping_error(pvdt_dev(engine), iova)) {
		sum->unmapped++;
	} else {
		pvdt_faulty_fill(ktap, engine, sum, page_address(page), iova, size);
		dma_unmap_page(pvdt_dev(engine), iova, size, DMA_BIDIRECTIONAL);
	}
	for (i = 0; i < 1 << PVDT_FAULTY_ORDER; i++)
		pvdt_keep(engine, page + i);
}

static void pvdt_faulty_astray(struct ktap *ktap, struct pvdt *engine, struct pvdt_faulty *sum)
{
	struct pvdt_request request = {
		.op = PVDT_OP_FILL, .length = 64, .dst = PVDT_FAULTY_NOWHERE
	};

	pvdt_faulty_run(ktap, engine, sum, &request);
	if (request.status != PVDT_STATUS_CANCELLED)
		EXPECT_EQ(ktap, request.status, PVDT_STATUS_FAULT);
}

static void pvdt_test_faulty(struct ktap *ktap, void *subject, unsigned long rounds)
{
	struct pvdt_faulty sum = {};
	unsigned int i;

	for (i = 1; i <= rounds && sum.in_a_row < PVDT_FAULTY_STOPS; i++) {
		pvdt_faulty_copy(ktap, subject, &sum, i);
		if (i % PVDT_FAULTY_LARGE == 0)
			pvdt_faulty_large(ktap, subject, &sum);
		if (i % PVDT_FAULTY_ASTRAY == 0)
			pvdt_faulty_astray(ktap, subject, &sum);
		cond_resched();
	}
	EXPECT(ktap, pvdt_kept_guarded(subject));
	EXPECT(ktap, sum.done > 0);
	ktap_print(ktap, "# %u transfers done, %u refused, %u not finished, %u maps failed\n",
		   sum.done, sum.refused, sum.stopped, sum.unmapped);
}

const struct ktap_case pvdt_faulty_cases[] = {
	{ "DMA is right or refused, never wrong", pvdt_test_faulty, PVDT_FAULTY_ROUNDS },
};

const unsigned int pvdt_nr_faulty_cases = ARRAY_SIZE(pvdt_faulty_cases);

const struct ktap_case pvdt_glance_cases[] = {
	{ "DMA is right or refused, never wrong", pvdt_test_faulty, PVDT_GLANCE_ROUNDS },
};

const unsigned int pvdt_nr_glance_cases = ARRAY_SIZE(pvdt_glance_cases);
