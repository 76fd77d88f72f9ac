// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: what only profile xen-v7 has. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/io.h>
#include <linux/pgtable.h>

#include "pviommu_test.h"

/* a domain that does not exist; the caller's is the only one */
#define PVT_NO_DOMAIN	1
#define PVT_LARGE_PAGE	512	/* pages of 4 KiB in one of 2 MiB */

static struct pviommu_command pvt_v7(u8 op)
{
	return pvt_xen_v7.command(op);
}

static void pvt_v7_counts_add(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command map = pvt_xen_v7.map_command(ctx, PVT_DFN, t->gfn, 3, PVT_RW);
	struct pviommu_command unmap = pvt_xen_v7.unmap_command(ctx, PVT_DFN, 4);

	map.op.v7_map.mapped = cpu_to_le32(5);
	EXPECT_EQ(ktap, pvt_submit(t, &map), 0);
	EXPECT_EQ(ktap, le32_to_cpu(map.op.v7_map.mapped), 8);
	/* and again as it came back */
	EXPECT_EQ(ktap, pvt_submit(t, &map), -EADDRINUSE);
	EXPECT_EQ(ktap, le32_to_cpu(map.op.v7_map.mapped), 8);
	unmap.op.v7_unmap.unmapped = cpu_to_le32(U32_MAX);
	EXPECT_EQ(ktap, pvt_submit(t, &unmap), -ENOENT);
	EXPECT_EQ(ktap, le32_to_cpu(unmap.op.v7_unmap.unmapped), 2);
}

static void pvt_v7_fields_kept(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command map = pvt_xen_v7.map_command(ctx, PVT_DFN, t->gfn, 4, PVT_RW),
			       sent = map;
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 2, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_submit(t, &map), -EADDRINUSE);
	EXPECT_EQ(ktap, le32_to_cpu(map.op.v7_map.mapped), 2);
	sent.op.v7_map.mapped = map.op.v7_map.mapped;
	EXPECT(ktap, !memcmp(&map.op, &sent.op, sizeof(map.op)));
}

static void pvt_v7_page_size(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	static const u32 refused[] = { 0, 1, SZ_8K, SZ_2M, U32_MAX };
	struct pviommu_command map, unmap;
	unsigned int i;
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	for (i = 0; i < ARRAY_SIZE(refused); i++) {
		map = pvt_xen_v7.map_command(ctx, PVT_DFN + 1, t->gfn, 1, PVT_RW);
		map.op.v7_map.pgsize = cpu_to_le32(refused[i]);
		EXPECT_EQ(ktap, pvt_submit(t, &map), -EINVAL);
		EXPECT_EQ(ktap, le32_to_cpu(map.op.v7_map.mapped), 0);
		unmap = pvt_xen_v7.unmap_command(ctx, PVT_DFN, 1);
		unmap.op.v7_unmap.pgsize = cpu_to_le32(refused[i]);
		EXPECT_EQ(ktap, pvt_submit(t, &unmap), -EINVAL);
		EXPECT_EQ(ktap, le32_to_cpu(unmap.op.v7_unmap.unmapped), 0);
	}
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn, 1);
	pvt_expect_nothing(ktap, t, ctx, PVT_DFN + 1, 1);
}

static void pvt_v7_init_again(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command query = pvt_v7(PVIOMMU_V7_QUERY_CAPABILITIES);
	struct pviommu_command init = pvt_v7(PVIOMMU_V7_INIT);
	struct pviommu_usage before, after;

	init.op.v7_init.max_ctx_no = cpu_to_le32(1);
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &before), 0);
	EXPECT_EQ(ktap, pvt_submit(t, &init), -EACCES);
	EXPECT_EQ(ktap, le32_to_cpu(init.op.v7_init.max_ctx_no), 1);
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &after), 0);
	EXPECT_EQ(ktap, after.contexts, before.contexts);
	EXPECT_EQ(ktap, after.pool_total, before.pool_total);
	EXPECT_EQ(ktap, pvt_submit(t, &query), 0);
	EXPECT_EQ(ktap, le16_to_cpu(query.op.v7_query.max_ctx_no), t->caps->max_contexts);
}

static void pvt_v7_query(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command query = pvt_v7(PVIOMMU_V7_QUERY_CAPABILITIES);
	u32 flags = PVIOMMU_V7_CAP_IDENTITY;

	if (t->caps->identity_default)
		flags |= PVIOMMU_V7_CAP_DEFAULT_IDENTITY;
	memset(&query.op.v7_query, 0xff, sizeof(query.op.v7_query));
	EXPECT_EQ(ktap, pvt_submit(t, &query), 0);
	EXPECT_EQ(ktap, le64_to_cpu(query.op.v7_query.max_iova_addr),
		  pvt_iova(pvt_last_dfn(t) + 1) - 1);
	EXPECT_EQ(ktap, le32_to_cpu(query.op.v7_query.cap_flags), flags);
	EXPECT_EQ(ktap, le32_to_cpu(query.op.v7_query.pgsize_mask), BIT(PVIOMMU_PAGE_SHIFT));
	EXPECT_EQ(ktap, le32_to_cpu(query.op.v7_query.max_pasid), 0);
	EXPECT_EQ(ktap, le16_to_cpu(query.op.v7_query.max_ctx_no), t->caps->max_contexts);
	EXPECT_EQ(ktap, le16_to_cpu(query.op.v7_query.pad0), 0);
}

/* Runs of both addresses begin at a large page, as they do where a driver wants them fast. */
static void pvt_v7_no_limit(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 pages = t->caps->max_nr_pages + 1, done;
	u64 dfn = round_up(PVT_DFN, PVT_LARGE_PAGE);
	u64 gfn = pvt_ram_of(t, pages + PVT_LARGE_PAGE);

	if (!EXPECT(ktap, gfn))
		return;
	gfn = round_up(gfn, PVT_LARGE_PAGE);
	EXPECT_EQ(ktap, pvt_map(t, ctx, dfn, gfn, pages, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, done, pages);
	pvt_expect_mapped(ktap, t, ctx, dfn + pages - 1, gfn + pages - 1, 1);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, dfn, pages + 1, &done), -ENOENT);
	EXPECT_EQ(ktap, done, pages);
	pvt_expect_nothing(ktap, t, ctx, dfn, 1);
}

static void pvt_v7_reserved(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u64 start = t->caps->reserved[0].range.start >> PVIOMMU_PAGE_SHIFT;
	u32 done;

	if (!EXPECT(ktap, t->caps->nr_reserved > 0))
		return;
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, start, 1, &done), -EADDRNOTAVAIL);
	EXPECT_EQ(ktap, done, 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, start - 1, t->gfn, 1, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, start - 1, 2, &done), -EADDRNOTAVAIL);
	EXPECT_EQ(ktap, done, 1);
	pvt_expect_nothing(ktap, t, ctx, start - 1, 1);
	/* a reserved address is reported before a frame that is not memory */
	EXPECT_EQ(ktap, pvt_map(t, ctx, start, pvt_ram_end(t, 0), 1, PVT_RW, &done),
		  -EADDRNOTAVAIL);
}

static int pvt_remote(struct pvt *t, u16 domid, u16 subop, u64 address)
{
	struct pviommu_command command = pvt_v7(PVIOMMU_V7_REMOTE_CMD);

	command.op.v7_remote.domid = cpu_to_le16(domid);
	command.op.v7_remote.subop = cpu_to_le16(subop);
	command.op.v7_remote.arg = cpu_to_le64(address);
	return pvt_submit(t, &command);
}

static void pvt_v7_remote(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u64 outside = pvt_iova(pvt_ram_end(t, 0)), inside;
	struct pviommu_v7_map_pages *map;
	u16 self = PVIOMMU_DOMID_SELF;

	map = kmalloc(sizeof(*map), GFP_KERNEL);
	if (!EXPECT(ktap, map))
		return;
	inside = virt_to_phys(map);
	*map = pvt_xen_v7.map_command(ctx, PVT_DFN, t->gfn, 2, PVT_RW).op.v7_map;
	map->mapped = cpu_to_le32(1);
	EXPECT_EQ(ktap, pvt_remote(t, 0, PVIOMMU_V7_NOOP, 0), 0);
	EXPECT_EQ(ktap, pvt_remote(t, PVT_NO_DOMAIN, PVIOMMU_V7_NOOP, 0), -ENOENT);
	EXPECT_EQ(ktap, pvt_remote(t, self, PVIOMMU_V7_REMOTE_CMD, inside), -EINVAL);
	EXPECT_EQ(ktap, pvt_remote(t, self, PVIOMMU_V7_ALLOC_NESTED, inside), -EOPNOTSUPP);
	EXPECT_EQ(ktap, pvt_remote(t, self, PVIOMMU_V7_MAP_PAGES, outside), -EFAULT);
	EXPECT_EQ(ktap, le32_to_cpu(READ_ONCE(map->mapped)), 1);
	EXPECT_EQ(ktap, pvt_remote(t, self, PVIOMMU_V7_MAP_PAGES, inside), 0);
	EXPECT_EQ(ktap, le32_to_cpu(READ_ONCE(map->mapped)), 3);
	EXPECT_EQ(ktap, pvt_remote(t, 0, PVIOMMU_V7_MAP_PAGES, inside), -EADDRINUSE);
	EXPECT_EQ(ktap, le32_to_cpu(READ_ONCE(map->mapped)), 3);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn, 2);
	kfree(map);
}

static void pvt_v7_not_offered(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	static const u8 ops[] = {
		PVIOMMU_V7_ALLOC_NESTED, PVIOMMU_V7_FLUSH_NESTED, PVIOMMU_V7_ATTACH_PASID,
		PVIOMMU_V7_DETACH_PASID, PVIOMMU_V7_DETACH_PASID + 1, U8_MAX,
	};
	struct pviommu_command command;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ops); i++) {
		command = pvt_v7(ops[i]);
		EXPECT_EQ(ktap, pvt_submit(t, &command), -EOPNOTSUPP);
	}
}

static void pvt_v7_pasid(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command command = pvt_v7(PVIOMMU_V7_REATTACH_DEVICE);
	u32 stream;
	u16 found;

	command.op.v7_reattach.ctx_no = cpu_to_le16(PVIOMMU_DEFAULT_CONTEXT);
	command.op.v7_reattach.seg = cpu_to_le16(t->sbdf[0] >> 16);
	command.op.v7_reattach.bus = t->sbdf[0] >> 8;
	command.op.v7_reattach.devfn = t->sbdf[0];
	command.op.v7_reattach.pasid = cpu_to_le32(1);
	EXPECT_EQ(ktap, pvt_submit(t, &command), -EOPNOTSUPP);
	EXPECT_EQ(ktap, pvt_endpoint(t, t->sbdf[0], &stream, &found), 0);
	EXPECT_EQ(ktap, found, ctx);
}

static void pvt_v7_padding(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command alloc = pvt_v7(PVIOMMU_V7_ALLOC_CONTEXT);
	struct pviommu_command free = pvt_v7(PVIOMMU_V7_FREE_CONTEXT);
	u16 id = PVT_NO_CONTEXT;

	EXPECT_EQ(ktap, pvt_alloc(t, BIT(1), &id), -EINVAL);
	EXPECT_EQ(ktap, id, PVT_NO_CONTEXT);
	EXPECT_EQ(ktap, pvt_free(t, ctx, BIT(1)), -EINVAL);
	alloc.op.v7_alloc.pad0 = cpu_to_le16(1);
	EXPECT_EQ(ktap, pvt_submit(t, &alloc), -EINVAL);
	free.op.v7_free.ctx_no = cpu_to_le16(ctx);
	free.op.v7_free.pad0 = cpu_to_le16(1);
	EXPECT_EQ(ktap, pvt_submit(t, &free), -EINVAL);
}

const struct ktap_case pvt_v7_cases[] = {
	PVT_CONTEXT("xen-v7 adds to the counts that it is given", pvt_v7_counts_add),
	PVT_CONTEXT("xen-v7 leaves what it is given as it is", pvt_v7_fields_kept),
	PVT_CONTEXT("xen-v7 refuses page sizes but 4096", pvt_v7_page_size),
	PVT_CONTEXT("xen-v7 init a second time is EACCES and changes nothing", pvt_v7_init_again),
	PVT_CONTEXT("xen-v7 query agrees with the capability area after init", pvt_v7_query),
	PVT_CONTEXT("xen-v7 maps any number of pages", pvt_v7_no_limit),
	PVT_CONTEXT("xen-v7 unmap of the reserved window is EADDRNOTAVAIL", pvt_v7_reserved),
	PVT_CONTEXT("xen-v7 remote_cmd works on a structure in memory", pvt_v7_remote),
	PVT_CONTEXT("xen-v7 nested and pasid operations are EOPNOTSUPP", pvt_v7_not_offered),
	PVT_ATTACHED("xen-v7 reattach with a pasid leaves the engine where it is", pvt_v7_pasid),
	PVT_CONTEXT("xen-v7 refuses unknown flags and padding", pvt_v7_padding),
};

const unsigned int pvt_nr_v7_cases = ARRAY_SIZE(pvt_v7_cases);
