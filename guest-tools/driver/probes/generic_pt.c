// SPDX-License-Identifier: GPL-2.0-only
/* The kernel has a library that writes tables in the format of VT-d's second stage. */
#include <linux/generic_pt/iommu.h>

#if !IS_ENABLED(CONFIG_IOMMU_PT_VTDSS)
#error "it has the library without that format"
#endif

int probe_map(struct pt_iommu_vtdss *table);

int probe_map(struct pt_iommu_vtdss *table)
{
	struct pt_iommu_vtdss_cfg cfg = { .top_level = 3 };
	size_t mapped = 0;

	return pt_iommu_vtdss_init(table, &cfg, GFP_KERNEL) ?:
	       table->iommu.ops->map_range(&table->iommu, 0, 0, PAGE_SIZE, IOMMU_READ, GFP_KERNEL,
					   &mapped);
}
