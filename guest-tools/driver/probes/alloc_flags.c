// SPDX-License-Identifier: GPL-2.0-only
/* Domains with flags are allocated by domain_alloc_paging_flags(). */
#include <linux/iommu.h>

static struct iommu_domain *probe_alloc(struct device *dev, u32 flags,
					const struct iommu_user_data *user_data)
{
	return NULL;
}

const struct iommu_ops probe_ops = { .domain_alloc_paging_flags = probe_alloc };
