// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: the page pool, its exhaustion and its reserves. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include "pviommu_test.h"

#define PVT_TABLE_PAGES		512	/* pages below one table of the lowest level */
#define PVT_GIB_PAGES		(PVT_TABLE_PAGES * 512)
#define PVT_POOL_REST		4
#define PVT_SET_ASIDE		10

static int pvt_pool_left(struct pvt *t, u32 *left)
{
	struct pviommu_usage usage;
	int ret = pviommu_raw_ops.usage(t->pv, &usage);

	*left = usage.pool_total - usage.pool_used;
	return ret;
}

/* Maps in as few calls as max_nr_pages allows; @mapped counts all of them. */
static int pvt_map_many(struct pvt *t, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 *mapped)
{
	u32 chunk, done;
	int ret = 0;

	for (*mapped = 0; *mapped < nr_pages && !ret; *mapped += done) {
		chunk = min(nr_pages - *mapped, t->caps->max_nr_pages);
		ret = pvt_map(t, ctx, dfn + *mapped, gfn + *mapped, chunk, PVT_RW, &done);
	}
	return ret;
}

static int pvt_unmap_all(struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages)
{
	u32 chunk, done;
	int ret = 0;

	for (; nr_pages && !ret; nr_pages -= done, dfn += done) {
		chunk = min(nr_pages, t->caps->max_nr_pages);
		ret = pvt_unmap(t, ctx, dfn, chunk, &done);
	}
	return ret;
}

/*
 * Pages that are 2 MiB apart cost one table each. When few tables are left, one map across several
 * of them ends exactly where the tables do.
 */
static void pvt_pool_runs_out(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u64 gfn = pvt_ram_of(t, (PVT_POOL_REST + 1) * PVT_TABLE_PAGES);
	u32 done, left, tables;
	u64 dfn = PVT_GIB_PAGES;
	int ret;

	if (!EXPECT(ktap, gfn) || !EXPECT_EQ(ktap, pvt_pool_left(t, &left), 0))
		return;
	while (left > PVT_POOL_REST) {
		if (!EXPECT_EQ(ktap, pvt_map(t, ctx, dfn, t->gfn, 1, PVT_RW, &done), 0))
			return;
		/* the first page of a GiB costs the table above as well */
		left -= dfn % PVT_GIB_PAGES ? 1 : 2;
		dfn += PVT_TABLE_PAGES;
		if (pvt_iova(dfn) == SZ_2G + SZ_1G)	/* the GiB with the reserved window */
			dfn += PVT_GIB_PAGES;
	}
	EXPECT_EQ(ktap, pvt_pool_left(t, &tables), 0);
	EXPECT_EQ(ktap, tables, left);
	dfn = round_up(dfn, PVT_GIB_PAGES);
	tables = left - 1;
	ret = pvt_map_many(t, ctx, dfn, gfn, (tables + 1) * PVT_TABLE_PAGES, &done);
	EXPECT_EQ(ktap, ret, -ENOMEM);
	EXPECT_EQ(ktap, done, tables * PVT_TABLE_PAGES);
	pvt_expect_mapped(ktap, t, ctx, dfn + done - 1, gfn + done - 1, 1);
	pvt_expect_nothing(ktap, t, ctx, dfn + done, 1);
	EXPECT_EQ(ktap, pvt_unmap_all(t, ctx, dfn, done), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, dfn, gfn, 1, PVT_RW, &done), 0);
}

static int pvt_reserve(struct pvt *t, u16 ctx, u32 pages)
{
	struct pviommu_command command = {
		.slot.op_class = PVIOMMU_CLASS_VENDOR, .slot.op = PVIOMMU_VENDOR_OP_RESERVE,
		.op.reserve = { .ctx_no = cpu_to_le16(ctx), .pages = cpu_to_le32(pages) },
	};

	return pvt_submit(t, &command);
}

static bool pvt_expect_left(struct ktap *ktap, struct pvt *t, u32 want)
{
	u32 left;

	return EXPECT_EQ(ktap, pvt_pool_left(t, &left), 0) && EXPECT_EQ(ktap, left, want);
}

/* The root of the context counts among the pages, so one of them is not new. */
static void pvt_reserve_sets_aside(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 left, done;

	if (!EXPECT_EQ(ktap, pvt_pool_left(t, &left), 0))
		return;
	EXPECT_EQ(ktap, pvt_reserve(t, ctx, PVT_SET_ASIDE), 0);
	pvt_expect_left(ktap, t, left - (PVT_SET_ASIDE - 1));
	/* two tables, which were reserved before */
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_left(ktap, t, left - (PVT_SET_ASIDE - 1));
	EXPECT_EQ(ktap, pvt_reserve(t, ctx, 0), 0);
	pvt_expect_left(ktap, t, left - 2);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN, 1, &done), 0);
	pvt_expect_left(ktap, t, left);
}

/* A context with a reserve can map although no other context can. */
static void pvt_reserve_holds(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 left, done;
	u16 other = 0;

	if (!EXPECT_EQ(ktap, pvt_alloc(t, 0, &other), 0))
		return;
	if (!EXPECT_EQ(ktap, pvt_pool_left(t, &left), 0))
		goto out;
	EXPECT_EQ(ktap, pvt_reserve(t, ctx, left + 2), -ENOMEM);
	pvt_expect_left(ktap, t, left);
	EXPECT_EQ(ktap, pvt_reserve(t, ctx, left + 1), 0);
	pvt_expect_left(ktap, t, 0);
	EXPECT_EQ(ktap, pvt_map(t, other, PVT_DFN, t->gfn, 1, PVT_RW, &done), -ENOMEM);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn, 1);
	EXPECT_EQ(ktap, pvt_reserve(t, ctx, 0), 0);
	EXPECT_EQ(ktap, pvt_map(t, other, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_unmap(t, other, PVT_DFN, 1, &done), 0);
out:
	EXPECT_EQ(ktap, pvt_free(t, other, 0), 0);
}

static void pvt_reserve_ends(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u16 other = 0;
	u32 left;

	if (!EXPECT_EQ(ktap, pvt_pool_left(t, &left), 0) ||
	    !EXPECT_EQ(ktap, pvt_alloc(t, 0, &other), 0))
		return;
	EXPECT_EQ(ktap, pvt_reserve(t, other, PVT_SET_ASIDE), 0);
	pvt_expect_left(ktap, t, left - PVT_SET_ASIDE);
	EXPECT_EQ(ktap, pvt_free(t, other, 0), 0);
	pvt_expect_left(ktap, t, left);
}

static void pvt_reserve_refused(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command padded = {
		.slot.op_class = PVIOMMU_CLASS_VENDOR, .slot.op = PVIOMMU_VENDOR_OP_RESERVE,
		.op.reserve = { .ctx_no = cpu_to_le16(ctx), .pad0 = cpu_to_le16(1) },
	};
	u32 left;

	if (!EXPECT_EQ(ktap, pvt_pool_left(t, &left), 0))
		return;
	EXPECT_EQ(ktap, pvt_reserve(t, PVIOMMU_DEFAULT_CONTEXT, 2), -EINVAL);
	EXPECT_EQ(ktap, pvt_reserve(t, PVT_NO_CONTEXT, 2), -EINVAL);
	EXPECT_EQ(ktap, pvt_submit(t, &padded), -EINVAL);
	EXPECT_EQ(ktap, pvt_reserve(t, ctx, U32_MAX), -ENOMEM);
	pvt_expect_left(ktap, t, left);
}

const struct ktap_case pvt_pool_cases[] = {
	PVT_CONTEXT("the pool runs out with ENOMEM behind the exact prefix", pvt_pool_runs_out),
	PVT_CONTEXT("reserve sets pool pages aside and gives them back", pvt_reserve_sets_aside),
	PVT_CONTEXT("a context maps from its reserve when the pool is out", pvt_reserve_holds),
	PVT_CONTEXT("the reserve of a context ends with it", pvt_reserve_ends),
	PVT_CONTEXT("reserve without context, with padding or beyond the pool is refused",
		    pvt_reserve_refused),
};

const unsigned int pvt_nr_pool_cases = ARRAY_SIZE(pvt_pool_cases);
