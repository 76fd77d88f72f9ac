// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: paging domains whose tables are the guest's. The device walks them when there
 * is DMA, so a map is a store, and so is an unmap; neither is told to the device.
 *
 * What the device would answer to a map the driver has to find out itself:
 *
 * - its addresses are beyond the aperture: -ERANGE;
 * - its pages are mapped already: -EADDRINUSE;
 * - its target is neither guest memory nor in a BAR of a function behind the PV-IOMMU: -EFAULT. The
 *   RAM ranges of the capability area are as they were at probe, so other memory is looked up among
 *   the kernel's resources.
 *
 * Addresses that are reserved may be written to the table like any others, for a domain that has no
 * device yet for instance: the device looks at the address before it looks at a table.
 *
 * An unmap that is to be effective ends with a look at the in-flight line of the context. The
 * device makes the step odd before it reads an entry, and even after it has copied; what takes
 * longer is counted as pending while the step is still odd. So with a full barrier between the
 * stores to the table and the look, one of three things is seen: an even step, and whatever the
 * device reads from now on is new; an odd one, which is over once the word has another value; or
 * pending work, which only a FLUSH can wait for. Almost always it is the first, and nothing is
 * waited for. A step is short, but a device that has lost its processor in the middle of one may
 * take long: then a FLUSH waits with less effort than a loop, and gives the device up when it does
 * not answer.
 *
 * The tables of a context are freed after it. If it cannot be freed they are kept, since the device
 * could still walk them, also one that does not answer now and resumes later. They are freed when
 * the driver is unbound, after the reset that ends all walks. If even that is ignored, they are
 * lost. There are never more of them than the device has contexts, besides those of allocations
 * that were under way when the device was given up: later ones fail before there is a table.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/error-injection.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "pviommu.h"
#include "pviommu_namespace.h"

static char *tables = "auto";
module_param(tables, charp, 0444);
MODULE_PARM_DESC(tables, "tables of the guest that the device walks: auto, if it does; on: not without; off: send maps");

/* How often an odd step is looked at before a FLUSH waits for its end. */
#define PVIOMMU_STEP_LOOKS	512

/**
 * struct pviommu_guest_domain - a paging domain whose tables are the guest's
 * @paging: what all have
 * @list: in one of the two lists of its PV-IOMMU
 * @table: the tables
 * @line: the in-flight line of its context
 * @tracks: whether user space wants to know what is written
 */
struct pviommu_guest_domain {
	struct pviommu_paging paging;
	struct list_head list;
	struct pviommu_guest_table table;
	const struct pviommu_in_flight_line *line;
	bool tracks;
};

static struct pviommu_guest_domain *to_pviommu_guest_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct pviommu_guest_domain, paging.domain);
}

/**
 * pviommu_guest_choose - decides which kind of paging domain a PV-IOMMU gets
 * @pv: the PV-IOMMU, whose capabilities were read
 *
 * Return: 0, or a negative errno after one line in the log.
 */
int pviommu_guest_choose(struct pviommu *pv)
{
	bool offered = pv->caps.features & PVIOMMU_FEATURE_GUEST_TABLES &&
		       pv->caps.table_formats & BIT(PVIOMMU_TABLE_FORMAT_VTD_SS);

	if (!strcmp(tables, "off")) {
		offered = false;
	} else if (!strcmp(tables, "on") && !offered) {
		dev_err(pviommu_dev(pv), "the device does not walk tables of the guest, as tables=on demands\n");
		return -ENODEV;
	} else if (strcmp(tables, "on") && strcmp(tables, "auto")) {
		dev_err(pviommu_dev(pv), "unknown tables=%s: give auto, on or off\n", tables);
		return -EINVAL;
	}
	pv->has_tables = offered;
	pv->in_flight = pv->shared + pv->caps.in_flight_offset;
	return 0;
}

static u32 pviommu_guest_step(const struct pviommu_guest_domain *own)
{
	/* Pairs with the device: what it did in a step that has ended is visible. */
	return le32_to_cpu(virt_load_acquire(&own->line->step));
}

static noinline bool pviommu_guest_flush(struct pviommu_guest_domain *own)
{
	struct pviommu *pv = own->paging.pv;
	int ret = pviommu_op_flush(pv, own->paging.ctx);

	if (!ret)
		return true;
	/* an unmap cannot fail, so DMA has to end in another way */
	if (!pviommu_given_up(pv) && pviommu_give_up(pv))
		dev_err(pviommu_dev(pv), "flush of context %u failed: %pe: it is given up\n",
			own->paging.ctx, ERR_PTR(ret));
	return false;
}

/* Waits for the step that was odd at the first look. */
static noinline bool pviommu_guest_wait(struct pviommu_guest_domain *own, u32 step)
{
	unsigned int looks;
	bool is_over;

	for (looks = 0; looks < PVIOMMU_STEP_LOOKS; looks++) {
		is_over = pviommu_guest_step(own) != step;
		if (READ_ONCE(own->line->pending))
			break;
		if (is_over)
			return true;
		cpu_relax();
	}
	return pviommu_guest_flush(own);
}

/*
 * After this no DMA uses an entry as it was before the call. False if the device was given up: then
 * only its reset makes that sure.
 */
static bool pviommu_guest_quiesce(struct pviommu_guest_domain *own)
{
	u32 step;

	/* The entries that were changed are visible before the line is looked at. */
	virt_mb();
	step = pviommu_guest_step(own);
	if (unlikely(step & 1))
		return pviommu_guest_wait(own, step);
	if (unlikely(READ_ONCE(own->line->pending)))
		return pviommu_guest_flush(own);
	return true;
}

static bool pviommu_guest_quiesce_table(struct pviommu_guest_table *table)
{
	return pviommu_guest_quiesce(container_of(table, struct pviommu_guest_domain, table));
}

/* Memory that was added since probe, or for which the capability area had no room. */
static bool pviommu_guest_is_ram(u64 start, u64 last)
{
	u64 pfn;

	/* a page of the kernel may be larger than one of the device */
	for (pfn = start >> PAGE_SHIFT; pfn <= last >> PAGE_SHIFT; pfn++)
		if (!page_is_ram(pfn))
			return false;
	return true;
}

/* Whether all of it is in one BAR of a function behind the PV-IOMMU. */
static bool pviommu_guest_is_bar(struct pviommu *pv, u64 start, u64 last)
{
	struct pviommu_endpoint *ep;
	const struct resource *bar;
	unsigned long flags;
	bool found = false;
	unsigned int i;

	spin_lock_irqsave(&pv->bars_lock, flags);
	list_for_each_entry(ep, &pv->endpoints, list) {
		for (i = 0; i < PCI_STD_NUM_BARS; i++) {
			bar = &to_pci_dev(ep->dev)->resource[i];
			found |= bar->flags & IORESOURCE_MEM && bar->start <= start &&
				 bar->end >= last;
		}
	}
	spin_unlock_irqrestore(&pv->bars_lock, flags);
	return found;
}

/* What could make a map fail, apart from what is mapped already. */
static noinline int pviommu_guest_check(struct pviommu_guest_domain *own, u64 iova, u64 paddr,
					u64 size)
{
	struct pviommu *pv = own->paging.pv;
	u64 last = iova + size - 1, paddr_last = paddr + size - 1;

	if (last < iova || last > own->paging.domain.geometry.aperture_end)
		return -ERANGE;
	if (pviommu_frames_hold(&pv->gfns, paddr >> PVIOMMU_PAGE_SHIFT, size >> PVIOMMU_PAGE_SHIFT))
		return 0;
	if (paddr_last < paddr)
		return -EFAULT;
	if (pviommu_guest_is_ram(paddr, paddr_last) || pviommu_guest_is_bar(pv, paddr, paddr_last))
		return 0;
	return -EFAULT;
}

static int pviommu_guest_map(struct iommu_domain *domain, unsigned long iova, phys_addr_t paddr,
			     size_t pgsize, size_t pgcount, int prot, gfp_t gfp, size_t *mapped)
{
	struct pviommu_guest_domain *own = to_pviommu_guest_domain(domain);
	unsigned int level = pgsize == SZ_4K ? 0 : pgsize == SZ_2M ? 1 : 2;
	u64 access = prot & (IOMMU_READ | IOMMU_WRITE), size = (u64)pgsize * pgcount, done = 0;
	u64 nr_pages = size >> PVIOMMU_PAGE_SHIFT;
	struct pviommu *pv = own->paging.pv;
	int ret;

	BUILD_BUG_ON(IOMMU_READ != PVIOMMU_SS_READ || IOMMU_WRITE != PVIOMMU_SS_WRITE);
	if (unlikely(!access))
		return -EINVAL;
	if (unlikely(prot == PVIOMMU_PROT_MSI))
		return pviommu_paging_map_msi(iova, paddr, size, mapped);
	if (unlikely(pviommu_given_up(pv)))
		return -EIO;
	if (unlikely(!pviommu_frames_hold(&pv->dfns, iova >> PVIOMMU_PAGE_SHIFT, nr_pages) ||
		     !pviommu_frames_hold(&pv->gfns, paddr >> PVIOMMU_PAGE_SHIFT, nr_pages))) {
		ret = pviommu_guest_check(own, iova, paddr, size);
		if (ret)
			return ret;
	}
	ret = pviommu_guest_table_map(&own->table, iova, paddr, size, level, access, gfp, &done);
	*mapped += done;
	return ret;
}
ALLOW_ERROR_INJECTION(pviommu_guest_map, ERRNO);

static size_t pviommu_guest_unmap(struct iommu_domain *domain, unsigned long iova, size_t pgsize,
				  size_t pgcount, struct iommu_iotlb_gather *gather)
{
	u64 end = domain->geometry.aperture_end, size = (u64)pgsize * pgcount;

	/* a table has no other entries for addresses that it has no bits for */
	if (unlikely(iova > end || size - 1 > end - iova))
		return 0;
	return pviommu_guest_table_unmap(&to_pviommu_guest_domain(domain)->table, iova, size);
}

/* Strict unmaps, and dirty bits that were cleared. */
static void pviommu_guest_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather)
{
	pviommu_guest_quiesce(to_pviommu_guest_domain(domain));
}

/*
 * Deferred unmaps, from the flush queue's timer too: this may run on any CPU, for unmaps of others.
 * Each has put a full barrier between its stores and reading the count of flushes, by which the
 * queue decides whether this one is late enough for it. So if it is, the stores are visible before
 * the look.
 */
static void pviommu_guest_flush_all(struct iommu_domain *domain)
{
	pviommu_guest_quiesce(to_pviommu_guest_domain(domain));
}

static phys_addr_t pviommu_guest_iova_to_phys(struct iommu_domain *domain, dma_addr_t iova)
{
	u64 paddr;

	if (iova > domain->geometry.aperture_end)
		return 0;
	pviommu_guest_table_lookup(&to_pviommu_guest_domain(domain)->table, iova, &paddr);
	return paddr;
}

/*
 * Whether a device that is reset, or that the hypervisor has closed, walks the tables no more, even
 * when it resumes: what is closed may have been stopped in the middle of a walk.
 */
static bool pviommu_guest_is_over(struct pviommu_guest_domain *own)
{
	return !own->line || !(pviommu_guest_step(own) & 1);
}

/* Keeps the tables of a domain that is gone until pviommu_guest_end(). */
static void pviommu_guest_keep(struct pviommu *pv, struct pviommu_guest_domain *own)
{
	dev_err(pviommu_dev(pv), "the tables of a domain are kept until the driver is unbound: the device may still walk them\n");
	mutex_lock(&pv->guest_lock);
	list_add_tail(&own->list, &pv->guest_kept);
	mutex_unlock(&pv->guest_lock);
}

/**
 * pviommu_guest_end - frees the tables that were kept
 * @pv: the PV-IOMMU, which has no domains any more and was told to reset
 *
 * If it has ignored that, they are lost, and counted as a leak.
 */
void pviommu_guest_end(struct pviommu *pv)
{
	struct pviommu_guest_domain *own, *next;

	list_for_each_entry_safe(own, next, &pv->guest_kept, list) {
		if (pviommu_is_reset(pv) && pviommu_guest_is_over(own))
			pviommu_guest_table_free(&own->table);
		kfree(own);
	}
}

static void pviommu_guest_free(struct iommu_domain *domain)
{
	struct pviommu_guest_domain *own = to_pviommu_guest_domain(domain);
	struct pviommu *pv = own->paging.pv;
	bool is_free;

	mutex_lock(&pv->guest_lock);
	list_del(&own->list);
	mutex_unlock(&pv->guest_lock);
	is_free = !pviommu_paging_free_context(&own->paging) ||
		  (pviommu_given_up(pv) && pviommu_has_ended(pv) && pviommu_guest_is_over(own));
	if (is_free)
		pviommu_guest_table_free(&own->table);
	else
		pviommu_guest_keep(pv, own);
	/* the PV-IOMMU may be gone afterwards, and with it what it keeps */
	pviommu_paging_end(&own->paging);
	if (is_free)
		kfree(own);
}

static const struct iommu_domain_ops pviommu_guest_domain_ops = {
	.attach_dev = pviommu_domain_attach,
	.map_pages = pviommu_guest_map,
	.unmap_pages = pviommu_guest_unmap,
	.iotlb_sync = pviommu_guest_sync,
	.flush_iotlb_all = pviommu_guest_flush_all,
	.iova_to_phys = pviommu_guest_iova_to_phys,
	.free = pviommu_guest_free,
};

/* The device tracks from the beginning; this says whether anybody wants to know. */
static int pviommu_guest_set_dirty_tracking(struct iommu_domain *domain, bool enabled)
{
	WRITE_ONCE(to_pviommu_guest_domain(domain)->tracks, enabled);
	return 0;
}

static void pviommu_guest_dirty_found(void *data, u64 iova, u64 size)
{
	iommu_dirty_bitmap_record(data, iova, size);
}

static int pviommu_guest_read_and_clear_dirty(struct iommu_domain *domain, unsigned long iova,
					      size_t size, unsigned long flags,
					      struct iommu_dirty_bitmap *dirty)
{
	struct pviommu_guest_domain *own = to_pviommu_guest_domain(domain);

	/* without a bitmap it only clears, before tracking begins */
	if (!READ_ONCE(own->tracks) && dirty->bitmap)
		return -EINVAL;
	if (!size || iova + size - 1 < iova || iova + size - 1 > domain->geometry.aperture_end)
		return -ERANGE;
	pviommu_guest_table_dirty(&own->table, iova, size, !(flags & IOMMU_DIRTY_NO_CLEAR),
				  pviommu_guest_dirty_found, dirty);
	return 0;
}

static const struct iommu_dirty_ops pviommu_guest_dirty_ops = {
	.set_dirty_tracking = pviommu_guest_set_dirty_tracking,
	.read_and_clear_dirty = pviommu_guest_read_and_clear_dirty,
};

/**
 * pviommu_guest_domain_alloc - allocates a paging domain whose tables are the guest's
 * @pv: the PV-IOMMU, whose device walks such tables
 * @dirty: whether to track what is written
 *
 * Return: the domain, or an ERR_PTR(): -ENOMEM, -ENOSPC when there is no context left, -EIO without
 * a device.
 */
struct iommu_domain *pviommu_guest_domain_alloc(struct pviommu *pv, bool dirty)
{
	unsigned int bits = min_t(u32, pv->caps.aperture_bits, PVIOMMU_SS_ADDRESS_BITS);
	struct pviommu_guest_domain *own;
	u32 line;
	int ret;

	/* else a device that ignores resets would make each attempt cost a table that is kept */
	if (pviommu_given_up(pv))
		return ERR_PTR(-EIO);
	own = kzalloc(sizeof(*own), GFP_KERNEL);
	if (!own)
		return ERR_PTR(-ENOMEM);
	ret = pviommu_guest_table_init(&own->table, &pv->nr_tables, pviommu_guest_quiesce_table);
	if (ret)
		goto err_free;
	ret = pviommu_op_alloc_tables(pv, virt_to_phys(own->table.root),
				      dirty ? PVIOMMU_TABLES_DIRTY : 0, bits, &own->paging.ctx,
				      &line);
	if (ret) {
		pviommu_paging_no_context(pv, ret);
		goto err_table;
	}
	pviommu_paging_begin(&own->paging, pv, &pviommu_guest_domain_ops,
			     SZ_4K | SZ_2M | SZ_1G, bits);
	mutex_lock(&pv->guest_lock);
	list_add_tail(&own->list, &pv->guest_domains);
	mutex_unlock(&pv->guest_lock);
	if (line >= pv->caps.nr_lines) {
		dev_err(pviommu_dev(pv), "in-flight line %u of context %u: there are %u\n", line,
			own->paging.ctx, pv->caps.nr_lines);
		pviommu_guest_free(&own->paging.domain);
		return ERR_PTR(-EIO);
	}
	own->line = pv->in_flight + line * pv->caps.line_stride;
	if (dirty)
		own->paging.domain.dirty_ops = &pviommu_guest_dirty_ops;
	return &own->paging.domain;

err_table:
	/* no answer may be one that is too late */
	if (pviommu_given_up(pv) && !pviommu_has_ended(pv)) {
		pviommu_guest_keep(pv, own);
		return ERR_PTR(ret);
	}
	pviommu_guest_table_free(&own->table);
err_free:
	kfree(own);
	return ERR_PTR(ret);
}

/* What can be reached through the tables of all domains. */
u64 pviommu_guest_mapped_pages(struct pviommu *pv)
{
	const u64 end = BIT_ULL(PVIOMMU_SS_ADDRESS_BITS - PVIOMMU_PAGE_SHIFT) - 1;
	struct pviommu_guest_domain *own;
	const struct pviommu_range *dfns;
	u64 count = 0;

	mutex_lock(&pv->guest_lock);
	list_for_each_entry(own, &pv->guest_domains, list)
		for (dfns = pv->dfns.ranges; dfns < pv->dfns.ranges + pv->dfns.nr; dfns++)
			if (dfns->start <= min(dfns->last, end))
				count += pviommu_guest_table_count(&own->table, dfns->start,
								   min(dfns->last, end));
	mutex_unlock(&pv->guest_lock);
	return count;
}

/* of iommu_dirty_bitmap_record() */
PVIOMMU_IMPORT(IOMMUFD);
