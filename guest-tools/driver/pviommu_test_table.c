// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the driver's own table of a domain: random histories, compared with a plain array. The
 * source under test is included in this file. The seed is the same in each run.
 */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/prandom.h>

#include "pviommu_test.h"

/* allocations that still succeed; below 0: all */
static int pvt_table_left = -1;

static unsigned long pvt_table_new_page(gfp_t gfp)
{
	if (!pvt_table_left)
		return 0;
	if (pvt_table_left > 0)
		pvt_table_left--;
	return get_zeroed_page(gfp);
}

#undef pr_fmt
#undef get_zeroed_page
#define get_zeroed_page(gfp)	pvt_table_new_page(gfp)
#include "pviommu_table.c"

#define PVT_TABLE_BITS		39
#define PVT_TABLE_END		BIT_ULL(PVT_TABLE_BITS - PVIOMMU_PAGE_SHIFT)
/* the lowest tables that a history uses; they are below two of the next level */
#define PVT_TABLE_BLOCKS	3
#define PVT_TABLE_SPAN		(PVT_TABLE_BLOCKS * PVIOMMU_TABLE_ENTRIES)
#define PVT_TABLE_FIRST \
	((PVIOMMU_TABLE_ENTRIES - 1) * PVIOMMU_TABLE_ENTRIES)
#define PVT_TABLE_STEPS		400

/**
 * struct pvt_history - a table, what it must hold, and where the next step is
 * @table: the table
 * @pages: counts its pages
 * @random: state of the generator
 * @first: first page of the next step, counted from PVT_TABLE_FIRST
 * @nr_pages: how many
 * @value: kind and frame for the first of them
 * @want: what each page must have
 */
struct pvt_history {
	struct pviommu_table table;
	atomic_t pages;
	struct rnd_state random;
	u64 first;
	u64 nr_pages;
	u64 value;
	u64 want[PVT_TABLE_SPAN];
};

static u32 pvt_random(struct pvt_history *h, u32 below)
{
	return prandom_u32_state(&h->random) % below;
}

/* One time in three exactly one lowest table, which becomes a run. */
static void pvt_table_choose(struct pvt_history *h)
{
	if (!pvt_random(h, 3)) {
		h->first = pvt_random(h, PVT_TABLE_BLOCKS) * PVIOMMU_TABLE_ENTRIES;
		h->nr_pages = PVIOMMU_TABLE_ENTRIES;
	} else {
		h->first = pvt_random(h, PVT_TABLE_SPAN);
		h->nr_pages = 1 + pvt_random(h, PVT_TABLE_SPAN - h->first);
		if (pvt_random(h, 2))
			h->nr_pages = min(h->nr_pages, 1ULL + pvt_random(h, 8));
	}
	h->value = pvt_random(h, 2) ? PVIOMMU_ENTRY_MAPPED : PVIOMMU_ENTRY_CLAIMED;
	h->value |= pvt_random(h, U32_MAX);
}

static void pvt_table_want(struct pvt_history *h, bool there)
{
	u64 i;

	for (i = 0; i < h->nr_pages; i++)
		h->want[h->first + i] = there ? h->value + i : 0;
}

static bool pvt_table_is_free(struct pvt_history *h)
{
	u64 i;

	for (i = 0; i < h->nr_pages; i++)
		if (h->want[h->first + i])
			return false;
	return true;
}

static u64 pvt_table_dfn(struct pvt_history *h)
{
	return PVT_TABLE_FIRST + h->first;
}

/* One time in four an allocation fails, if a table has to be allocated. */
static bool pvt_table_step_fill(struct ktap *ktap, struct pvt_history *h)
{
	int tables = atomic_read(&h->table.nr), ret;

	pvt_table_left = pvt_random(h, 4) ? -1 : 0;
	ret = pviommu_table_fill(&h->table, pvt_table_dfn(h), h->nr_pages, h->value, GFP_KERNEL);
	if (!pvt_table_left && !EXPECT_EQ(ktap, atomic_read(&h->table.nr), tables))
		return false;
	if (ret == -ENOMEM)
		return EXPECT(ktap, !pvt_table_left);
	if (!EXPECT_EQ(ktap, ret, pvt_table_is_free(h) ? 0 : -EAGAIN))
		return false;
	if (!ret)
		pvt_table_want(h, true);
	return true;
}

static bool pvt_table_step_set(struct ktap *ktap, struct pvt_history *h, bool there)
{
	u64 dfn = pvt_table_dfn(h);

	pvt_table_left = -1;
	if (!EXPECT_EQ(ktap, pviommu_table_prepare(&h->table, dfn, h->nr_pages, GFP_KERNEL), 0))
		return false;
	if (there)
		pviommu_table_set(&h->table, dfn, h->nr_pages, h->value);
	else
		pviommu_table_clear(&h->table, dfn, h->nr_pages);
	pvt_table_want(h, there);
	return true;
}

static bool pvt_table_step_clear_run(struct ktap *ktap, struct pvt_history *h)
{
	u64 kind = h->want[h->first] & PVIOMMU_ENTRY_KIND, run = 0, got;

	while (kind && run < h->nr_pages && h->want[h->first + run] & kind)
		h->want[h->first + run++] = 0;
	if (!EXPECT_EQ(ktap, pviommu_table_clear_run(&h->table, pvt_table_dfn(h), h->nr_pages,
						     &got), run))
		return false;
	return EXPECT_EQ(ktap, got, kind);
}

static bool pvt_table_step(struct ktap *ktap, struct pvt_history *h)
{
	pvt_table_choose(h);
	switch (pvt_random(h, 5)) {
	case 0:
		return pvt_table_step_set(ktap, h, true);
	case 1:
		return pvt_table_step_set(ktap, h, false);
	case 2:
		return pvt_table_step_fill(ktap, h);
	default:
		return pvt_table_step_clear_run(ktap, h);
	}
}

/* Whether each page leads where it must, and the pages beside it lead nowhere. */
static bool pvt_table_shows(struct ktap *ktap, struct pvt_history *h)
{
	u64 i, gfn;

	for (i = 0; i < PVT_TABLE_SPAN; i++) {
		if (EXPECT_EQ(ktap, pviommu_table_lookup(&h->table, PVT_TABLE_FIRST + i, &gfn),
			      h->want[i] != 0) &&
		    EXPECT_EQ(ktap, gfn, h->want[i] & ~PVIOMMU_ENTRY_KIND))
			continue;
		ktap_print(ktap, "# that was page %llu\n", i);
		return false;
	}
	return EXPECT(ktap, !pviommu_table_lookup(&h->table, PVT_TABLE_FIRST - 1, &gfn)) &&
	       EXPECT(ktap, !pviommu_table_lookup(&h->table, PVT_TABLE_FIRST + i, &gfn)) &&
	       EXPECT(ktap, !pviommu_table_lookup(&h->table, PVT_TABLE_END, &gfn)) &&
	       EXPECT_EQ(ktap, atomic_read(&h->pages), atomic_read(&h->table.nr));
}

static void pvt_table_history(struct ktap *ktap, void *subject, unsigned long seed)
{
	struct pvt_history *h = kvzalloc(sizeof(*h), GFP_KERNEL);
	unsigned int step;

	if (!EXPECT(ktap, h))
		return;
	prandom_seed_state(&h->random, seed);
	pvt_table_left = -1;
	if (!EXPECT_EQ(ktap, pviommu_table_init(&h->table, PVT_TABLE_BITS, &h->pages), 0))
		goto out;
	for (step = 0; step < PVT_TABLE_STEPS; step++) {
		if (!pvt_table_step(ktap, h) || !pvt_table_shows(ktap, h)) {
			ktap_print(ktap, "# in step %u: %llu pages from %llu\n", step, h->nr_pages,
				   h->first);
			break;
		}
		cond_resched();
	}
	pviommu_table_free(&h->table);
	EXPECT_EQ(ktap, atomic_read(&h->pages), 0);
out:
	kvfree(h);
}

static void pvt_table_refuses(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvt_history *h = kvzalloc(sizeof(*h), GFP_KERNEL);
	u64 value = PVIOMMU_ENTRY_MAPPED | 1;

	if (!EXPECT(ktap, h))
		return;
	pvt_table_left = 0;
	EXPECT_EQ(ktap, pviommu_table_init(&h->table, PVT_TABLE_BITS, &h->pages), -ENOMEM);
	pvt_table_left = -1;
	if (!EXPECT_EQ(ktap, pviommu_table_init(&h->table, PVT_TABLE_BITS, &h->pages), 0))
		goto out;
	EXPECT_EQ(ktap, pviommu_table_fill(&h->table, PVT_TABLE_END, 1, value, GFP_KERNEL),
		  -ERANGE);
	EXPECT_EQ(ktap, pviommu_table_fill(&h->table, PVT_TABLE_END - 1, 2, value, GFP_KERNEL),
		  -ERANGE);
	EXPECT_EQ(ktap, pviommu_table_fill(&h->table, 5, 0, value, GFP_KERNEL), -ERANGE);
	EXPECT_EQ(ktap, pviommu_table_prepare(&h->table, 1, U64_MAX, GFP_KERNEL), -ERANGE);
	EXPECT_EQ(ktap, atomic_read(&h->table.nr), 1);
	/* one page of two that are needed */
	pvt_table_left = 1;
	EXPECT_EQ(ktap, pviommu_table_fill(&h->table, 0, 1, value, GFP_KERNEL), -ENOMEM);
	EXPECT_EQ(ktap, atomic_read(&h->table.nr), 2);
	EXPECT_EQ(ktap, pviommu_table_clear_run(&h->table, 0, 1, &value), 0);
	pviommu_table_free(&h->table);
	EXPECT_EQ(ktap, atomic_read(&h->pages), 0);
out:
	kvfree(h);
}

const struct ktap_case pvt_table_cases[] = {
	{ "the driver's table is what an array of its pages is, seed 1", pvt_table_history, 1 },
	{ "the driver's table is what an array of its pages is, seed 2", pvt_table_history, 2 },
	{ "the driver's table is what an array of its pages is, seed 3", pvt_table_history, 3 },
	{ "the driver's table refuses what it cannot hold", pvt_table_refuses },
};

const unsigned int pvt_nr_table_cases = ARRAY_SIZE(pvt_table_cases);
