// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: paging domains. Each is a context of its own.
 *
 * Domains of the DMA API get their addresses from the kernel, so in them a map can be known not to
 * fail, and is posted then; all others are in pviommu_pending.c. What could make a map fail:
 *
 * - its pages are mapped already, or its size is more than the device takes: the driver's own table
 *   and limits tell;
 * - its addresses are outside the aperture or reserved: it has to lie within one IOVA range and
 *   outside of all reserved regions, those of other endpoints too;
 * - its target is not guest memory: it has to lie within one RAM range of the capability area, as
 *   it was at probe. Memory that came since is mapped with a wait, and memory that went is not
 *   handed out by the kernel;
 * - the pool of the device is out of pages: as many as the domain's own tables are, which have the
 *   device's shape and are never given back, are reserved for its context (RESERVE) before a map
 *   that needs them is posted.
 *
 * What is not certain is waited for and exact. An unmap of pages that are mapped cannot fail and is
 * always posted; iotlb_sync() and flush_iotlb_all() wait until the device has done it.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/dma-mapping.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "pviommu.h"

static bool posted __ro_after_init = true;
module_param(posted, bool, 0444);
MODULE_PARM_DESC(posted, "post maps that cannot fail, and unmaps; else wait for each, which is slower");

static struct pviommu_domain *to_pviommu_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct pviommu_domain, domain);
}

/* The core sets the type after domain_alloc_paging(), so it is looked at when it matters. */
static bool pviommu_domain_is_dma(const struct pviommu_domain *own)
{
	return own->domain.type & __IOMMU_DOMAIN_DMA_API;
}

static int pviommu_domain_attach(PVIOMMU_ATTACH_PARAMETERS)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	struct pviommu_domain *own = to_pviommu_domain(domain);
	int ret;

	if (own->pv != ep->pv)
		return -EINVAL;
	ret = pviommu_attach(ep, domain, own->ctx);
	/*
	 * The core goes back to the domain of the DMA API where it cannot bear an error. Behind a
	 * device that was given up that does no harm: nothing can be mapped in it.
	 */
	return ret && pviommu_given_up(ep->pv) && pviommu_domain_is_dma(own) ? 0 : ret;
}

/*
 * Has the device reserve pages of its pool for all the tables that the domain has. When the pool
 * has none left, that is asked again after a second at the earliest.
 */
static void pviommu_domain_reserve(struct pviommu_domain *own)
{
	struct pviommu_answer answer;
	unsigned long flags;
	u32 wanted;
	int ret;

	if (READ_ONCE(own->pv->no_reserve))
		return;
	spin_lock_irqsave(&own->lock, flags);
	if (own->refused && time_before(jiffies, own->retry)) {
		spin_unlock_irqrestore(&own->lock, flags);
		return;
	}
	/*
	 * Sent under the lock, and never less than before: the device goes by the last one. A table
	 * that is made meanwhile is one that the domain is not covered for.
	 */
	own->asked = max_t(u32, own->asked, atomic_read(&own->table.nr));
	wanted = own->asked;
	ret = pviommu_op_reserve_send(own, &answer, wanted);
	spin_unlock_irqrestore(&own->lock, flags);
	if (ret)
		return;
	ret = pviommu_op_reserve_take(own, &answer);

	spin_lock_irqsave(&own->lock, flags);
	own->refused = ret;
	own->retry = jiffies + HZ;
	if (!ret)
		WRITE_ONCE(own->table.credit, max(own->table.credit, wanted));
	spin_unlock_irqrestore(&own->lock, flags);
	if (ret == -EOPNOTSUPP)
		WRITE_ONCE(own->pv->no_reserve, true);
}

/* Posts a map if it cannot fail; -EAGAIN, with nothing changed, if that is not certain. */
static int pviommu_map_post(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
			    gfp_t gfp)
{
	struct pviommu *pv = own->pv;
	int ret;

	if (!posted || !pviommu_frames_hold(&pv->dfns, dfn, nr_pages) ||
	    !pviommu_frames_hold(&pv->gfns, gfn, nr_pages))
		return -EAGAIN;
	ret = pviommu_table_fill(&own->table, dfn, nr_pages, PVIOMMU_ENTRY_MAPPED | gfn, gfp);
	if (ret)
		return ret;
	if (!PVIOMMU_FLOOR && unlikely(!pviommu_table_covered(&own->table)))
		pviommu_domain_reserve(own);
	ret = PVIOMMU_FLOOR ? 0 : pviommu_ring_post_map(own, dfn, gfn, nr_pages, flags);
	if (unlikely(ret))
		pviommu_table_clear(&own->table, dfn, nr_pages);
	return ret;
}

/* not inline: what it has on the stack would be cleared for posted maps as well */
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
	ret = pviommu_op_map_take(own, &answer, nr_pages, mapped);
	pviommu_table_set(&own->table, dfn, *mapped, PVIOMMU_ENTRY_MAPPED | gfn);
	return ret;
}

/* Maps as many pages as the device takes at once; @mapped counts those to report, also on error. */
static int pviommu_map(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
		       gfp_t gfp, u32 *mapped)
{
	int ret;

	ret = pviommu_domain_is_dma(own) ? pviommu_map_post(own, dfn, gfn, nr_pages, flags, gfp) :
				      pviommu_pending_map(own, dfn, gfn, nr_pages, flags, gfp);
	*mapped = ret ? 0 : nr_pages;
	if (unlikely(ret == -EAGAIN))
		ret = pviommu_map_wait(own, dfn, gfn, nr_pages, flags, gfp, mapped);
	return ret;
}

static int pviommu_domain_map(struct iommu_domain *domain, unsigned long iova, phys_addr_t paddr,
			      size_t pgsize, size_t pgcount, int prot, gfp_t gfp, size_t *mapped)
{
	u64 dfn = iova >> PVIOMMU_PAGE_SHIFT, gfn = paddr >> PVIOMMU_PAGE_SHIFT;
	u64 left = (u64)pgsize * pgcount >> PVIOMMU_PAGE_SHIFT;
	struct pviommu_domain *own = to_pviommu_domain(domain);
	u32 flags = 0, done;
	int ret;

	if (prot & IOMMU_READ)
		flags |= PVIOMMU_MAP_READABLE;
	if (prot & IOMMU_WRITE)
		flags |= PVIOMMU_MAP_WRITEABLE;
	if (!flags)
		return -EINVAL;
	do {
		ret = pviommu_map(own, dfn, gfn, min_t(u64, left, own->pv->caps.max_nr_pages),
				  flags, gfp, &done);
		*mapped += (size_t)done << PVIOMMU_PAGE_SHIFT;
		dfn += done;
		gfn += done;
		left -= done;
	} while (left && !ret);
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

	/* an error was or will be that of a map */
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
			chunk = min_t(u64, run, own->pv->caps.max_nr_pages);
			/* what a device that was given up translates, nobody may rely on */
			if (!PVIOMMU_FLOOR)
				pviommu_ring_post_unmap(own, dfn, chunk);
		}
	} while (left && kind);
	if (!posted)
		pviommu_op_sync(own);
	return (size_t)(wanted - left) << PVIOMMU_PAGE_SHIFT;
}

/* Strict unmaps: after this no DMA can use what was unmapped. */
static void pviommu_domain_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather)
{
	pviommu_op_sync(to_pviommu_domain(domain));
}

/*
 * Deferred unmaps, from the flush queue's timer too: on any CPU, for what others have posted. The
 * queue has seen their entries under a lock that they took after posting.
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
	int ret;

	/* a ring may hold the address of what is freed here */
	pviommu_pending_collect(own, 0, U64_MAX);
	ret = pviommu_op_free_context(own->pv, own->ctx);
	if (ret && !pviommu_given_up(own->pv))
		dev_err(pviommu_dev(own->pv), "free of context %u failed: %pe\n", own->ctx,
			ERR_PTR(ret));
	pviommu_table_free(&own->table);
	atomic_dec(&own->pv->nr_domains);
	pviommu_put(own->pv);
	kfree(own);
}

const struct iommu_domain_ops pviommu_domain_ops = {
	.attach_dev = pviommu_domain_attach,
	.map_pages = pviommu_domain_map,
	.unmap_pages = pviommu_domain_unmap,
	.iotlb_sync_map = pviommu_domain_sync_map,
	.iotlb_sync = pviommu_domain_sync,
	.flush_iotlb_all = pviommu_domain_flush_all,
	.iova_to_phys = pviommu_domain_iova_to_phys,
	.free = pviommu_domain_free,
};

struct iommu_domain *pviommu_domain_alloc_paging(struct device *dev)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	struct pviommu *pv = ep->pv;
	struct pviommu_domain *own;
	int ret;

	own = kzalloc(sizeof(*own), GFP_KERNEL);
	if (!own)
		return ERR_PTR(-ENOMEM);
	own->pv = pv;
	spin_lock_init(&own->lock);
	ret = pviommu_table_init(&own->table, pv->caps.aperture_bits, &pv->nr_tables);
	if (ret)
		goto err_free;
	ret = pviommu_op_alloc_context(pv, &own->ctx);
	if (ret) {
		if (!pviommu_given_up(pv))
			dev_err(pviommu_dev(pv), "no context for a domain: %pe\n", ERR_PTR(ret));
		goto err_table;
	}
	own->ring = pviommu_ring_of(pv, own->ctx);
	own->domain.pgsize_bitmap = pv->caps.page_sizes;
	own->domain.geometry.aperture_start = 0;
	own->domain.geometry.aperture_end = DMA_BIT_MASK(pv->caps.aperture_bits);
	own->domain.geometry.force_aperture = true;
	atomic_inc(&pv->nr_domains);
	refcount_inc(&pv->users);
	return &own->domain;

err_table:
	pviommu_table_free(&own->table);
err_free:
	kfree(own);
	return ERR_PTR(ret);
}
