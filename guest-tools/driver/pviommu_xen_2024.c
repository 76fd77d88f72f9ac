// SPDX-License-Identifier: GPL-2.0-only
/* Paravirtual IOMMU: profile xen-2024, the operations of the Xen series of June 2024. */

#define pr_fmt(fmt) "pviommu: " fmt

#include "pviommu.h"

static void pviommu_2024_command(struct pviommu_command *command, u16 subop, u16 ctx)
{
	pviommu_command_clear(command);
	command->slot.op_class = PVIOMMU_CLASS_XEN_2024;
	command->op.head.subop_id = cpu_to_le16(subop);
	command->op.head.ctx_no = cpu_to_le16(ctx);
}

static int pviommu_2024_alloc(struct pviommu *pv, u16 *ctx)
{
	struct pviommu_command command;
	int ret;

	pviommu_2024_command(&command, PVIOMMU_XEN2024_ALLOC_CONTEXT, 0);
	ret = pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
	if (!ret)
		*ctx = le16_to_cpu(command.op.head.ctx_no);
	return ret;
}

static int pviommu_2024_free(struct pviommu *pv, u16 ctx)
{
	struct pviommu_command command;

	pviommu_2024_command(&command, PVIOMMU_XEN2024_FREE_CONTEXT, ctx);
	return pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
}

static int pviommu_2024_reattach(struct pviommu *pv, u32 sbdf, u16 ctx)
{
	struct pviommu_command command;

	pviommu_2024_command(&command, PVIOMMU_XEN2024_REATTACH_DEVICE, ctx);
	command.op.reattach.seg = cpu_to_le16(sbdf >> 16);
	command.op.reattach.bus = PCI_BUS_NUM(sbdf);
	command.op.reattach.devfn = sbdf & 0xff;
	return pviommu_submit(pv, &command, PVIOMMU_WAIT_SLEEP);
}

static void pviommu_2024_map(struct pviommu_command *command, u16 ctx, u64 dfn, u64 gfn,
			     u32 nr_pages, u32 flags)
{
	pviommu_2024_command(command, PVIOMMU_XEN2024_MAP_PAGES, ctx);
	command->op.map.flags = cpu_to_le32(flags);
	command->op.map.gfn = cpu_to_le64(gfn);
	command->op.map.dfn = cpu_to_le64(dfn);
	command->op.map.nr_pages = cpu_to_le32(nr_pages);
}

static void pviommu_2024_unmap(struct pviommu_command *command, u16 ctx, u64 dfn, u32 nr_pages)
{
	pviommu_2024_command(command, PVIOMMU_XEN2024_UNMAP_PAGES, ctx);
	command->op.unmap.dfn = cpu_to_le64(dfn);
	command->op.unmap.nr_pages = cpu_to_le32(nr_pages);
}

static u32 pviommu_2024_mapped(const struct pviommu_command *command)
{
	return le32_to_cpu(command->op.map.mapped);
}

const struct pviommu_profile pviommu_xen_2024 = {
	.name = "xen-2024",
	.number = PVIOMMU_PROFILE_XEN_2024,
	.feature = PVIOMMU_FEATURE_PROFILE_XEN_2024,
	.alloc = pviommu_2024_alloc,
	.free = pviommu_2024_free,
	.reattach = pviommu_2024_reattach,
	.map = pviommu_2024_map,
	.unmap = pviommu_2024_unmap,
	.mapped = pviommu_2024_mapped,
	.not_backed = -EPERM,
};
