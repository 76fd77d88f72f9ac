// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: one function for each operation that the driver uses. What the profiles do
 * differently is in a table of each; the operations of the device's own are the same under all.
 */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include "pv_iommu.h"

static const struct pv_profile *const pv_profiles[] = { &pv_xen_2024, &pv_xen_v7 };

const struct pv_profile *pv_profile_find(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pv_profiles); i++)
		if (!strcmp(pv_profiles[i]->name, name))
			return pv_profiles[i];
	return NULL;
}

int pv_op_init(struct pv_iommu *pv)
{
	return pv->profile->init ? pv->profile->init(pv) : 0;
}

int pv_op_alloc_context(struct pv_iommu *pv, u16 *ctx)
{
	return pv->profile->alloc(pv, ctx);
}

int pv_op_free_context(struct pv_iommu *pv, u16 ctx)
{
	return pv->profile->free(pv, ctx);
}

int pv_op_reattach(struct pv_iommu *pv, u32 sbdf, u16 ctx)
{
	return pv->profile->reattach(pv, sbdf, ctx);
}

int pv_op_map(struct pv_iommu *pv, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags, u32 *mapped)
{
	int ret;

	*mapped = nr_pages;
	if (PV_FLOOR)
		return 0;
	ret = pv->profile->map(pv, ctx, dfn, gfn, nr_pages, flags, mapped);
	*mapped = min(*mapped, nr_pages);
	return ret;
}

int pv_op_unmap(struct pv_iommu *pv, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped)
{
	int ret;

	*unmapped = nr_pages;
	if (PV_FLOOR)
		return 0;
	ret = pv->profile->unmap(pv, ctx, dfn, nr_pages, unmapped);
	*unmapped = min(*unmapped, nr_pages);
	return ret;
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
