// SPDX-License-Identifier: GPL-2.0-only
/* Paravirtual IOMMU: profile xen-2024, the operations of the Xen series of June 2024. */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include "pv_iommu.h"

static void pv_2024_command(struct pv_command *command, u16 subop, u16 ctx)
{
	pv_command_clear(command);
	command->slot.op_class = PVIOMMU_CLASS_XEN_2024;
	command->op.head.subop_id = cpu_to_le16(subop);
	command->op.head.ctx_no = cpu_to_le16(ctx);
}

static int pv_2024_alloc(struct pv_iommu *pv, u16 *ctx)
{
	struct pv_command command;
	int ret;

	pv_2024_command(&command, PVIOMMU_XEN2024_ALLOC_CONTEXT, 0);
	ret = pv_submit(pv, &command, PV_WAIT_SLEEP);
	if (!ret)
		*ctx = le16_to_cpu(command.op.head.ctx_no);
	return ret;
}

static int pv_2024_free(struct pv_iommu *pv, u16 ctx)
{
	struct pv_command command;

	pv_2024_command(&command, PVIOMMU_XEN2024_FREE_CONTEXT, ctx);
	return pv_submit(pv, &command, PV_WAIT_SLEEP);
}

static int pv_2024_reattach(struct pv_iommu *pv, u32 sbdf, u16 ctx)
{
	struct pv_command command;

	pv_2024_command(&command, PVIOMMU_XEN2024_REATTACH_DEVICE, ctx);
	command.op.reattach.seg = cpu_to_le16(sbdf >> 16);
	command.op.reattach.bus = PCI_BUS_NUM(sbdf);
	command.op.reattach.devfn = sbdf & 0xff;
	return pv_submit(pv, &command, PV_WAIT_SLEEP);
}

static void pv_2024_map(struct pv_command *command, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages,
			u32 flags)
{
	pv_2024_command(command, PVIOMMU_XEN2024_MAP_PAGES, ctx);
	command->op.map.flags = cpu_to_le32(flags);
	command->op.map.gfn = cpu_to_le64(gfn);
	command->op.map.dfn = cpu_to_le64(dfn);
	command->op.map.nr_pages = cpu_to_le32(nr_pages);
}

static void pv_2024_unmap(struct pv_command *command, u16 ctx, u64 dfn, u32 nr_pages)
{
	pv_2024_command(command, PVIOMMU_XEN2024_UNMAP_PAGES, ctx);
	command->op.unmap.dfn = cpu_to_le64(dfn);
	command->op.unmap.nr_pages = cpu_to_le32(nr_pages);
}

static u32 pv_2024_mapped(const struct pv_command *command)
{
	return le32_to_cpu(command->op.map.mapped);
}

const struct pv_profile pv_xen_2024 = {
	.name = "xen-2024",
	.number = PVIOMMU_PROFILE_XEN_2024,
	.feature = PVIOMMU_FEATURE_PROFILE_XEN_2024,
	.alloc = pv_2024_alloc,
	.free = pv_2024_free,
	.reattach = pv_2024_reattach,
	.map = pv_2024_map,
	.unmap = pv_2024_unmap,
	.mapped = pv_2024_mapped,
};
