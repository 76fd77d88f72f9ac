// SPDX-License-Identifier: GPL-2.0-only
/* Paravirtual IOMMU: the one export, for the test module. */

#define pr_fmt(fmt) "pviommu: " fmt

#include "pviommu.h"
#include "pviommu_namespace.h"
#include "pviommu_raw_ops.h"

static u32 pviommu_raw_profile(struct pviommu *pv)
{
	return pv->profile->number;
}

static bool pviommu_raw_has_tables(struct pviommu *pv)
{
	return pv->has_tables;
}

static const struct pviommu_capabilities *pviommu_raw_capabilities(struct pviommu *pv)
{
	return &pv->caps;
}

static u32 pviommu_raw_ring_entries(struct pviommu *pv)
{
	return pv->rings[0].entries;
}

const struct pviommu_raw_ops pviommu_raw_ops = {
	.get = pviommu_get_first,
	.put = pviommu_put,
	.submit = pviommu_submit,
	.usage = pviommu_op_usage,
	.profile = pviommu_raw_profile,
	.has_tables = pviommu_raw_has_tables,
	.capabilities = pviommu_raw_capabilities,
	.ring_entries = pviommu_raw_ring_entries,
	.event_position = pviommu_event_position,
	.next_event = pviommu_next_event,
};

PVIOMMU_EXPORT(pviommu_raw_ops, PVIOMMU);
