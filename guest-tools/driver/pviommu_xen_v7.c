// SPDX-License-Identifier: GPL-2.0-only
/* Paravirtual IOMMU: profile xen-v7, the operations of versions 4 to 7 of the Xen series. */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/log2.h>

#include "pviommu.h"

/* INIT refuses more, because a context number has 16 bits */
#define PVIOMMU_V7_MAX_CONTEXTS	(U16_MAX - 1U)

/* callers use the flags of the other profile, which are the same */
static_assert(PVIOMMU_V7_MAP_READABLE == PVIOMMU_MAP_READABLE);
static_assert(PVIOMMU_V7_MAP_WRITEABLE == PVIOMMU_MAP_WRITEABLE);

static void pviommu_v7_command(struct pviommu_command *command, u8 op)
{
	pviommu_command_clear(command);
	command->slot.op_class = PVIOMMU_CLASS_XEN_V7;
	command->slot.op = op;
}

static int pviommu_v7_query(struct pviommu *pv, u16 *max_contexts, u32 *page_sizes)
{
	struct pviommu_command command;
	int ret;

	pviommu_v7_command(&command, PVIOMMU_V7_QUERY_CAPABILITIES);
	ret = pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
	*max_contexts = le16_to_cpu(command.op.v7_query.max_ctx_no);
	*page_sizes = le32_to_cpu(command.op.v7_query.pgsize_mask);
	return ret;
}

/*
 * Asks for all contexts and all of the pool. INIT was not done before: selecting the profile has
 * reset the device.
 */
static int pviommu_v7_init(struct pviommu *pv)
{
	u32 contexts = min(pv->caps.max_contexts, PVIOMMU_V7_MAX_CONTEXTS), page_sizes;
	struct pviommu_command command;
	u16 before, after;
	int ret;

	ret = pviommu_v7_query(pv, &before, &page_sizes);
	if (ret)
		return ret;
	pviommu_v7_command(&command, PVIOMMU_V7_INIT);
	command.op.v7_init.max_ctx_no = cpu_to_le32(contexts);
	command.op.v7_init.arena_order = cpu_to_le32(ilog2(max(pv->caps.pool_pages, 1U)));
	ret = pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP)
		      ?: pviommu_v7_query(pv, &after, &page_sizes);
	if (ret)
		return ret;
	if (before || after != contexts || !(page_sizes & BIT(PVIOMMU_PAGE_SHIFT))) {
		dev_err(pviommu_dev(pv), "init: %u contexts before, %u after, %u wanted; page sizes %#x\n",
			before, after, contexts, page_sizes);
		return -EIO;
	}
	return 0;
}

static int pviommu_v7_alloc(struct pviommu *pv, u16 *ctx)
{
	struct pviommu_command command;
	int ret;

	pviommu_v7_command(&command, PVIOMMU_V7_ALLOC_CONTEXT);
	ret = pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
	if (!ret)
		*ctx = le16_to_cpu(command.op.v7_alloc.ctx_no);
	return ret;
}

static int pviommu_v7_free(struct pviommu *pv, u16 ctx)
{
	struct pviommu_command command;

	pviommu_v7_command(&command, PVIOMMU_V7_FREE_CONTEXT);
	command.op.v7_free.ctx_no = cpu_to_le16(ctx);
	return pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
}

static int pviommu_v7_reattach(struct pviommu *pv, u32 sbdf, u16 ctx)
{
	struct pviommu_command command;

	pviommu_v7_command(&command, PVIOMMU_V7_REATTACH_DEVICE);
	command.op.v7_reattach.ctx_no = cpu_to_le16(ctx);
	command.op.v7_reattach.seg = cpu_to_le16(sbdf >> 16);
	command.op.v7_reattach.bus = PCI_BUS_NUM(sbdf);
	command.op.v7_reattach.devfn = sbdf & 0xff;
	return pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
}

/* The device adds to the counts of map and unmap, which begin with 0 here. */
static void pviommu_v7_map(struct pviommu_command *command, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages,
			   u32 flags)
{
	pviommu_v7_command(command, PVIOMMU_V7_MAP_PAGES);
	command->op.v7_map.ctx_no = cpu_to_le16(ctx);
	command->op.v7_map.gfn = cpu_to_le64(gfn);
	command->op.v7_map.dfn = cpu_to_le64(dfn);
	command->op.v7_map.map_flags = cpu_to_le32(flags);
	command->op.v7_map.pgsize = cpu_to_le32(BIT(PVIOMMU_PAGE_SHIFT));
	command->op.v7_map.nr_pages = cpu_to_le32(nr_pages);
}

static void pviommu_v7_unmap(struct pviommu_command *command, u16 ctx, u64 dfn, u32 nr_pages)
{
	pviommu_v7_command(command, PVIOMMU_V7_UNMAP_PAGES);
	command->op.v7_unmap.ctx_no = cpu_to_le16(ctx);
	command->op.v7_unmap.dfn = cpu_to_le64(dfn);
	command->op.v7_unmap.pgsize = cpu_to_le32(BIT(PVIOMMU_PAGE_SHIFT));
	command->op.v7_unmap.nr_pages = cpu_to_le32(nr_pages);
}

static u32 pviommu_v7_mapped(const struct pviommu_command *command)
{
	return le32_to_cpu(command->op.v7_map.mapped);
}

const struct pviommu_profile pviommu_xen_v7 = {
	.name = "xen-v7",
	.number = PVIOMMU_PROFILE_XEN_V7,
	.feature = PVIOMMU_FEATURE_PROFILE_XEN_V7,
	.init = pviommu_v7_init,
	.alloc = pviommu_v7_alloc,
	.free = pviommu_v7_free,
	.reattach = pviommu_v7_reattach,
	.map = pviommu_v7_map,
	.unmap = pviommu_v7_unmap,
	.mapped = pviommu_v7_mapped,
	.not_backed = -ENOENT,
};
