// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of DMA that comes too late: to an address that was unmapped. With strict unmaps it is
 * refused as soon as unmap has returned, with lazy ones when the flush queue has been flushed.
 */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/ktime.h>

#include "pviommu_abi.h"
#include "pviommu_dmatest_buffer.h"

#define PVDT_STRICT_ROUNDS	16
#define PVDT_LAZY_ROUNDS	16
#define PVDT_REUSE_ROUNDS	150
#define PVDT_HAMMER_ROUNDS	16
/*
 * A flush queue is flushed 10 ms after its first entry. The rest is for a busy machine: the test
 * shows that the time is bounded.
 */
#define PVDT_FLUSH_LIMIT_MS	2000
#define PVDT_LATE_PATTERN	0x1122334455667788ULL

/**
 * struct pvdt_page - a page for DMA in both directions
 * @page: the page
 * @cpu: its address for the CPU
 * @iova: its address for the device, while it is mapped
 */
struct pvdt_page {
	struct page *page;
	u8 *cpu;
	dma_addr_t iova;
};

static bool pvdt_page_map(struct ktap *ktap, struct pvdt *engine, struct pvdt_page *own, u8 byte)
{
	own->page = alloc_page(GFP_KERNEL);
	if (!EXPECT(ktap, own->page))
		return false;
	own->cpu = page_address(own->page);
	memset(own->cpu, byte, PAGE_SIZE);
	own->iova = dma_map_page(pvdt_dev(engine), own->page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
	if (EXPECT_EQ(ktap, dma_mapping_error(pvdt_dev(engine), own->iova), 0))
		return true;
	__free_page(own->page);
	return false;
}

static void pvdt_page_unmap(struct pvdt *engine, struct pvdt_page *own)
{
	dma_unmap_page(pvdt_dev(engine), own->iova, PAGE_SIZE, DMA_BIDIRECTIONAL);
}

static struct pvdt_request pvdt_write_to(dma_addr_t iova)
{
	return (struct pvdt_request) {
		.op = PVDT_OP_FILL, .length = PAGE_SIZE, .dst = iova, .pattern = PVDT_LATE_PATTERN,
	};
}

static struct pvdt_request pvdt_read_from(dma_addr_t iova)
{
	return (struct pvdt_request) {
		.op = PVDT_OP_CHECKSUM, .length = PAGE_SIZE, .src = iova,
	};
}

static void pvdt_expect_refused(struct ktap *ktap, struct pvdt *engine,
				struct pvdt_request request, dma_addr_t iova)
{
	if (!EXPECT_EQ(ktap, pvdt_run(engine, &request, PVDT_POLL), 0))
		return;
	EXPECT_EQ(ktap, request.status, PVDT_STATUS_FAULT);
	EXPECT_EQ(ktap, request.detail, iova);
	EXPECT_EQ(ktap, request.reason, PVIOMMU_EVENT_NOT_MAPPED);
}

static void pvdt_expect_written(struct ktap *ktap, struct pvdt *engine, struct pvdt_page *own)
{
	struct pvdt_request request = pvdt_write_to(own->iova);
	u64 want = PVDT_LATE_PATTERN;
	u8 *rest = own->cpu + sizeof(want);

	pvdt_expect_done(ktap, engine, &request, PVDT_POLL);
	EXPECT(ktap, !memcmp(own->cpu, &want, sizeof(want)));
	EXPECT(ktap, !memcmp(own->cpu, rest, PAGE_SIZE - sizeof(want)));
}

/* The first DMA after unmap has returned is refused already. */
static void pvdt_test_refused_at_once(struct ktap *ktap, void *subject, unsigned long rounds)
{
	struct pvdt *engine = subject;
	struct pvdt_page own;

	while (rounds-- && !ktap->failed) {
		if (!pvdt_page_map(ktap, engine, &own, 0))
			return;
		pvdt_expect_written(ktap, engine, &own);
		pvdt_page_unmap(engine, &own);
		memset(own.cpu, PVDT_GUARD_BYTE, PAGE_SIZE);
		if (rounds % 2)
			pvdt_expect_refused(ktap, engine, pvdt_write_to(own.iova), own.iova);
		else
			pvdt_expect_refused(ktap, engine, pvdt_read_from(own.iova), own.iova);
		EXPECT(ktap, pvdt_guarded(own.cpu, PAGE_SIZE));
		__free_page(own.page);
	}
}

/**
 * struct pvdt_hammer - a thread that makes an engine write to an address endlessly
 * @engine: the engine
 * @iova: where to
 * @written: requests that were carried out
 * @refused: requests that were refused
 * @failed: a request ended otherwise
 */
struct pvdt_hammer {
	struct pvdt *engine;
	dma_addr_t iova;
	unsigned long written;
	unsigned long refused;
	bool failed;
};

static int pvdt_hammer(void *data)
{
	struct pvdt_hammer *hammer = data;
	struct pvdt_request request;

	while (!kthread_should_stop()) {
		request = pvdt_write_to(READ_ONCE(hammer->iova));
		if (pvdt_run(hammer->engine, &request, PVDT_POLL))
			WRITE_ONCE(hammer->failed, true);
		else if (request.status == PVDT_STATUS_FAULT)
			WRITE_ONCE(hammer->refused, hammer->refused + 1);
		else
			WRITE_ONCE(hammer->written, hammer->written + 1);
		cond_resched();
	}
	return 0;
}

/* Waits until a count of the thread has grown by two: one request has begun after this call. */
static bool pvdt_hammer_goes_on(struct pvdt_hammer *hammer, unsigned long *count)
{
	unsigned long target = READ_ONCE(*count) + 2;
	ktime_t begin = ktime_get();

	while (READ_ONCE(*count) < target) {
		if (READ_ONCE(hammer->failed) ||
		    ktime_ms_delta(ktime_get(), begin) > PVDT_FLUSH_LIMIT_MS)
			return false;
		usleep_range(20, 100);
	}
	return true;
}

/* Unmaps while another thread makes the engine write: after unmap not one byte changes. */
static void pvdt_test_hammered(struct ktap *ktap, void *subject, unsigned long rounds)
{
	struct pvdt_hammer hammer = { .engine = subject };
	struct task_struct *task;
	struct pvdt_page own;

	while (rounds-- && !ktap->failed) {
		if (!pvdt_page_map(ktap, subject, &own, 0))
			return;
		hammer.iova = own.iova;
		task = kthread_run(pvdt_hammer, &hammer, "pviommu_dmatest-hammer");
		if (!EXPECT(ktap, !IS_ERR(task))) {
			pvdt_page_unmap(subject, &own);
			__free_page(own.page);
			return;
		}
		EXPECT(ktap, pvdt_hammer_goes_on(&hammer, &hammer.written));
		pvdt_page_unmap(subject, &own);
		memset(own.cpu, PVDT_GUARD_BYTE, PAGE_SIZE);
		EXPECT(ktap, pvdt_hammer_goes_on(&hammer, &hammer.refused));
		kthread_stop(task);
		EXPECT(ktap, pvdt_guarded(own.cpu, PAGE_SIZE));
		__free_page(own.page);
	}
	ktap_print(ktap, "# %lu writes before unmap, %lu refused after it\n", hammer.written,
		   hammer.refused);
}

/* Reads until a read is refused; returns microseconds, or -ETIME. */
static s64 pvdt_time_to_refusal(struct ktap *ktap, struct pvdt *engine, dma_addr_t iova)
{
	ktime_t begin = ktime_get();
	struct pvdt_request request;

	do {
		request = pvdt_read_from(iova);
		if (!EXPECT_EQ(ktap, pvdt_run(engine, &request, PVDT_POLL), 0))
			return -EIO;
		if (request.status == PVDT_STATUS_FAULT) {
			EXPECT_EQ(ktap, request.detail, iova);
			return ktime_us_delta(ktime_get(), begin);
		}
	} while (ktime_ms_delta(ktime_get(), begin) < PVDT_FLUSH_LIMIT_MS);
	return -ETIME;
}

/* DMA may succeed for a while, then never again. The page stays allocated meanwhile. */
static void pvdt_test_refused_in_time(struct ktap *ktap, void *subject, unsigned long rounds)
{
	struct pvdt *engine = subject;
	struct pvdt_page own;
	s64 took, longest = 0;

	while (rounds-- && !ktap->failed) {
		if (!pvdt_page_map(ktap, engine, &own, 0))
			return;
		pvdt_expect_written(ktap, engine, &own);
		pvdt_page_unmap(engine, &own);
		took = pvdt_time_to_refusal(ktap, engine, own.iova);
		EXPECT(ktap, took >= 0);
		longest = max(longest, took);
		memset(own.cpu, PVDT_GUARD_BYTE, PAGE_SIZE);
		pvdt_expect_refused(ktap, engine, pvdt_write_to(own.iova), own.iova);
		EXPECT(ktap, pvdt_guarded(own.cpu, PAGE_SIZE));
		__free_page(own.page);
	}
	ktap_print(ktap, "# refused after at most %lld us\n", longest);
}

/*
 * An address stays in the flush queue until no DMA can use its old translation. So when it is
 * allocated again, DMA reaches the new page, and never the old one.
 */
static void pvdt_test_reuse(struct ktap *ktap, void *subject, unsigned long rounds)
{
	struct pvdt_page own, last = {};
	struct pvdt *engine = subject;
	unsigned int again = 0;

	while (rounds-- && !ktap->failed) {
		if (!pvdt_page_map(ktap, engine, &own, 0))
			break;
		pvdt_expect_written(ktap, engine, &own);
		if (last.page) {
			again += last.iova == own.iova;
			EXPECT(ktap, pvdt_guarded(last.cpu, PAGE_SIZE));
			__free_page(last.page);
		}
		pvdt_page_unmap(engine, &own);
		memset(own.cpu, PVDT_GUARD_BYTE, PAGE_SIZE);
		last = own;
	}
	if (last.page)
		__free_page(last.page);
	ktap_print(ktap, "# %u addresses were handed out twice in a row\n", again);
}

const struct ktap_case pvdt_strict_cases[] = {
	{ "DMA after unmap is refused at once", pvdt_test_refused_at_once, PVDT_STRICT_ROUNDS },
	{ "nothing is written after unmap while the engine never stops writing",
	  pvdt_test_hammered, PVDT_HAMMER_ROUNDS },
	{ "an address that is handed out again leads to the new page only", pvdt_test_reuse,
	  PVDT_REUSE_ROUNDS },
};

const unsigned int pvdt_nr_strict_cases = ARRAY_SIZE(pvdt_strict_cases);

const struct ktap_case pvdt_lazy_cases[] = {
	{ "DMA after unmap is refused once the flush queue is flushed", pvdt_test_refused_in_time,
	  PVDT_LAZY_ROUNDS },
	{ "an address that is handed out again leads to the new page only", pvdt_test_reuse,
	  PVDT_REUSE_ROUNDS },
};

const unsigned int pvdt_nr_lazy_cases = ARRAY_SIZE(pvdt_lazy_cases);
