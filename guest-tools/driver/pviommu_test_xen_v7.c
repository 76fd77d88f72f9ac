// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: the encoding of profile xen-v7. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include "pviommu_test.h"

#define PVT_PROBE	0x5c
#define PVT_PROBE_SIZE	8

/* tests of both profiles use the flags of the other one, which are the same */
static_assert(PVIOMMU_V7_ALLOC_IDENTITY == PVIOMMU_CREATE_CLONE);
static_assert(PVIOMMU_V7_FREE_REATTACH_DEFAULT == PVIOMMU_FREE_REATTACH_DEFAULT);
static_assert(PVIOMMU_V7_MAP_READABLE == PVIOMMU_MAP_READABLE);
static_assert(PVIOMMU_V7_MAP_WRITEABLE == PVIOMMU_MAP_WRITEABLE);

static struct pviommu_command pvt_v7_command(u8 op)
{
	struct pviommu_command command = { .slot.op_class = PVIOMMU_CLASS_XEN_V7, .slot.op = op };

	return command;
}

static struct pviommu_command pvt_v7_map_command(u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags)
{
	struct pviommu_command command = pvt_v7_command(PVIOMMU_V7_MAP_PAGES);

	command.op.v7_map.ctx_no = cpu_to_le16(ctx);
	command.op.v7_map.gfn = cpu_to_le64(gfn);
	command.op.v7_map.dfn = cpu_to_le64(dfn);
	command.op.v7_map.map_flags = cpu_to_le32(flags);
	command.op.v7_map.pgsize = cpu_to_le32(BIT(PVIOMMU_PAGE_SHIFT));
	command.op.v7_map.nr_pages = cpu_to_le32(nr_pages);
	return command;
}

static struct pviommu_command pvt_v7_unmap_command(u16 ctx, u64 dfn, u32 nr_pages)
{
	struct pviommu_command command = pvt_v7_command(PVIOMMU_V7_UNMAP_PAGES);

	command.op.v7_unmap.ctx_no = cpu_to_le16(ctx);
	command.op.v7_unmap.dfn = cpu_to_le64(dfn);
	command.op.v7_unmap.pgsize = cpu_to_le32(BIT(PVIOMMU_PAGE_SHIFT));
	command.op.v7_unmap.nr_pages = cpu_to_le32(nr_pages);
	return command;
}

static u32 pvt_v7_mapped(const struct pviommu_command *command)
{
	return le32_to_cpu(command->op.v7_map.mapped);
}

static int pvt_v7_alloc(struct pvt *t, u32 flags, u16 *ctx)
{
	struct pviommu_command command = pvt_v7_command(PVIOMMU_V7_ALLOC_CONTEXT);
	int ret;

	command.op.v7_alloc.ctx_no = cpu_to_le16(*ctx);
	command.op.v7_alloc.alloc_flags = cpu_to_le32(flags);
	ret = pvt_submit(t, &command);
	*ctx = le16_to_cpu(command.op.v7_alloc.ctx_no);
	return ret;
}

static int pvt_v7_free(struct pvt *t, u16 ctx, u32 flags)
{
	struct pviommu_command command = pvt_v7_command(PVIOMMU_V7_FREE_CONTEXT);

	command.op.v7_free.ctx_no = cpu_to_le16(ctx);
	command.op.v7_free.free_flags = cpu_to_le32(flags);
	return pvt_submit(t, &command);
}

static int pvt_v7_reattach(struct pvt *t, u32 sbdf, u16 ctx)
{
	struct pviommu_command command = pvt_v7_command(PVIOMMU_V7_REATTACH_DEVICE);

	command.op.v7_reattach.ctx_no = cpu_to_le16(ctx);
	command.op.v7_reattach.seg = cpu_to_le16(sbdf >> 16);
	command.op.v7_reattach.bus = sbdf >> 8;
	command.op.v7_reattach.devfn = sbdf;
	return pvt_submit(t, &command);
}

/* The device adds to the count; what it added is what it counted. */
static int pvt_v7_map(struct pvt *t, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
		      u32 *mapped)
{
	struct pviommu_command command = pvt_v7_map_command(ctx, dfn, gfn, nr_pages, flags);
	int ret;

	command.op.v7_map.mapped = cpu_to_le32(PVT_UNTOUCHED);
	ret = pvt_submit(t, &command);
	*mapped = le32_to_cpu(command.op.v7_map.mapped) - PVT_UNTOUCHED;
	return ret;
}

static int pvt_v7_unmap(struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped)
{
	struct pviommu_command command = pvt_v7_unmap_command(ctx, dfn, nr_pages);
	int ret;

	command.op.v7_unmap.unmapped = cpu_to_le32(PVT_UNTOUCHED);
	ret = pvt_submit(t, &command);
	*unmapped = le32_to_cpu(command.op.v7_unmap.unmapped) - PVT_UNTOUCHED;
	return ret;
}

/* Whether DMA of engine 0, which is in the context, to a page arrives in a page of the tests. */
static bool pvt_v7_expect_leads(struct ktap *ktap, struct pvt *t, u64 dfn, unsigned int page)
{
	u8 *target = pvt_page(t, page), kept[PVT_PROBE_SIZE];
	bool holds;

	memcpy(kept, target, sizeof(kept));
	holds = pvt_expect_fill(ktap, t, 0, pvt_iova(dfn), PVT_PROBE_SIZE, PVT_PROBE) &&
		EXPECT(ktap, pvt_holds(target, PVT_PROBE, PVT_PROBE_SIZE));
	memcpy(target, kept, sizeof(kept));
	return holds;
}

/*
 * There is no lookup. A page is mapped if it cannot be mapped again; DMA shows where it leads, if
 * that is a page of the tests.
 */
static bool pvt_v7_expect_mapped(struct ktap *ktap, struct pvt *t, u16 ctx, u64 dfn, u64 gfn,
				 u32 nr_pages)
{
	bool holds = true;
	u32 i, stream;
	u16 found;
	u32 done;

	if (!EXPECT_EQ(ktap, pvt_endpoint(t, t->sbdf[0], &stream, &found), 0) ||
	    !EXPECT_EQ(ktap, pvt_v7_reattach(t, t->sbdf[0], ctx), 0))
		return false;
	for (i = 0; i < nr_pages; i++) {
		holds &= EXPECT_EQ(ktap, pvt_v7_map(t, ctx, dfn + i, t->gfn, 1, PVT_RW, &done),
				   -EADDRINUSE);
		if (gfn + i >= t->gfn && gfn + i < t->gfn + PVT_PAGES)
			holds &= pvt_v7_expect_leads(ktap, t, dfn + i, gfn + i - t->gfn);
	}
	return EXPECT_EQ(ktap, pvt_v7_reattach(t, t->sbdf[0], found), 0) && holds;
}

/* Nothing is mapped where there is nothing to unmap. */
static bool pvt_v7_expect_nothing(struct ktap *ktap, struct pvt *t, u16 ctx, u64 dfn,
				  u32 nr_pages)
{
	bool holds = true;
	u32 i, done;

	for (i = 0; i < nr_pages; i++)
		holds &= EXPECT_EQ(ktap, pvt_v7_unmap(t, ctx, dfn + i, 1, &done), -ENOENT);
	return holds;
}

const struct pvt_profile pvt_xen_v7 = {
	.number = PVIOMMU_PROFILE_XEN_V7,
	.other_class = PVIOMMU_CLASS_XEN_2024,
	.unknown_operation = -EOPNOTSUPP,
	.unknown_function = -ENODEV,
	.not_ram = -ENOENT,
	.reserved = -EADDRNOTAVAIL,
	.untouched = 0,
	.command = pvt_v7_command,
	.map_command = pvt_v7_map_command,
	.unmap_command = pvt_v7_unmap_command,
	.mapped = pvt_v7_mapped,
	.alloc = pvt_v7_alloc,
	.free = pvt_v7_free,
	.reattach = pvt_v7_reattach,
	.map = pvt_v7_map,
	.unmap = pvt_v7_unmap,
	.expect_mapped = pvt_v7_expect_mapped,
	.expect_nothing = pvt_v7_expect_nothing,
	.cases = pvt_v7_cases,
	.nr_cases = &pvt_nr_v7_cases,
};
