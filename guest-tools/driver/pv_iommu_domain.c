// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: domains and devices, as the IOMMU core sees them.
 *
 * A paging domain is a context of its own. The identity domain is context 0; the blocked domain is
 * a context that stays empty.
 */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/slab.h>

#include "pv_iommu.h"

static struct pv_domain *to_pv_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct pv_domain, domain);
}

static int pv_attach(struct pv_endpoint *ep, struct iommu_domain *domain, u16 ctx)
{
	int ret;

	mutex_lock(&ep->pv->lock);
	ret = pv_op_reattach(ep->pv, ep->sbdf, ctx);
	if (!ret)
		ep->domain = domain;
	mutex_unlock(&ep->pv->lock);
	if (ret)
		dev_err(ep->dev, "reattach to context %u failed: %pe\n", ctx, ERR_PTR(ret));
	return ret;
}

#ifdef PV_ATTACH_HAS_OLD
#define PV_ATTACH_PARAMETERS \
	struct iommu_domain *domain, struct device *dev, struct iommu_domain *old
#else
#define PV_ATTACH_PARAMETERS	struct iommu_domain *domain, struct device *dev
#endif

static int pv_identity_attach(PV_ATTACH_PARAMETERS)
{
	struct pv_endpoint *ep = dev_iommu_priv_get(dev);

	/* where context 0 is configured to block there is no identity */
	if (!ep->pv->caps.identity_default)
		return -EINVAL;
	return pv_attach(ep, domain, PVIOMMU_DEFAULT_CONTEXT);
}

static int pv_blocked_attach(PV_ATTACH_PARAMETERS)
{
	struct pv_endpoint *ep = dev_iommu_priv_get(dev);

	return pv_attach(ep, domain, ep->pv->blocked_ctx);
}

static int pv_domain_attach(PV_ATTACH_PARAMETERS)
{
	struct pv_endpoint *ep = dev_iommu_priv_get(dev);
	struct pv_domain *own = to_pv_domain(domain);

	if (own->pv != ep->pv)
		return -EINVAL;
	return pv_attach(ep, domain, own->ctx);
}

static int pv_domain_map(struct iommu_domain *domain, unsigned long iova, phys_addr_t paddr,
			 size_t pgsize, size_t pgcount, int prot, gfp_t gfp, size_t *mapped)
{
	u64 dfn = iova >> PVIOMMU_PAGE_SHIFT, gfn = paddr >> PVIOMMU_PAGE_SHIFT;
	u64 left = (u64)pgsize * pgcount >> PVIOMMU_PAGE_SHIFT;
	struct pv_domain *own = to_pv_domain(domain);
	u32 flags = 0, chunk, done;
	int ret;

	if (prot & IOMMU_READ)
		flags |= PVIOMMU_MAP_READABLE;
	if (prot & IOMMU_WRITE)
		flags |= PVIOMMU_MAP_WRITEABLE;
	if (!flags)
		return -EINVAL;
	ret = pv_table_prepare(&own->table, dfn, left, gfp);
	while (left && !ret) {
		chunk = min_t(u64, left, own->pv->caps.max_nr_pages);
		ret = pv_op_map(own->pv, own->ctx, dfn, gfn, chunk, flags, &done);
		if (!ret && done != chunk)
			ret = -EIO;
		pv_table_set(&own->table, dfn, gfn, done);
		*mapped += (size_t)done << PVIOMMU_PAGE_SHIFT;
		dfn += done;
		gfn += done;
		left -= done;
	}
	return ret;
}

static size_t pv_domain_unmap(struct iommu_domain *domain, unsigned long iova, size_t pgsize,
			      size_t pgcount, struct iommu_iotlb_gather *gather)
{
	u64 wanted = (u64)pgsize * pgcount >> PVIOMMU_PAGE_SHIFT;
	struct pv_domain *own = to_pv_domain(domain);
	u64 dfn = iova >> PVIOMMU_PAGE_SHIFT;
	u64 run = pv_table_run(&own->table, dfn, wanted);
	size_t unmapped = 0;
	u32 chunk, done;
	int ret = 0;

	while (run && !ret) {
		chunk = min_t(u64, run, own->pv->caps.max_nr_pages);
		ret = pv_op_unmap(own->pv, own->ctx, dfn, chunk, &done);
		pv_table_clear(&own->table, dfn, done);
		if (done != chunk) {
			/* that the device was given up is logged already */
			if (ret != -EIO)
				dev_err_ratelimited(pv_dev(own->pv),
						    "unmap ctx %u dfn %#llx+%u: unmapped %u: %pe\n",
						    own->ctx, dfn, chunk, done, ERR_PTR(ret));
			ret = ret ?: -EIO;
		}
		unmapped += (size_t)done << PVIOMMU_PAGE_SHIFT;
		dfn += done;
		run -= done;
	}
	return unmapped;
}

static phys_addr_t pv_domain_iova_to_phys(struct iommu_domain *domain, dma_addr_t iova)
{
	struct pv_domain *own = to_pv_domain(domain);
	u64 gfn;

	if (!pv_table_lookup(&own->table, iova >> PVIOMMU_PAGE_SHIFT, &gfn))
		return 0;
	return (gfn << PVIOMMU_PAGE_SHIFT) | (iova & (BIT(PVIOMMU_PAGE_SHIFT) - 1));
}

static void pv_domain_free(struct iommu_domain *domain)
{
	struct pv_domain *own = to_pv_domain(domain);
	int ret = pv_op_free_context(own->pv, own->ctx);

	if (ret)
		dev_err(pv_dev(own->pv), "free of context %u failed: %pe\n", own->ctx,
			ERR_PTR(ret));
	pv_table_free(&own->table);
	atomic_dec(&own->pv->nr_domains);
	kfree(own);
}

static const struct iommu_domain_ops pv_identity_ops = {
	.attach_dev = pv_identity_attach,
};

static const struct iommu_domain_ops pv_blocked_ops = {
	.attach_dev = pv_blocked_attach,
};

static const struct iommu_domain_ops pv_domain_ops = {
	.attach_dev = pv_domain_attach,
	.map_pages = pv_domain_map,
	.unmap_pages = pv_domain_unmap,
	.iova_to_phys = pv_domain_iova_to_phys,
	.free = pv_domain_free,
};

static struct iommu_domain pv_identity_domain = {
	.type = IOMMU_DOMAIN_IDENTITY,
	.ops = &pv_identity_ops,
};

static struct iommu_domain pv_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &pv_blocked_ops,
};

static struct iommu_domain *pv_domain_alloc_paging(struct device *dev)
{
	struct pv_endpoint *ep = dev_iommu_priv_get(dev);
	struct pv_iommu *pv = ep->pv;
	struct pv_domain *own;
	int ret;

	own = kzalloc(sizeof(*own), GFP_KERNEL);
	if (!own)
		return ERR_PTR(-ENOMEM);
	own->pv = pv;
	ret = pv_table_init(&own->table, pv->caps.aperture_bits, &pv->nr_tables);
	if (ret)
		goto err_free;
	ret = pv_op_alloc_context(pv, &own->ctx);
	if (ret) {
		dev_err(pv_dev(pv), "no context for a domain: %pe\n", ERR_PTR(ret));
		goto err_table;
	}
	own->domain.pgsize_bitmap = pv->caps.page_sizes;
	own->domain.geometry.aperture_start = 0;
	own->domain.geometry.aperture_end = DMA_BIT_MASK(pv->caps.aperture_bits);
	own->domain.geometry.force_aperture = true;
	atomic_inc(&pv->nr_domains);
	return &own->domain;

err_table:
	pv_table_free(&own->table);
err_free:
	kfree(own);
	return ERR_PTR(ret);
}

static struct pv_endpoint *pv_endpoint_add(struct pv_iommu *pv, struct pci_dev *pdev, u32 stream)
{
	struct pv_endpoint *ep;
	int ret;

	ep = kzalloc(sizeof(*ep), GFP_KERNEL);
	if (!ep)
		return ERR_PTR(-ENOMEM);
	ep->pv = pv;
	ep->dev = &pdev->dev;
	ep->stream = stream;
	ep->sbdf = pv_sbdf(pdev);
	ret = pv_op_bind(pv, ep->sbdf, stream);
	if (ret) {
		dev_err(&pdev->dev, "bind to stream %u failed: %pe\n", stream, ERR_PTR(ret));
		kfree(ep);
		return ERR_PTR(-ENODEV);
	}
	mutex_lock(&pv->lock);
	list_add_tail(&ep->list, &pv->endpoints);
	mutex_unlock(&pv->lock);
	atomic_inc(&pv->nr_endpoints);
	return ep;
}

/*
 * Anything but -ENODEV makes the registration of the whole IOMMU fail, so that is what devices get
 * that are none of ours.
 */
static struct iommu_device *pv_probe_device(struct device *dev)
{
	struct pv_endpoint *ep;
	struct pci_dev *pdev;
	u32 instance, stream;
	struct pv_iommu *pv;

	if (!dev_is_pci(dev))
		return ERR_PTR(-ENODEV);
	pdev = to_pci_dev(dev);
	if (pv_endpoint_capability(pdev, &instance, &stream))
		return ERR_PTR(-ENODEV);
	pv = pv_iommu_find(instance);
	/* the PV-IOMMU has the capability too, but its own DMA is not translated */
	if (!pv || pdev == pv->pdev || stream == PVIOMMU_GLOBAL_STREAM)
		return ERR_PTR(-ENODEV);
	/*
	 * A bound driver has untranslated DMA in flight. dev->driver will not do: it is set before
	 * the bus configures DMA, from where newer kernels may call this function.
	 */
	if (device_is_bound(dev)) {
		dev_warn(dev, "driver %s was bound before the IOMMU came: left untranslated\n",
			 dev_driver_string(dev));
		return ERR_PTR(-ENODEV);
	}
	ep = pv_endpoint_add(pv, pdev, stream);
	if (IS_ERR(ep))
		return ERR_CAST(ep);
	dev_iommu_priv_set(dev, ep);
	/*
	 * The link has the driver core unbind the endpoint's driver before the PV-IOMMU's: without
	 * it, unbinding the PV-IOMMU would leave a driver with mappings and no domain.
	 */
	if (!device_link_add(dev, pv_dev(pv), DL_FLAG_AUTOREMOVE_SUPPLIER))
		dev_warn(dev, "no device link: unbind this driver before the PV-IOMMU's\n");
	return &pv->iommu;
}

static void pv_release_device(struct device *dev)
{
	struct pv_endpoint *ep = dev_iommu_priv_get(dev);
	struct pv_iommu *pv = ep->pv;
	int ret;

	mutex_lock(&pv->lock);
	list_del(&ep->list);
	mutex_unlock(&pv->lock);
	atomic_dec(&pv->nr_endpoints);
	ret = pv_op_unbind(pv, ep->sbdf);
	if (ret)
		dev_err(dev, "unbind from stream %u failed: %pe\n", ep->stream, ERR_PTR(ret));
	dev_iommu_priv_set(dev, NULL);
	kfree(ep);
}

/*
 * The device tells functions apart by stream, whatever PCI topology the hypervisor shows, and it
 * lets none reach another's BARs: ACS and aliases are of no concern, each function is a group.
 */
static struct iommu_group *pv_device_group(struct device *dev)
{
	return generic_device_group(dev);
}

static void pv_get_resv_regions(struct device *dev, struct list_head *head)
{
	struct pv_endpoint *ep = dev_iommu_priv_get(dev);
	const struct pv_capabilities *caps = &ep->pv->caps;
	struct iommu_resv_region *region;
	unsigned int i;

	for (i = 0; i < caps->nr_reserved; i++) {
		const struct pv_reserved *entry = &caps->reserved[i];
		bool msi = entry->kind == PVIOMMU_REGION_MSI;

		if (entry->stream != PVIOMMU_GLOBAL_STREAM && entry->stream != ep->stream)
			continue;
		region = iommu_alloc_resv_region(entry->range.start,
						 entry->range.last - entry->range.start + 1,
						 msi ? IOMMU_WRITE | IOMMU_NOEXEC | IOMMU_MMIO : 0,
						 msi ? IOMMU_RESV_MSI : IOMMU_RESV_RESERVED,
						 GFP_KERNEL);
		if (!region)
			return;
		list_add_tail(&region->list, head);
	}
}

/* No deferred flush: an unmap is over only when no DMA can use the old translation. */
static bool pv_capable(struct device *dev, enum iommu_cap cap)
{
	return cap == IOMMU_CAP_CACHE_COHERENCY;
}

static int pv_def_domain_type(struct device *dev)
{
	struct pv_endpoint *ep = dev_iommu_priv_get(dev);

	return ep->pv->caps.identity_default ? 0 : IOMMU_DOMAIN_DMA;
}

const struct iommu_ops pv_iommu_ops = {
	.owner = THIS_MODULE,
	.identity_domain = &pv_identity_domain,
	.blocked_domain = &pv_blocked_domain,
	.release_domain = &pv_blocked_domain,
	.capable = pv_capable,
	.domain_alloc_paging = pv_domain_alloc_paging,
	.probe_device = pv_probe_device,
	.release_device = pv_release_device,
	.device_group = pv_device_group,
	.get_resv_regions = pv_get_resv_regions,
	.def_domain_type = pv_def_domain_type,
	.default_domain_ops = &pv_domain_ops,
};
