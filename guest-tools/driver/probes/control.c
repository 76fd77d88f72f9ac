// SPDX-License-Identifier: GPL-2.0-only
/* Compiles with every kernel that the driver supports; if not, the other probes prove nothing. */
#include <linux/iommu.h>
#include <linux/module.h>

static int probe_sync_map(struct iommu_domain *domain, unsigned long iova, size_t size)
{
	return 0;
}

const struct iommu_domain_ops probe_ops = { .iotlb_sync_map = probe_sync_map };

MODULE_LICENSE("GPL");
