// SPDX-License-Identifier: GPL-2.0-only
/* Domains with flags are allocated by domain_alloc_user(), which has nested domains too. */
#include <linux/iommu.h>

static struct iommu_domain *probe_alloc(struct device *dev, u32 flags, struct iommu_domain *parent,
					const struct iommu_user_data *user_data)
{
	return NULL;
}

const struct iommu_ops probe_ops = { .domain_alloc_user = probe_alloc };
