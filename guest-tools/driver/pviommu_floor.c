// SPDX-License-Identifier: GPL-2.0-only
/*
 * The PV-IOMMU driver without writes to the ring in map and unmap: what the kernel itself costs.
 * DMA does not work with it; it is for measurements only. One compilation unit, because the real
 * driver is built from the same sources: all of them but pviommu_send.c, which is replaced here.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/module.h>

/* It must not be loaded automatically. */
#undef MODULE_DEVICE_TABLE
#define MODULE_DEVICE_TABLE(type, name)

#undef pr_fmt
#include "pviommu_pci.c"
#undef pr_fmt
#include "pviommu_rings.c"
#undef pr_fmt
#include "pviommu_ring.c"
#undef pr_fmt
#include "pviommu_giveup.c"
#undef pr_fmt
#include "pviommu_ops.c"
#undef pr_fmt
#include "pviommu_xen_2024.c"
#undef pr_fmt
#include "pviommu_xen_v7.c"
#undef pr_fmt
#include "pviommu_paging.c"
#undef pr_fmt
#include "pviommu_table.c"
#undef pr_fmt
#include "pviommu_pending.c"
#undef pr_fmt
#include "pviommu_domain.c"
#undef pr_fmt
#include "pviommu_device.c"
#undef pr_fmt
#include "pviommu_capabilities.c"
#undef pr_fmt
#include "pviommu_events.c"
#undef pr_fmt
#include "pviommu_debugfs.c"

/* always the kind that sends maps: what is measured is the driver without what it sends */
int pviommu_guest_choose(struct pviommu *pv)
{
	return 0;
}

struct iommu_domain *pviommu_guest_domain_alloc(struct pviommu *pv, bool dirty)
{
	return ERR_PTR(-EOPNOTSUPP);
}

u64 pviommu_guest_mapped_pages(struct pviommu *pv)
{
	return 0;
}

void pviommu_guest_end(struct pviommu *pv)
{
}

int pviommu_ring_post_map(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags)
{
	return 0;
}

int pviommu_ring_post_unmap(struct pviommu_domain *own, u64 dfn, u32 nr_pages)
{
	return 0;
}

int pviommu_op_map_send(struct pviommu_domain *own, struct pviommu_answer *answer, u64 dfn, u64 gfn,
			u32 nr_pages, u32 flags)
{
	return 0;
}

int pviommu_op_map_wait(struct pviommu_domain *own, struct pviommu_answer *answer, u32 nr_pages,
			u32 *mapped, enum pviommu_wait wait)
{
	*mapped = nr_pages;
	return 0;
}

void pviommu_op_sync(struct pviommu_domain *own)
{
}

int pviommu_op_reserve_send(struct pviommu_domain *own, struct pviommu_answer *answer, u32 *pages)
{
	*pages = atomic_read(&own->table.nr);
	return 0;
}

int pviommu_op_reserve_take(struct pviommu_domain *own, struct pviommu_answer *answer, u32 pages,
			    enum pviommu_wait wait)
{
	WRITE_ONCE(own->table.credit, pages);
	return 0;
}

void pviommu_op_unreserve(struct pviommu_domain *own)
{
}
