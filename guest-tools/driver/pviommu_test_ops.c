// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: results and counts of map, unmap, lookup, and unknown operations. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include "pviommu_test.h"

static void pvt_map_over_live_page(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 mapped;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 2, t->gfn + 9, 1, PVT_RW, &mapped), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 5, PVT_RW, &mapped), -EADDRINUSE);
	EXPECT_EQ(ktap, mapped, 2);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn, 2);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN + 2, t->gfn + 9, 1);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN + 3, 2);
}

static void pvt_prefix_works(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 mapped;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 2, t->gfn + 9, 1, PVT_RW, &mapped), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 5, PVT_RW, &mapped), -EADDRINUSE);
	if (!pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), 3 * PVT_PAGE_SIZE, 0x11))
		return;
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x11, 2 * PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(pvt_page(t, 2), PVT_GUARD, 7 * PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(pvt_page(t, 9), 0x11, PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(pvt_page(t, 10), PVT_GUARD, 6 * PVT_PAGE_SIZE));
}

static void pvt_map_same_again(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 mapped;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 3, PVT_RW, &mapped), 0);
	EXPECT_EQ(ktap, mapped, 3);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 3, PVT_RW, &mapped), -EADDRINUSE);
	EXPECT_EQ(ktap, mapped, 0);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn, 3);
}

static void pvt_unmap_to_hole(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 2, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 3, t->gfn + 3, 2, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN, 5, &done), -ENOENT);
	EXPECT_EQ(ktap, done, 2);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN, 3);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN + 3, t->gfn + 3, 2);
}

static void pvt_unmap_slices(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 4, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 4, t->gfn + 8, 4, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN + 1, 1, &done), 0);
	EXPECT_EQ(ktap, done, 1);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN + 3, 3, &done), 0);
	EXPECT_EQ(ktap, done, 3);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn, 1);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN + 1, 1);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN + 2, t->gfn + 2, 1);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN + 3, 3);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN + 6, t->gfn + 10, 2);
}

static void pvt_unmap_nothing(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 done;

	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN, 1, &done), -ENOENT);
	EXPECT_EQ(ktap, done, 0);
}

static void pvt_no_such_context(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	static const u16 refused[] = { PVIOMMU_DEFAULT_CONTEXT, PVT_NO_CONTEXT };
	unsigned int i;
	u32 done;
	u16 id;

	for (i = 0; i < ARRAY_SIZE(refused); i++) {
		id = refused[i];
		EXPECT_EQ(ktap, pvt_map(t, id, PVT_DFN, t->gfn, 1, PVT_RW, &done), -EINVAL);
		EXPECT_EQ(ktap, done, t->profile->untouched);
		EXPECT_EQ(ktap, pvt_unmap(t, id, PVT_DFN, 1, &done), -EINVAL);
		EXPECT_EQ(ktap, done, t->profile->untouched);
	}
}

static void pvt_zero_pages(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 0, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, done, 0);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN, 1);
}

static void pvt_bad_flags(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command command;
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, 0, &done), -EINVAL);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW | BIT(2), &done), -EINVAL);
	command = t->profile->map_command(ctx, PVT_DFN, t->gfn, 1, PVT_RW);
	command.op.bytes[PVIOMMU_PAYLOAD_SIZE - 1] = 1;
	EXPECT_EQ(ktap, pvt_submit(t, &command), -EINVAL);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN, 1);
}

static void pvt_past_aperture(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u64 last = pvt_last_dfn(t);
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, last + 1, t->gfn, 1, PVT_RW, &done), -ERANGE);
	EXPECT_EQ(ktap, pvt_map(t, ctx, last, t->gfn, 2, PVT_RW, &done), -ERANGE);
	EXPECT_EQ(ktap, pvt_map(t, ctx, U64_MAX, t->gfn, 2, PVT_RW, &done), -ERANGE);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, last + 1, 1, &done), -ERANGE);
	pvt_expect_nothing(ktap, t, ctx, last, 1);
	pvt_expect_nothing(ktap, t, ctx, 0, 1);
	EXPECT_EQ(ktap, pvt_map(t, ctx, last, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_mapped(ktap, t, ctx, last, t->gfn, 1);
}

static void pvt_not_ram(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 done;

	if (!EXPECT(ktap, t->caps->nr_ram > 0))
		return;
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, pvt_ram_end(t, 2), 4, PVT_RW, &done),
		  t->profile->not_ram);
	EXPECT_EQ(ktap, done, 2);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, pvt_ram_end(t, 2), 2);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN + 2, 2);
	/* a frame that is not memory is reported before an address that is mapped already */
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, pvt_ram_end(t, 0), 1, PVT_RW, &done),
		  t->profile->not_ram);
	EXPECT_EQ(ktap, done, 0);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, pvt_ram_end(t, 2), 2);
}

static void pvt_map_reserved(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u64 start = t->caps->reserved[0].range.start >> PVIOMMU_PAGE_SHIFT;
	u32 done;

	if (!EXPECT(ktap, t->caps->nr_reserved > 0))
		return;
	EXPECT_EQ(ktap, pvt_map(t, ctx, start, t->gfn, 1, PVT_RW, &done),
		  t->profile->reserved);
	EXPECT_EQ(ktap, done, 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, start - 1, t->gfn, 2, PVT_RW, &done),
		  t->profile->reserved);
	EXPECT_EQ(ktap, done, 1);
}

static void pvt_no_operation(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command other = { .slot.op_class = t->profile->other_class };
	struct pviommu_command unknown = t->profile->command(99);
	struct pviommu_command noop = t->profile->command(0);
	struct pviommu_command own = pvt_vendor(99, 0, 0);
	struct pviommu_command nowhere = { .slot.op_class = 77 };

	EXPECT_EQ(ktap, pvt_submit(t, &noop), 0);
	EXPECT_EQ(ktap, pvt_submit(t, &unknown), t->profile->unknown_operation);
	EXPECT_EQ(ktap, pvt_submit(t, &own), -EOPNOTSUPP);
	EXPECT_EQ(ktap, pvt_submit(t, &nowhere), -EINVAL);
	/* not even its noop: profiles are never mixed */
	EXPECT_EQ(ktap, pvt_submit(t, &other), -EINVAL);
}

const struct ktap_case pvt_op_cases[] = {
	PVT_CONTEXT("map over a live page keeps it and counts the prefix", pvt_map_over_live_page),
	PVT_ATTACHED("DMA reaches the prefix and the old target", pvt_prefix_works),
	PVT_CONTEXT("the same map again is EADDRINUSE with nothing mapped", pvt_map_same_again),
	PVT_CONTEXT("unmap stops at a hole and counts", pvt_unmap_to_hole),
	PVT_CONTEXT("unmap cuts maps and spans them", pvt_unmap_slices),
	PVT_CONTEXT("unmap of nothing is ENOENT", pvt_unmap_nothing),
	PVT_CONTEXT("context 0 and unallocated contexts cannot be edited", pvt_no_such_context),
	PVT_CONTEXT("map of 0 pages does nothing", pvt_zero_pages),
	PVT_CONTEXT("unusable flags and padding are EINVAL", pvt_bad_flags),
	PVT_CONTEXT("past the aperture is ERANGE and changes nothing", pvt_past_aperture),
	PVT_CONTEXT("a frame that is not memory ends the map behind the prefix", pvt_not_ram),
	PVT_CONTEXT("the reserved window cannot be mapped", pvt_map_reserved),
	PVT_CONTEXT("unknown and foreign operations are refused, noop is not", pvt_no_operation),
};

const unsigned int pvt_nr_op_cases = ARRAY_SIZE(pvt_op_cases);
