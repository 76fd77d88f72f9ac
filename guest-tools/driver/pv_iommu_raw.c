// SPDX-License-Identifier: GPL-2.0-only
/* Paravirtual IOMMU: the one export, for the test module. */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include "pv_iommu.h"
#include "pv_namespace.h"

static u32 pv_raw_profile(struct pv_iommu *pv)
{
	return pv->profile->number;
}

static const struct pv_capabilities *pv_raw_capabilities(struct pv_iommu *pv)
{
	return &pv->caps;
}

static u32 pv_raw_ring_entries(struct pv_iommu *pv)
{
	return pv->rings[0].entries;
}

const struct pv_iommu_raw_ops pv_iommu_raw_ops = {
	.get = pv_iommu_get_first,
	.put = pv_iommu_put,
	.submit = pv_submit,
	.usage = pv_op_usage,
	.profile = pv_raw_profile,
	.capabilities = pv_raw_capabilities,
	.ring_entries = pv_raw_ring_entries,
	.event_position = pv_event_position,
	.next_event = pv_next_event,
};

PV_EXPORT(pv_iommu_raw_ops, PV_IOMMU);
