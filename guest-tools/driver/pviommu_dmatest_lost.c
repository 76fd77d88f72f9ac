// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for an IOMMU that does not answer, for a while or for good: every call of the DMA API ends
 * in bounded time, after the first failure no map succeeds, and no memory changes.
 */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/ktime.h>

#include "pviommu_dmatest_buffer.h"

#define PVDT_LOST_PAGES		64
#define PVDT_LOST_LIMIT_MS	60000
#define PVDT_PAUSED_MS		8000
/* a trapped access ends after five seconds, a command after op_timeout_ms; twice that */
#define PVDT_LOST_CALL_MS	20000
#define PVDT_LOST_AFTER		100

/**
 * struct pvdt_calls - calls of the DMA API
 * @count: pages mapped
 * @longest_ms: duration of the longest call
 */
struct pvdt_calls {
	unsigned int count;
	s64 longest_ms;
};

static void pvdt_timed(struct pvdt_calls *calls, ktime_t begin)
{
	calls->longest_ms = max(calls->longest_ms, ktime_ms_delta(ktime_get(), begin));
}

static int pvdt_map_and_unmap(struct pvdt *engine, struct page *page, struct pvdt_calls *calls)
{
	ktime_t begin = ktime_get();
	dma_addr_t iova = dma_map_page(pvdt_dev(engine), page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
	int ret = dma_mapping_error(pvdt_dev(engine), iova);

	pvdt_timed(calls, begin);
	if (ret)
		return ret;
	begin = ktime_get();
	dma_unmap_page(pvdt_dev(engine), iova, PAGE_SIZE, DMA_BIDIRECTIONAL);
	pvdt_timed(calls, begin);
	calls->count++;
	return 0;
}

/* Maps and unmaps until an error or until the time is up. */
static int pvdt_map_for(struct pvdt *engine, struct page *page, unsigned int limit_ms,
			struct pvdt_calls *calls)
{
	ktime_t begin = ktime_get();
	int ret;

	do {
		ret = pvdt_map_and_unmap(engine, page, calls);
		cond_resched();
	} while (!ret && ktime_ms_delta(ktime_get(), begin) < limit_ms);
	return ret;
}

/* After the first error every map fails. */
static void pvdt_expect_given_up(struct ktap *ktap, struct pvdt *engine, struct page *page,
				 struct pvdt_calls *calls)
{
	unsigned int i;

	for (i = 0; i < PVDT_LOST_AFTER && !ktap->failed; i++)
		EXPECT_EQ(ktap, pvdt_map_and_unmap(engine, page, calls), -ENOMEM);
}

static void pvdt_lost(struct ktap *ktap, struct pvdt *engine, unsigned int limit_ms,
		      bool for_good)
{
	struct pvdt_calls calls = {};
	struct page *page;
	int ret;

	page = alloc_page(GFP_KERNEL);
	if (!EXPECT(ktap, page))
		return;
	memset(page_address(page), PVDT_GUARD_BYTE, PAGE_SIZE);
	ret = pvdt_map_for(engine, page, limit_ms, &calls);
	ktap_print(ktap, "# %u pages mapped, then error %d; longest call %lld ms\n", calls.count,
		   ret, calls.longest_ms);
	if (for_good || ret)
		pvdt_expect_given_up(ktap, engine, page, &calls);
	EXPECT(ktap, calls.longest_ms <= PVDT_LOST_CALL_MS);
	EXPECT(ktap, pvdt_guarded(page_address(page), PAGE_SIZE));
	__free_page(page);
}

static void pvdt_test_given_up(struct ktap *ktap, void *subject, unsigned long limit_ms)
{
	pvdt_lost(ktap, subject, limit_ms, true);
}

static void pvdt_test_paused(struct ktap *ktap, void *subject, unsigned long limit_ms)
{
	pvdt_lost(ktap, subject, limit_ms, false);
}

/* What was mapped before the error is unmapped. */
static void pvdt_test_scattered_map(struct ktap *ktap, void *subject, unsigned long pages)
{
	struct pvdt *engine = subject;
	struct pvdt_buffer buffer;
	int ret;

	ret = pvdt_buffer_map(engine, &buffer, pages * PAGE_SIZE, DMA_BIDIRECTIONAL);
	if (!EXPECT(ktap, ret < 0))
		pvdt_buffer_unmap(engine, &buffer);
}

static void pvdt_test_no_coherent(struct ktap *ktap, void *subject, unsigned long size)
{
	struct pvdt *engine = subject;
	dma_addr_t iova;
	void *cpu;

	cpu = dma_alloc_coherent(pvdt_dev(engine), size, &iova, GFP_KERNEL | __GFP_NOWARN);
	if (!EXPECT(ktap, !cpu))
		dma_free_coherent(pvdt_dev(engine), size, cpu, iova);
}

const struct ktap_case pvdt_lost_cases[] = {
	{ "maps end with an error and not with a hang", pvdt_test_given_up, PVDT_LOST_LIMIT_MS },
	{ "a scattered map ends with an error", pvdt_test_scattered_map, PVDT_LOST_PAGES },
	{ "no coherent memory is handed out", pvdt_test_no_coherent, PAGE_SIZE },
};

const unsigned int pvdt_nr_lost_cases = ARRAY_SIZE(pvdt_lost_cases);

const struct ktap_case pvdt_paused_cases[] = {
	{ "maps wait for the device or end with an error", pvdt_test_paused, PVDT_PAUSED_MS },
};

const unsigned int pvdt_nr_paused_cases = ARRAY_SIZE(pvdt_paused_cases);
