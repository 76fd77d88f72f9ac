// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: paging domains whose tables the device has.
 *
 * A map that cannot fail is posted. What could make a map fail:
 *
 * - its pages are mapped already, or its size is above the device's limit: the driver checks its
 *   own table and the limit;
 * - its addresses are outside the aperture or reserved: it has to lie within one IOVA range and
 *   outside all reserved regions, those of other endpoints too;
 * - its target is not guest memory: it has to lie within one RAM range of the capability area, as
 *   it was at probe. A map of memory that was added since is waited for; the kernel does not
 *   allocate memory that was removed;
 * - the pool of the device is exhausted: before a map is posted, as many pages are reserved for the
 *   context (RESERVE) as the domain has tables. These have the same structure as the device's, and
 *   are not freed before the domain.
 *
 * Any other map is waited for: at once in domains of the DMA API, see pviommu_pending.c for the
 * others. An unmap of pages that are mapped cannot fail and is always posted; iotlb_sync() and
 * flush_iotlb_all() wait until the device has done it.
 *
 * The users of VFIO and iommufd share the pool among themselves and with the kernel. Their domains
 * give back their reserve when nothing is mapped in them any more, and what they do not use of it
 * when the pool has nothing left for another domain.
 *
 * They may also map addresses that are reserved for all devices before they attach one; iommufd
 * then refuses the attach. No context can translate these, so such pages are recorded in the
 * driver's own table only, and the device is not asked to map them.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/dma-mapping.h>
#include <linux/error-injection.h>
#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>

#include "pviommu.h"

static bool posted __ro_after_init = true;
module_param(posted, bool, 0444);
MODULE_PARM_DESC(posted, "post maps that cannot fail, and unmaps; else wait for each, which is slower");

static struct pviommu_domain *to_pviommu_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct pviommu_domain, paging.domain);
}

static bool pviommu_domain_is_dma(const struct pviommu_domain *own)
{
	return pviommu_paging_is_dma(&own->paging);
}

static enum pviommu_wait pviommu_wait_of(gfp_t gfp)
{
	return gfpflags_allow_blocking(gfp) ? PVIOMMU_WAIT_YIELD : PVIOMMU_WAIT_BUSY;
}

/* Another domain with reserved pages of the pool that it does not use, pinned; or NULL. */
static struct pviommu_domain *pviommu_domain_with_spare(struct pviommu_domain *own)
{
	struct pviommu_domain *found = NULL, *other;
	struct pviommu *pv = own->paging.pv;
	unsigned long flags;

	spin_lock_irqsave(&pv->domains_lock, flags);
	list_for_each_entry(other, &pv->domains, list) {
		if (other == own || pviommu_domain_is_dma(other) ||
		    READ_ONCE(other->asked) <= 1)
			continue;
		atomic_inc(&other->pins);
		found = other;
		break;
	}
	spin_unlock_irqrestore(&pv->domains_lock, flags);
	return found;
}

static void pviommu_domain_unpin(struct pviommu_domain *own)
{
	if (atomic_dec_and_test(&own->pins))
		wake_up_var(&own->pins);
}

/* Makes other domains give back reserves that they do not use; whether there were any. */
static bool pviommu_domain_press(struct pviommu_domain *own)
{
	int left = atomic_read(&own->paging.pv->nr_domains);
	struct pviommu_domain *other;
	bool any = false;

	/* a domain that asks again meanwhile may get it */
	for (; left > 0 && (other = pviommu_domain_with_spare(own)); left--) {
		pviommu_op_unreserve(other);
		/* its ring may be another one than that of the domain that asks */
		pviommu_op_sync(other);
		pviommu_domain_unpin(other);
		any = true;
	}
	return any;
}

static int pviommu_domain_reserve_once(struct pviommu_domain *own, enum pviommu_wait wait)
{
	struct pviommu_answer answer;
	u32 wanted;

	return pviommu_op_reserve_send(own, &answer, &wanted) ?:
	       pviommu_op_reserve_take(own, &answer, wanted, wait);
}

/*
 * Has the device reserve pages of its pool for all the tables that the domain has. When the pool
 * has none left, it is asked again after a second at the earliest.
 */
static void pviommu_domain_reserve(struct pviommu_domain *own, enum pviommu_wait wait)
{
	unsigned long flags;
	bool wants;
	int ret;

	if (READ_ONCE(own->paging.pv->no_reserve))
		return;
	spin_lock_irqsave(&own->lock, flags);
	wants = !own->refused || time_after_eq(jiffies, own->retry);
	spin_unlock_irqrestore(&own->lock, flags);
	if (!wants)
		return;
	ret = pviommu_domain_reserve_once(own, wait);
	if (ret == -ENOMEM && pviommu_domain_press(own))
		ret = pviommu_domain_reserve_once(own, wait);
	if (pviommu_given_up(own->paging.pv))
		return;

	spin_lock_irqsave(&own->lock, flags);
	own->refused = ret;
	own->retry = jiffies + HZ;
	spin_unlock_irqrestore(&own->lock, flags);
	if (ret == -EOPNOTSUPP)
		WRITE_ONCE(own->paging.pv->no_reserve, true);
}

/* Posts a map if it cannot fail; -EAGAIN, with nothing changed, if that is not certain. */
static int pviommu_map_post(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
			    gfp_t gfp)
{
	struct pviommu *pv = own->paging.pv;
	int ret;

	if (!posted || !pviommu_frames_hold(&pv->dfns, dfn, nr_pages) ||
	    !pviommu_frames_hold(&pv->gfns, gfn, nr_pages))
		return -EAGAIN;
	ret = pviommu_table_fill(&own->table, dfn, nr_pages, PVIOMMU_ENTRY_MAPPED | gfn, gfp);
	if (ret)
		return ret;
	if (unlikely(!pviommu_table_covered(&own->table)))
		pviommu_domain_reserve(own, pviommu_wait_of(gfp));
	ret = pviommu_ring_post_map(own, dfn, gfn, nr_pages, flags);
	if (unlikely(ret))
		pviommu_table_clear(&own->table, dfn, nr_pages);
	return ret;
}

/* noinline: its stack variables would be cleared for posted maps as well */
static noinline int pviommu_map_wait(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages,
				     u32 flags, gfp_t gfp, u32 *mapped)
{
	struct pviommu_answer answer;
	int ret;

	ret = pviommu_table_prepare(&own->table, dfn, nr_pages, gfp);
	if (ret)
		return ret;
	ret = pviommu_op_map_send(own, &answer, dfn, gfn, nr_pages, flags);
	if (ret)
		return ret;
	ret = pviommu_op_map_wait(own, &answer, nr_pages, mapped, pviommu_wait_of(gfp));
	pviommu_table_set(&own->table, dfn, *mapped, PVIOMMU_ENTRY_MAPPED | gfn);
	return ret;
}

/*
 * Maps as many pages as the device accepts at once; @mapped counts those to report, also on error.
 */
static int pviommu_map(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
		       gfp_t gfp, u32 *mapped)
{
	int ret;

	ret = pviommu_map_post(own, dfn, gfn, nr_pages, flags, gfp);
	if (unlikely(ret == -EAGAIN) && !pviommu_domain_is_dma(own))
		ret = pviommu_pending_map(own, dfn, gfn, nr_pages, flags, gfp);
	*mapped = ret ? 0 : nr_pages;
	if (unlikely(ret == -EAGAIN))
		ret = pviommu_map_wait(own, dfn, gfn, nr_pages, flags, gfp, mapped);
	return ret;
}

/* How many of @nr_pages pages from @dfn are alike: all reserved for all devices, or none */
static u32 pviommu_map_piece(const struct pviommu_capabilities *caps, u64 dfn, u32 nr_pages,
			     bool *reserved)
{
	u64 end = dfn + nr_pages, start, last;
	unsigned int i;

	for (i = 0; i < caps->nr_reserved; i++) {
		start = caps->reserved[i].range.start >> PVIOMMU_PAGE_SHIFT;
		last = caps->reserved[i].range.last >> PVIOMMU_PAGE_SHIFT;
		if (caps->reserved[i].stream != PVIOMMU_GLOBAL_STREAM || last < dfn || start >= end)
			continue;
		if (start <= dfn) {
			*reserved = true;
			return min(end, last + 1) - dfn;
		}
		end = start;
	}
	*reserved = false;
	return end - dfn;
}

/*
 * As pviommu_map(), for addresses that users choose: pages that no context can map are only
 * recorded. One call handles pages of one kind; @mapped counts them.
 */
static int pviommu_map_anywhere(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages,
				u32 flags, gfp_t gfp, u32 *mapped)
{
	bool reserved = false;
	int ret;

	if (unlikely(!pviommu_frames_hold(&own->paging.pv->dfns, dfn, nr_pages)))
		nr_pages = pviommu_map_piece(&own->paging.pv->caps, dfn, nr_pages, &reserved);
	if (likely(!reserved))
		return pviommu_map(own, dfn, gfn, nr_pages, flags, gfp, mapped);
	ret = pviommu_table_fill(&own->table, dfn, nr_pages, PVIOMMU_ENTRY_CLAIMED | gfn, gfp);
	*mapped = ret ? 0 : nr_pages;
	return ret == -EAGAIN ? -EADDRINUSE : ret;
}

static int pviommu_domain_map(struct iommu_domain *domain, unsigned long iova, phys_addr_t paddr,
			      size_t pgsize, size_t pgcount, int prot, gfp_t gfp, size_t *mapped)
{
	u64 dfn = iova >> PVIOMMU_PAGE_SHIFT, gfn = paddr >> PVIOMMU_PAGE_SHIFT;
	u64 wanted = (u64)pgsize * pgcount >> PVIOMMU_PAGE_SHIFT, left = wanted;
	struct pviommu_domain *own = to_pviommu_domain(domain);
	bool is_dma = pviommu_domain_is_dma(own);
	u32 flags = 0, done, chunk;
	int ret;

	if (unlikely(prot == PVIOMMU_PROT_MSI))
		return pviommu_paging_map_msi(iova, paddr, pgsize * pgcount, mapped);
	if (prot & IOMMU_READ)
		flags |= PVIOMMU_MAP_READABLE;
	if (prot & IOMMU_WRITE)
		flags |= PVIOMMU_MAP_WRITEABLE;
	if (!flags)
		return -EINVAL;
	do {
		chunk = min_t(u64, left, own->paging.pv->caps.max_nr_pages);
		ret = is_dma ? pviommu_map(own, dfn, gfn, chunk, flags, gfp, &done) :
			       pviommu_map_anywhere(own, dfn, gfn, chunk, flags, gfp, &done);
		dfn += done;
		gfn += done;
		left -= done;
	} while (left && !ret);
	*mapped += (size_t)(wanted - left) << PVIOMMU_PAGE_SHIFT;
	if (!is_dma)
		atomic64_add(wanted - left, &own->reported);
	return ret;
}

static int pviommu_domain_sync_map(struct iommu_domain *domain, unsigned long iova, size_t size)
{
	u64 nr_pages = (u64)size >> PVIOMMU_PAGE_SHIFT;

	if (!nr_pages)
		return 0;
	return pviommu_pending_collect(to_pviommu_domain(domain), iova >> PVIOMMU_PAGE_SHIFT,
				       nr_pages);
}

static size_t pviommu_domain_unmap(struct iommu_domain *domain, unsigned long iova, size_t pgsize,
				   size_t pgcount, struct iommu_iotlb_gather *gather)
{
	u64 wanted = (u64)pgsize * pgcount >> PVIOMMU_PAGE_SHIFT, left = wanted;
	struct pviommu_domain *own = to_pviommu_domain(domain);
	u64 dfn = iova >> PVIOMMU_PAGE_SHIFT, run, kind;
	u32 chunk;

	/* an error was or will be reported for a map */
	if (unlikely(READ_ONCE(own->nr_pending)))
		pviommu_pending_collect(own, dfn, wanted);
	do {
		run = pviommu_table_clear_run(&own->table, dfn, left, &kind);
		left -= run;
		if (kind != PVIOMMU_ENTRY_MAPPED) {
			dfn += run;
			continue;
		}
		for (; run; run -= chunk, dfn += chunk) {
			chunk = min_t(u64, run, own->paging.pv->caps.max_nr_pages);
			/* the reset of a device that was given up ends all DMA */
			pviommu_ring_post_unmap(own, dfn, chunk);
		}
	} while (left && kind);
	if (!posted)
		pviommu_op_sync(own);
	if (!pviommu_domain_is_dma(own) && !atomic64_sub_return(wanted - left, &own->reported))
		pviommu_op_unreserve(own);
	return (size_t)(wanted - left) << PVIOMMU_PAGE_SHIFT;
}

/* Strict unmaps: after this no DMA can use what was unmapped. */
static void pviommu_domain_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather)
{
	pviommu_op_sync(to_pviommu_domain(domain));
}

/*
 * Deferred unmaps, from the flush queue's timer too: this may run on any CPU, for unmaps that
 * others have posted. They took the queue's lock after posting, so the posted slots are visible
 * here.
 */
static void pviommu_domain_flush_all(struct iommu_domain *domain)
{
	pviommu_op_sync(to_pviommu_domain(domain));
}

static phys_addr_t pviommu_domain_iova_to_phys(struct iommu_domain *domain, dma_addr_t iova)
{
	struct pviommu_domain *own = to_pviommu_domain(domain);
	u64 gfn;

	if (!pviommu_table_lookup(&own->table, iova >> PVIOMMU_PAGE_SHIFT, &gfn))
		return 0;
	return (gfn << PVIOMMU_PAGE_SHIFT) | (iova & (BIT(PVIOMMU_PAGE_SHIFT) - 1));
}

static void pviommu_domain_free(struct iommu_domain *domain)
{
	struct pviommu_domain *own = to_pviommu_domain(domain);
	unsigned long flags;

	spin_lock_irqsave(&own->paging.pv->domains_lock, flags);
	list_del(&own->list);
	spin_unlock_irqrestore(&own->paging.pv->domains_lock, flags);
	wait_var_event(&own->pins, !atomic_read(&own->pins));
	/* a ring may have the address of what is freed here */
	pviommu_pending_collect(own, 0, U64_MAX);
	pviommu_paging_free_context(&own->paging);
	pviommu_table_free(&own->table);
	pviommu_paging_end(&own->paging);
	kfree(own);
}

/* Errors injected into these (Documentation/fault-injection) have to reach the caller. */
ALLOW_ERROR_INJECTION(pviommu_domain_map, ERRNO);
ALLOW_ERROR_INJECTION(pviommu_domain_sync_map, ERRNO);

static const struct iommu_domain_ops pviommu_domain_ops = {
	.attach_dev = pviommu_domain_attach,
	.map_pages = pviommu_domain_map,
	.unmap_pages = pviommu_domain_unmap,
	.iotlb_sync_map = pviommu_domain_sync_map,
	.iotlb_sync = pviommu_domain_sync,
	.flush_iotlb_all = pviommu_domain_flush_all,
	.iova_to_phys = pviommu_domain_iova_to_phys,
	.free = pviommu_domain_free,
};

struct iommu_domain *pviommu_ring_domain_alloc(struct pviommu *pv)
{
	struct pviommu_domain *own;
	unsigned long flags;
	int ret;

	own = kzalloc(sizeof(*own), GFP_KERNEL);
	if (!own)
		return ERR_PTR(-ENOMEM);
	spin_lock_init(&own->lock);
	ret = pviommu_table_init(&own->table, pv->caps.aperture_bits, &pv->nr_tables);
	if (ret)
		goto err_free;
	ret = pviommu_op_alloc_context(pv, &own->paging.ctx);
	if (ret) {
		pviommu_paging_no_context(pv, ret);
		goto err_table;
	}
	own->ring = pviommu_ring_of(pv, own->paging.ctx);
	pviommu_paging_begin(&own->paging, pv, &pviommu_domain_ops, pv->caps.page_sizes,
			     pv->caps.aperture_bits);
	spin_lock_irqsave(&pv->domains_lock, flags);
	list_add_tail(&own->list, &pv->domains);
	spin_unlock_irqrestore(&pv->domains_lock, flags);
	return &own->paging.domain;

err_table:
	pviommu_table_free(&own->table);
err_free:
	kfree(own);
	return ERR_PTR(ret);
}
