// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of domains through the IOMMU core with an engine attached: what it reaches through maps of
 * each size, and what it does not reach any more. They are the same for both kinds of domain.
 */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/ktime.h>

#include "pviommu_test.h"

/* a multiple of 1 GiB, with nothing reserved for a long way */
#define PVT_ATTACHED_IOVA	(8ULL * SZ_1G)
#define PVT_LARGE_PAGES		(SZ_2M / PVT_PAGE_SIZE)
#define PVT_HAMMER_ROUNDS	200
#define PVT_HAMMER_REQUESTS	4
#define PVT_HAMMER_LIMIT_MS	5000
#define PVT_HAMMER_LENGTH	(PVT_PAGES * PVT_PAGE_SIZE)

/* The engine is in the domain meanwhile, and in its group's own one afterwards. */
static void pvt_with_attached(struct ktap *ktap, void *subject, unsigned long body)
{
	struct pvt *t = subject;
	struct iommu_domain *domain;

	memset(t->memory, PVT_GUARD, PVT_PAGES * PVT_PAGE_SIZE);
	domain = iommu_paging_domain_alloc(pvt_dev(t));
	if (!EXPECT(ktap, !IS_ERR_OR_NULL(domain)))
		return;
	if (EXPECT_EQ(ktap, iommu_attach_device(domain, pvt_dev(t)), 0)) {
		((pvt_domain_body)body)(ktap, t, domain);
		iommu_detach_device(domain, pvt_dev(t));
	}
	iommu_domain_free(domain);
}

static u64 pvt_refusals(struct ktap *ktap, struct pvt *t, u64 iova, bool write)
{
	struct pvdt_request request = write ? pvt_fill(iova, 8, 0x33) : pvt_read(iova, 8);

	if (!EXPECT_EQ(ktap, pvdt_client_ops.run(t->engine[0], &request, PVDT_POLL), 0))
		return 0;
	if (request.status != PVDT_STATUS_FAULT)
		return 0;
	EXPECT_EQ(ktap, request.reason, PVIOMMU_EVENT_NOT_MAPPED);
	EXPECT_EQ(ktap, request.detail, iova);
	return 1;
}

/* Only these of the pages of a large leaf are mapped still. */
static void pvt_expect_rest(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain,
			    u8 *memory, unsigned int gone)
{
	unsigned int around[] = { 0, gone - 1, gone, gone + 1, PVT_LARGE_PAGES - 1 }, i;
	u64 iova;

	for (i = 0; i < ARRAY_SIZE(around); i++) {
		iova = PVT_ATTACHED_IOVA + around[i] * PVT_PAGE_SIZE;
		if (around[i] == gone) {
			EXPECT_EQ(ktap, pvt_refusals(ktap, t, iova, true), 1);
			EXPECT_EQ(ktap, iommu_iova_to_phys(domain, iova), 0);
			continue;
		}
		EXPECT_EQ(ktap, iommu_iova_to_phys(domain, iova),
			  virt_to_phys(memory) + around[i] * PVT_PAGE_SIZE);
		pvt_expect_fill(ktap, t, 0, iova, PVT_PAGE_SIZE, 0x40 + i);
		EXPECT(ktap, pvt_holds(memory + around[i] * PVT_PAGE_SIZE, 0x40 + i,
				       PVT_PAGE_SIZE));
	}
	EXPECT(ktap, pvt_holds(memory + gone * PVT_PAGE_SIZE, PVT_GUARD, PVT_PAGE_SIZE));
}

/* A part of a large leaf goes, then all the rest, and then a large one comes in its place. */
static void pvt_attached_split(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	const unsigned int gone = 77;
	struct pviommu_usage before, after;
	struct page *pages;
	u64 iova = PVT_ATTACHED_IOVA;
	u8 *memory;

	pages = alloc_pages(GFP_KERNEL, get_order(SZ_2M));
	if (!EXPECT(ktap, pages))
		return;
	memory = page_address(pages);
	memset(memory, PVT_GUARD, SZ_2M);
	EXPECT_EQ(ktap, iommu_map(domain, iova, page_to_phys(pages), SZ_2M, PVT_DOMAIN_RW,
				  GFP_KERNEL), 0);
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &before), 0);
	EXPECT_EQ(ktap, iommu_unmap(domain, iova + gone * PVT_PAGE_SIZE, PVT_PAGE_SIZE),
		  PVT_PAGE_SIZE);
	pvt_expect_rest(ktap, t, domain, memory, gone);
	/* a map over what is left changes nothing */
	EXPECT(ktap, iommu_map(domain, iova, page_to_phys(pages), SZ_2M, PVT_DOMAIN_RW,
			       GFP_KERNEL) < 0);
	pvt_expect_translates(ktap, domain, iova >> PVIOMMU_PAGE_SHIFT,
			      page_to_phys(pages) >> PVIOMMU_PAGE_SHIFT, gone);
	EXPECT_EQ(ktap, iommu_unmap(domain, iova, SZ_2M), gone * PVT_PAGE_SIZE);
	EXPECT_EQ(ktap, iommu_unmap(domain, iova + (gone + 1) * PVT_PAGE_SIZE,
				    SZ_2M - (gone + 1) * PVT_PAGE_SIZE),
		  SZ_2M - (gone + 1) * PVT_PAGE_SIZE);
	EXPECT_EQ(ktap, pvt_refusals(ktap, t, iova, false), 1);
	EXPECT_EQ(ktap, iommu_map(domain, iova, page_to_phys(pages), SZ_2M, PVT_DOMAIN_RW,
				  GFP_KERNEL), 0);
	pvt_expect_fill(ktap, t, 0, iova, SZ_2M, 0x51);
	EXPECT(ktap, pvt_holds(memory, 0x51, SZ_2M));
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &after), 0);
	EXPECT_EQ(ktap, after.table_pages, before.table_pages);
	EXPECT_EQ(ktap, iommu_unmap(domain, iova, SZ_2M), SZ_2M);
	__free_pages(pages, get_order(SZ_2M));
}

/*
 * The whole GiB around the pages of the tests, of which only these are written to. A kernel that
 * looks whether pages are mapped when they are allocated would complain of each page of this GiB
 * that anybody allocates meanwhile.
 */
#ifndef CONFIG_IOMMU_DEBUG_PAGEALLOC
static void pvt_attached_huge(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	u64 paddr = pvt_iova(t->gfn), start = round_down(paddr, SZ_1G), iova = PVT_ATTACHED_IOVA;
	const size_t size = PVT_PAGES * PVT_PAGE_SIZE;
	u64 at = iova + paddr - start;

	if (!EXPECT_EQ(ktap, iommu_map(domain, iova, start, SZ_1G, PVT_DOMAIN_RW, GFP_KERNEL), 0))
		return;
	pvt_expect_fill(ktap, t, 0, at, size, 0x61);
	EXPECT(ktap, pvt_holds(t->memory, 0x61, size));
	EXPECT_EQ(ktap, iommu_iova_to_phys(domain, iova + SZ_1G - 1), start + SZ_1G - 1);
	EXPECT_EQ(ktap, pvt_refusals(ktap, t, iova + SZ_1G, false), 1);
	/* the pages of the tests go, by themselves */
	EXPECT_EQ(ktap, iommu_unmap(domain, at, size), size);
	EXPECT_EQ(ktap, pvt_refusals(ktap, t, at, true), 1);
	EXPECT_EQ(ktap, pvt_refusals(ktap, t, at + size - PVT_PAGE_SIZE, true), 1);
	EXPECT(ktap, pvt_holds(t->memory, 0x61, size));
	EXPECT_EQ(ktap, iommu_iova_to_phys(domain, at - 1), paddr - 1);
	if (at > iova)
		EXPECT_EQ(ktap, iommu_unmap(domain, iova, at - iova), at - iova);
	at += size;
	EXPECT_EQ(ktap, iommu_unmap(domain, at, iova + SZ_1G - at), iova + SZ_1G - at);
	EXPECT_EQ(ktap, pvt_refusals(ktap, t, iova, false), 1);
}
#endif

/**
 * struct pvt_hammer - a thread that has an engine write to the same pages all the time
 * @t: what the tests work on
 * @written: requests that were carried out
 * @refused: requests that were refused
 * @failed: a request ended otherwise
 */
struct pvt_hammer {
	struct pvt *t;
	unsigned long written;
	unsigned long refused;
	bool failed;
};

static int pvt_hammer(void *data)
{
	struct pvdt_request requests[PVT_HAMMER_REQUESTS];
	struct pvt_hammer *hammer = data;
	unsigned int i;

	while (!kthread_should_stop()) {
		for (i = 0; i < PVT_HAMMER_REQUESTS; i++)
			requests[i] = pvt_fill(PVT_ATTACHED_IOVA, PVT_HAMMER_LENGTH, 0x71);
		if (pvdt_client_ops.run_many(hammer->t->engine[0], requests, PVT_HAMMER_REQUESTS,
					     PVDT_POLL))
			WRITE_ONCE(hammer->failed, true);
		for (i = 0; i < PVT_HAMMER_REQUESTS; i++) {
			if (requests[i].status == PVDT_STATUS_DONE)
				WRITE_ONCE(hammer->written, hammer->written + 1);
			else if (requests[i].status == PVDT_STATUS_FAULT)
				WRITE_ONCE(hammer->refused, hammer->refused + 1);
			else
				WRITE_ONCE(hammer->failed, true);
		}
		cond_resched();
	}
	return 0;
}

/* Waits until a count of the thread grows: now and then, since a busy host may not be so quick. */
static bool pvt_hammer_grows(const unsigned long *count)
{
	unsigned long before = READ_ONCE(*count);
	ktime_t begin = ktime_get();

	while (READ_ONCE(*count) == before) {
		if (ktime_ms_delta(ktime_get(), begin) > PVT_HAMMER_LIMIT_MS)
			return false;
		usleep_range(20, 100);
	}
	return true;
}

/* Once unmap has returned no byte is written, however often, and wherever a write is by then. */
static void pvt_hammered(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain,
			 struct pvt_hammer *hammer)
{
	unsigned int round;

	for (round = 0; round < PVT_HAMMER_ROUNDS && !ktap->failed; round++) {
		EXPECT_EQ(ktap, iommu_map(domain, PVT_ATTACHED_IOVA, pvt_iova(t->gfn),
					  PVT_HAMMER_LENGTH, PVT_DOMAIN_RW, GFP_KERNEL), 0);
		if (round % 8 == 0)
			EXPECT(ktap, pvt_hammer_grows(&hammer->written));
		udelay(round % 64);
		EXPECT_EQ(ktap, iommu_unmap(domain, PVT_ATTACHED_IOVA, PVT_HAMMER_LENGTH),
			  PVT_HAMMER_LENGTH);
		memset(t->memory, PVT_GUARD, PVT_HAMMER_LENGTH);
		if (round % 8 == 4)
			EXPECT(ktap, pvt_hammer_grows(&hammer->refused));
		udelay(round % 16);
		EXPECT(ktap, pvt_unchanged(t));
	}
}

static void pvt_attached_hammered(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	struct pvt_hammer hammer = { .t = t };
	struct task_struct *task;

	task = kthread_run(pvt_hammer, &hammer, "pviommu_test-hammer");
	if (!EXPECT(ktap, !IS_ERR(task)))
		return;
	pvt_hammered(ktap, t, domain, &hammer);
	kthread_stop(task);
	EXPECT(ktap, !hammer.failed);
	ktap_print(ktap, "# %u unmaps: %lu writes were done, %lu refused\n", PVT_HAMMER_ROUNDS,
		   hammer.written, hammer.refused);
}

#define PVT_WITH_ATTACHED(name, body)	{ name, pvt_with_attached, (unsigned long)(body) }

const struct ktap_case pvt_attached_cases[] = {
	PVT_WITH_ATTACHED("a part of a map of 2 MiB goes, the rest stays, and 2 MiB come again",
			  pvt_attached_split),
#ifndef CONFIG_IOMMU_DEBUG_PAGEALLOC
	PVT_WITH_ATTACHED("a part of a map of 1 GiB goes, and the rest stays", pvt_attached_huge),
#endif
	PVT_WITH_ATTACHED("no byte is written after unmap while an engine never stops writing",
			  pvt_attached_hammered),
};

const unsigned int pvt_nr_attached_cases = ARRAY_SIZE(pvt_attached_cases);
