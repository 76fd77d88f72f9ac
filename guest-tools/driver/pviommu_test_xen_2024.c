// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: profile xen-2024, its encoding and what only it has. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include "pviommu_test.h"

static struct pviommu_command pvt_2024(u16 subop, u16 ctx, u32 flags)
{
	struct pviommu_command command = { .slot.op_class = PVIOMMU_CLASS_XEN_2024 };

	command.op.head.subop_id = cpu_to_le16(subop);
	command.op.head.ctx_no = cpu_to_le16(ctx);
	command.op.head.flags = cpu_to_le32(flags);
	return command;
}

static struct pviommu_command pvt_2024_command(u8 op)
{
	return pvt_2024(op, 0, 0);
}

static struct pviommu_command pvt_2024_map_command(u16 ctx, u64 dfn, u64 gfn, u32 nr_pages,
						   u32 flags)
{
	struct pviommu_command command = pvt_2024(PVIOMMU_XEN2024_MAP_PAGES, ctx, flags);

	command.op.map.dfn = cpu_to_le64(dfn);
	command.op.map.gfn = cpu_to_le64(gfn);
	command.op.map.nr_pages = cpu_to_le32(nr_pages);
	return command;
}

static struct pviommu_command pvt_2024_unmap_command(u16 ctx, u64 dfn, u32 nr_pages)
{
	struct pviommu_command command = pvt_2024(PVIOMMU_XEN2024_UNMAP_PAGES, ctx, 0);

	command.op.unmap.dfn = cpu_to_le64(dfn);
	command.op.unmap.nr_pages = cpu_to_le32(nr_pages);
	return command;
}

static u32 pvt_2024_mapped(const struct pviommu_command *command)
{
	return le32_to_cpu(command->op.map.mapped);
}

static int pvt_2024_alloc(struct pvt *t, u32 flags, u16 *ctx)
{
	struct pviommu_command command = pvt_2024(PVIOMMU_XEN2024_ALLOC_CONTEXT, *ctx, flags);
	int ret = pvt_submit(t, &command);

	*ctx = le16_to_cpu(command.op.head.ctx_no);
	return ret;
}

static int pvt_2024_free(struct pvt *t, u16 ctx, u32 flags)
{
	struct pviommu_command command = pvt_2024(PVIOMMU_XEN2024_FREE_CONTEXT, ctx, flags);

	return pvt_submit(t, &command);
}

static int pvt_2024_reattach(struct pvt *t, u32 sbdf, u16 ctx)
{
	struct pviommu_command command = pvt_2024(PVIOMMU_XEN2024_REATTACH_DEVICE, ctx, 0);

	command.op.reattach.seg = cpu_to_le16(sbdf >> 16);
	command.op.reattach.bus = sbdf >> 8;
	command.op.reattach.devfn = sbdf;
	return pvt_submit(t, &command);
}

static int pvt_2024_map(struct pvt *t, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
			u32 *mapped)
{
	struct pviommu_command command = pvt_2024_map_command(ctx, dfn, gfn, nr_pages, flags);
	int ret;

	command.op.map.mapped = cpu_to_le32(PVT_UNTOUCHED);
	ret = pvt_submit(t, &command);
	*mapped = le32_to_cpu(command.op.map.mapped);
	return ret;
}

static int pvt_2024_unmap(struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped)
{
	struct pviommu_command command = pvt_2024_unmap_command(ctx, dfn, nr_pages);
	int ret;

	command.op.unmap.unmapped = cpu_to_le32(PVT_UNTOUCHED);
	ret = pvt_submit(t, &command);
	*unmapped = le32_to_cpu(command.op.unmap.unmapped);
	return ret;
}

static int pvt_lookup(struct pvt *t, u16 ctx, u64 dfn, u64 *gfn)
{
	struct pviommu_command command = pvt_2024(PVIOMMU_XEN2024_LOOKUP_PAGE, ctx, 0);
	int ret;

	command.op.lookup.gfn = cpu_to_le64(PVT_UNTOUCHED);
	command.op.lookup.dfn = cpu_to_le64(dfn);
	ret = pvt_submit(t, &command);
	*gfn = le64_to_cpu(command.op.lookup.gfn);
	return ret;
}

/* Whether lookup finds exactly these pages. */
static bool pvt_2024_expect_mapped(struct ktap *ktap, struct pvt *t, u16 ctx, u64 dfn, u64 gfn,
				   u32 nr_pages)
{
	bool holds = true;
	u64 found;
	u32 i;

	for (i = 0; i < nr_pages; i++) {
		holds &= EXPECT_EQ(ktap, pvt_lookup(t, ctx, dfn + i, &found), 0) &&
			 EXPECT_EQ(ktap, found, gfn + i);
	}
	return holds;
}

static bool pvt_2024_expect_nothing(struct ktap *ktap, struct pvt *t, u16 ctx, u64 dfn,
				    u32 nr_pages)
{
	bool holds = true;
	u64 found;
	u32 i;

	for (i = 0; i < nr_pages; i++)
		holds &= EXPECT_EQ(ktap, pvt_lookup(t, ctx, dfn + i, &found), -ENOENT);
	return holds;
}

static void pvt_too_many_pages(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 more = t->caps->max_nr_pages + 1, done;
	const u16 none = PVT_NO_CONTEXT;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, more, PVT_RW, &done), -E2BIG);
	EXPECT_EQ(ktap, done, PVT_UNTOUCHED);
	/* the size is checked before the context */
	EXPECT_EQ(ktap, pvt_map(t, none, PVT_DFN, t->gfn, more, PVT_RW, &done), -E2BIG);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN, more, &done), -E2BIG);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN, 1);
}

static void pvt_lookups(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u64 found;
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn + 3, 2, PVT_RW, &done), 0);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn + 3, 2);
	EXPECT_EQ(ktap, pvt_lookup(t, ctx, PVT_DFN + 2, &found), -ENOENT);
	EXPECT_EQ(ktap, found, PVT_UNTOUCHED);
	EXPECT_EQ(ktap, pvt_lookup(t, PVT_NO_CONTEXT, PVT_DFN, &found), -EINVAL);
	EXPECT_EQ(ktap, found, PVT_UNTOUCHED);
}

static void pvt_2024_query(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command command = pvt_2024(PVIOMMU_XEN2024_QUERY_CAPABILITIES, 0, 0);

	EXPECT_EQ(ktap, pvt_submit(t, &command), 0);
	EXPECT_EQ(ktap, le16_to_cpu(command.op.query.max_ctx_no), t->caps->max_contexts);
	EXPECT_EQ(ktap, le32_to_cpu(command.op.query.max_nr_pages), t->caps->max_nr_pages);
	EXPECT_EQ(ktap, le64_to_cpu(command.op.query.max_iova_addr),
		  pvt_iova(pvt_last_dfn(t) + 1) - 1);
}

static const struct ktap_case pvt_2024_cases[] = {
	PVT_CONTEXT("more pages than max_nr_pages is E2BIG", pvt_too_many_pages),
	PVT_CONTEXT("lookup is exact and leaves gfn alone on error", pvt_lookups),
	PVT_CONTEXT("query agrees with the capability area", pvt_2024_query),
};

static const unsigned int pvt_nr_2024_cases = ARRAY_SIZE(pvt_2024_cases);

const struct pvt_profile pvt_xen_2024 = {
	.number = PVIOMMU_PROFILE_XEN_2024,
	.other_class = PVIOMMU_CLASS_XEN_V7,
	.unknown_operation = -EINVAL,
	.unknown_function = -ENOENT,
	.not_ram = -EPERM,
	.reserved = -EADDRINUSE,
	.untouched = PVT_UNTOUCHED,
	.command = pvt_2024_command,
	.map_command = pvt_2024_map_command,
	.unmap_command = pvt_2024_unmap_command,
	.mapped = pvt_2024_mapped,
	.alloc = pvt_2024_alloc,
	.free = pvt_2024_free,
	.reattach = pvt_2024_reattach,
	.map = pvt_2024_map,
	.unmap = pvt_2024_unmap,
	.expect_mapped = pvt_2024_expect_mapped,
	.expect_nothing = pvt_2024_expect_nothing,
	.cases = pvt_2024_cases,
	.nr_cases = &pvt_nr_2024_cases,
};
