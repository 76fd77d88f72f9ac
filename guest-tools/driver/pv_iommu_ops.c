// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: one function for each operation that the driver uses.
 *
 * map and unmap poll, because the IOMMU core calls them in atomic context; the others sleep.
 */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include "pv_iommu.h"

static void pv_xen_command(struct pv_command *command, u16 subop, u16 ctx)
{
	memset(command, 0, sizeof(*command));
	command->slot.op_class = PVIOMMU_CLASS_XEN_2024;
	command->op.head.subop_id = cpu_to_le16(subop);
	command->op.head.ctx_no = cpu_to_le16(ctx);
}

static void pv_own_command(struct pv_command *command, u8 op, u32 sbdf)
{
	memset(command, 0, sizeof(*command));
	command->slot.op_class = PVIOMMU_CLASS_OWN;
	command->slot.op = op;
	command->op.binding.seg = cpu_to_le16(sbdf >> 16);
	command->op.binding.bus = PCI_BUS_NUM(sbdf);
	command->op.binding.devfn = sbdf & 0xff;
}

int pv_op_alloc_context(struct pv_iommu *pv, u16 *ctx)
{
	struct pv_command command;
	int ret;

	pv_xen_command(&command, PVIOMMU_XEN2024_ALLOC_CONTEXT, 0);
	ret = pv_submit(pv, &command, PV_WAIT_SLEEP);
	if (!ret)
		*ctx = le16_to_cpu(command.op.head.ctx_no);
	return ret;
}

int pv_op_free_context(struct pv_iommu *pv, u16 ctx)
{
	struct pv_command command;

	pv_xen_command(&command, PVIOMMU_XEN2024_FREE_CONTEXT, ctx);
	return pv_submit(pv, &command, PV_WAIT_SLEEP);
}

int pv_op_reattach(struct pv_iommu *pv, u32 sbdf, u16 ctx)
{
	struct pv_command command;

	pv_xen_command(&command, PVIOMMU_XEN2024_REATTACH_DEVICE, ctx);
	command.op.reattach.seg = cpu_to_le16(sbdf >> 16);
	command.op.reattach.bus = PCI_BUS_NUM(sbdf);
	command.op.reattach.devfn = sbdf & 0xff;
	return pv_submit(pv, &command, PV_WAIT_SLEEP);
}

int pv_op_map(struct pv_iommu *pv, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags, u32 *mapped)
{
	struct pv_command command;
	int ret;

	*mapped = nr_pages;
	if (PV_FLOOR)
		return 0;
	pv_xen_command(&command, PVIOMMU_XEN2024_MAP_PAGES, ctx);
	command.op.map.flags = cpu_to_le32(flags);
	command.op.map.gfn = cpu_to_le64(gfn);
	command.op.map.dfn = cpu_to_le64(dfn);
	command.op.map.nr_pages = cpu_to_le32(nr_pages);
	ret = pv_submit(pv, &command, PV_WAIT_BUSY);
	*mapped = min(le32_to_cpu(command.op.map.mapped), nr_pages);
	return ret;
}

int pv_op_unmap(struct pv_iommu *pv, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped)
{
	struct pv_command command;
	int ret;

	*unmapped = nr_pages;
	if (PV_FLOOR)
		return 0;
	pv_xen_command(&command, PVIOMMU_XEN2024_UNMAP_PAGES, ctx);
	command.op.unmap.dfn = cpu_to_le64(dfn);
	command.op.unmap.nr_pages = cpu_to_le32(nr_pages);
	ret = pv_submit(pv, &command, PV_WAIT_BUSY);
	*unmapped = min(le32_to_cpu(command.op.unmap.unmapped), nr_pages);
	return ret;
}

int pv_op_bind(struct pv_iommu *pv, u32 sbdf, u32 stream)
{
	struct pv_command command;

	pv_own_command(&command, PVIOMMU_OWN_BIND, sbdf);
	command.op.binding.stream = cpu_to_le32(stream);
	return pv_submit(pv, &command, PV_WAIT_SLEEP);
}

int pv_op_unbind(struct pv_iommu *pv, u32 sbdf)
{
	struct pv_command command;

	pv_own_command(&command, PVIOMMU_OWN_UNBIND, sbdf);
	return pv_submit(pv, &command, PV_WAIT_SLEEP);
}

/* What is in use: the device's counters and the driver's own. */
int pv_op_usage(struct pv_iommu *pv, struct pv_usage *usage)
{
	struct pv_command command;
	int ret;

	pv_own_command(&command, PVIOMMU_OWN_QUERY_USAGE, 0);
	ret = pv_submit(pv, &command, PV_WAIT_SLEEP);
	if (ret)
		return ret;
	usage->contexts = le32_to_cpu(command.op.usage.contexts);
	usage->bindings = le32_to_cpu(command.op.usage.bindings);
	usage->pool_used = le32_to_cpu(command.op.usage.pool_used);
	usage->pool_total = le32_to_cpu(command.op.usage.pool_total);
	usage->mapped_pages = le64_to_cpu(command.op.usage.mapped_pages);
	usage->events_lost = le64_to_cpu(command.op.usage.events_lost);
	usage->domains = atomic_read(&pv->nr_domains);
	usage->table_pages = atomic_read(&pv->nr_tables);
	usage->endpoints = atomic_read(&pv->nr_endpoints);
	usage->slots_in_flight = pv_ring_in_flight(pv);
	return 0;
}
