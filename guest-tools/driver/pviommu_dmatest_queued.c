// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMA that is queued when the IOMMU stops answering, to memory that is unmapped and used again
 * meanwhile. For a group with strict unmaps, and for a device that is stopped while the test runs:
 * an unmap that takes too long shows that it is stopped.
 */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "pviommu_dmatest_buffer.h"

/* The engine's first request takes a while: it is stopped in the middle of that. */
#define PVDT_QUEUED_LONG	100
#define PVDT_QUEUED_SIZE	SZ_4M
#define PVDT_QUEUED_PAGES	2
#define PVDT_QUEUED		(PVDT_QUEUED_LONG + PVDT_QUEUED_PAGES)
#define PVDT_QUEUED_LIMIT_MS	20000
/* no unmap takes this long while the device answers, and each does when it is given up */
#define PVDT_QUEUED_STOPPED_MS	700
#define PVDT_QUEUED_AFTER_MS	1000

/**
 * struct pvdt_queued - an engine that is kept busy
 * @engine: the engine
 * @buffer: what its long request reads
 * @page: pages that it writes to last
 * @iova: their device addresses
 * @requests: its queue
 * @rounds: how often all of the queue was carried out
 * @done: set when it was not
 */
struct pvdt_queued {
	struct pvdt *engine;
	struct pvdt_buffer buffer;
	struct page *page[PVDT_QUEUED_PAGES];
	dma_addr_t iova[PVDT_QUEUED_PAGES];
	struct pvdt_request requests[PVDT_QUEUED];
	unsigned int rounds;
	struct completion done;
};

static void pvdt_queued_fill(struct pvdt_queued *queued)
{
	struct pvdt_request *request = queued->requests;
	unsigned int i;

	memset(queued->requests, 0, sizeof(queued->requests));
	for (i = 0; i < PVDT_QUEUED_LONG; i++, request++) {
		request->op = PVDT_OP_CHECKSUM;
		request->length = PVDT_QUEUED_SIZE;
		request->src = queued->buffer.iova;
	}
	for (i = 0; i < PVDT_QUEUED_PAGES; i++, request++) {
		request->op = PVDT_OP_FILL;
		request->length = PAGE_SIZE;
		request->dst = queued->iova[i];
		request->pattern = PVDT_PATTERN;
	}
}

/* Whether the pages were written to; the reads before do not matter. */
static bool pvdt_queued_written(struct pvdt_queued *queued)
{
	unsigned int i;

	for (i = 0; i < PVDT_QUEUED_PAGES; i++)
		if (queued->requests[PVDT_QUEUED_LONG + i].status != PVDT_STATUS_DONE)
			return false;
	return true;
}

static int pvdt_queued_thread(void *data)
{
	struct pvdt_queued *queued = data;

	for (;;) {
		pvdt_queued_fill(queued);
		if (kthread_should_stop() ||
		    pvdt_run_many(queued->engine, queued->requests, PVDT_QUEUED, PVDT_POLL) ||
		    !pvdt_queued_written(queued))
			break;
		queued->rounds++;
	}
	complete(&queued->done);
	return 0;
}

/* Maps and unmaps a page until an unmap shows that the device does not answer. */
static bool pvdt_queued_until_stopped(struct pvdt_queued *queued)
{
	struct device *dev = pvdt_dev(queued->engine);
	struct page *page = alloc_page(GFP_KERNEL);
	ktime_t begin = ktime_get(), before;
	bool stopped = false;
	dma_addr_t iova;

	while (page && !stopped && ktime_ms_delta(ktime_get(), begin) < PVDT_QUEUED_LIMIT_MS) {
		iova = dma_map_page(dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
		if (dma_mapping_error(dev, iova))
			break;
		before = ktime_get();
		dma_unmap_page(dev, iova, PAGE_SIZE, DMA_BIDIRECTIONAL);
		stopped = ktime_ms_delta(ktime_get(), before) >= PVDT_QUEUED_STOPPED_MS;
		usleep_range(1000, 2000);
	}
	if (page)
		__free_page(page);
	return stopped;
}

static bool pvdt_queued_map(struct ktap *ktap, struct pvdt_queued *queued)
{
	struct device *dev = pvdt_dev(queued->engine);
	unsigned int i;

	for (i = 0; i < PVDT_QUEUED_PAGES; i++) {
		queued->page[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!EXPECT(ktap, queued->page[i]))
			return false;
		queued->iova[i] = dma_map_page(dev, queued->page[i], 0, PAGE_SIZE,
					       DMA_BIDIRECTIONAL);
		if (!EXPECT_EQ(ktap, dma_mapping_error(dev, queued->iova[i]), 0))
			return false;
	}
	return true;
}

/* Unmaps all, and at once writes to the pages, as their next owner would. */
static void pvdt_queued_unmap(struct pvdt_queued *queued)
{
	unsigned int i;

	for (i = 0; i < PVDT_QUEUED_PAGES; i++) {
		dma_unmap_page(pvdt_dev(queued->engine), queued->iova[i], PAGE_SIZE,
			       DMA_BIDIRECTIONAL);
		memset(page_address(queued->page[i]), PVDT_GUARD_BYTE, PAGE_SIZE);
	}
}

static void pvdt_queued_run(struct ktap *ktap, struct pvdt_queued *queued)
{
	struct task_struct *task;
	unsigned int i;
	bool stopped;

	task = kthread_create(pvdt_queued_thread, queued, "pviommu_dmatest-queued");
	if (!EXPECT(ktap, !IS_ERR(task)))
		return;
	get_task_struct(task);
	wake_up_process(task);
	stopped = EXPECT(ktap, pvdt_queued_until_stopped(queued));
	if (stopped) {
		pvdt_queued_unmap(queued);
		EXPECT(ktap, wait_for_completion_timeout(&queued->done,
							 msecs_to_jiffies(PVDT_QUEUED_LIMIT_MS)));
		msleep(PVDT_QUEUED_AFTER_MS);
	}
	kthread_stop(task);
	put_task_struct(task);
	for (i = 0; stopped && i < PVDT_QUEUED_PAGES; i++)
		EXPECT(ktap, pvdt_guarded(page_address(queued->page[i]), PAGE_SIZE));
	if (!stopped)
		pvdt_queued_unmap(queued);
	ktap_print(ktap, "# %u rounds before; status %u and %u of what was queued then\n",
		   queued->rounds, queued->requests[PVDT_QUEUED_LONG].status,
		   queued->requests[PVDT_QUEUED_LONG + 1].status);
}

static void pvdt_test_queued(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvdt_queued *queued = kzalloc(sizeof(*queued), GFP_KERNEL);
	unsigned int i;
	int ret;

	if (!EXPECT(ktap, queued))
		return;
	queued->engine = subject;
	init_completion(&queued->done);
	ret = pvdt_buffer_map(subject, &queued->buffer, PVDT_QUEUED_SIZE, DMA_TO_DEVICE);
	if (EXPECT_EQ(ktap, ret, 0)) {
		if (pvdt_queued_map(ktap, queued))
			pvdt_queued_run(ktap, queued);
		for (i = 0; i < PVDT_QUEUED_PAGES; i++)
			if (queued->page[i])
				__free_page(queued->page[i]);
		pvdt_buffer_unmap(subject, &queued->buffer);
	}
	kfree(queued);
}

const struct ktap_case pvdt_queued_cases[] = {
	{ "nothing that was queued is written to memory that is used again", pvdt_test_queued },
};

const unsigned int pvdt_nr_queued_cases = ARRAY_SIZE(pvdt_queued_cases);
