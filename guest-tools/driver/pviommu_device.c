// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the functions behind it, as the IOMMU core sees them.
 *
 * The identity domain is context 0; the blocked domain, also that of released devices, is a context
 * that stays empty and was allocated when the driver bound, so attaching either allocates nothing.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/device.h>
#include <linux/slab.h>

#include "pviommu.h"

/* The error of an attach, of those that the core documents, for one of the device. */
static int pviommu_attach_error(int error)
{
	switch (error) {
	case -EINVAL:
	case -ENOMEM:
	case -ENOSPC:
	case -EBUSY:
		return error;
	case -EADDRINUSE:
		/* a reserved region of the function is mapped to something else */
		return -EINVAL;
	default:
		return -ENODEV;
	}
}

/* Moves a function to a context. Why it failed is logged, but once only for a device given up. */
int pviommu_attach(struct pviommu_endpoint *ep, struct iommu_domain *domain, u16 ctx)
{
	int ret;

	mutex_lock(&ep->pv->lock);
	/* if it fails, it may have moved or not */
	ep->confined = ep->confined && ctx != PVIOMMU_DEFAULT_CONTEXT;
	ret = pviommu_op_reattach(ep->pv, ep->sbdf, ctx);
	if (!ret) {
		ep->domain = domain;
		ep->confined = ctx != PVIOMMU_DEFAULT_CONTEXT;
	}
	mutex_unlock(&ep->pv->lock);
	if (!ret)
		return 0;
	if (!pviommu_given_up(ep->pv))
		dev_err(ep->dev, "reattach to context %u failed: %pe\n", ctx, ERR_PTR(ret));
	return pviommu_attach_error(ret);
}

/* A domain is about to be freed: no event is reported to it any more. */
void pviommu_forget_domain(struct pviommu *pv, struct iommu_domain *domain)
{
	struct pviommu_endpoint *ep;

	mutex_lock(&pv->lock);
	list_for_each_entry(ep, &pv->endpoints, list)
		if (ep->domain == domain)
			ep->domain = NULL;
	mutex_unlock(&pv->lock);
}

static int pviommu_identity_attach(PVIOMMU_ATTACH_PARAMETERS)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);

	/* where context 0 is configured to block there is no identity */
	if (!ep->pv->caps.identity_default)
		return -EINVAL;
	/* nor does a device that was given up become one: what it may still do is not identity */
	return pviommu_attach(ep, domain, PVIOMMU_DEFAULT_CONTEXT);
}

static int pviommu_blocked_attach(PVIOMMU_ATTACH_PARAMETERS)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	int ret = pviommu_attach(ep, domain, ep->pv->blocked_ctx);

	return ret && pviommu_given_up(ep->pv) ? pviommu_attach_given_up(ep, domain) : ret;
}

static const struct iommu_domain_ops pviommu_identity_ops = {
	.attach_dev = pviommu_identity_attach,
};

static const struct iommu_domain_ops pviommu_blocked_ops = {
	.attach_dev = pviommu_blocked_attach,
};

static struct iommu_domain pviommu_identity_domain = {
	.type = IOMMU_DOMAIN_IDENTITY,
	.ops = &pviommu_identity_ops,
};

static struct iommu_domain pviommu_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &pviommu_blocked_ops,
};

static struct pviommu_endpoint *pviommu_endpoint_add(struct pviommu *pv, struct pci_dev *pdev,
						     u32 stream)
{
	struct pviommu_endpoint *ep;
	int ret;

	ep = kzalloc(sizeof(*ep), GFP_KERNEL);
	if (!ep)
		return ERR_PTR(-ENOMEM);
	ep->pv = pv;
	ep->dev = &pdev->dev;
	ep->stream = stream;
	ep->sbdf = pviommu_sbdf(pdev);
	ret = pviommu_op_bind(pv, ep->sbdf, stream);
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
static struct iommu_device *pviommu_probe_device(struct device *dev)
{
	struct pviommu_endpoint *ep;
	struct pci_dev *pdev;
	u32 instance, stream;
	struct pviommu *pv;

	if (!dev_is_pci(dev))
		return ERR_PTR(-ENODEV);
	pdev = to_pci_dev(dev);
	if (pviommu_endpoint_capability(pdev, &instance, &stream))
		return ERR_PTR(-ENODEV);
	pv = pviommu_find(instance);
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
	ep = pviommu_endpoint_add(pv, pdev, stream);
	if (IS_ERR(ep))
		return ERR_CAST(ep);
	dev_iommu_priv_set(dev, ep);
	return &pv->iommu;
}

/* A function behind the PV-IOMMU that has a driver, or NULL; to be given back with put_device(). */
static struct device *pviommu_next_bound(struct pviommu *pv)
{
	struct device *found = NULL;
	struct pviommu_endpoint *ep;

	mutex_lock(&pv->lock);
	list_for_each_entry(ep, &pv->endpoints, list) {
		if (device_is_bound(ep->dev)) {
			found = get_device(ep->dev);
			break;
		}
	}
	mutex_unlock(&pv->lock);
	return found;
}

/*
 * Unbinds the drivers of all functions behind the PV-IOMMU, which would be left with mappings and
 * no domain. A device link would have the driver core do it, but that writes to a link of
 * DL_FLAG_AUTOREMOVE_SUPPLIER after dropping it.
 */
void pviommu_release_drivers(struct pviommu *pv)
{
	struct device *dev;

	while ((dev = pviommu_next_bound(pv))) {
		device_release_driver(dev);
		put_device(dev);
	}
}

static void pviommu_release_device(struct device *dev)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	struct pviommu *pv = ep->pv;
	int ret;

	mutex_lock(&pv->lock);
	list_del(&ep->list);
	mutex_unlock(&pv->lock);
	atomic_dec(&pv->nr_endpoints);
	ret = pviommu_op_unbind(pv, ep->sbdf);
	if (ret && !pviommu_given_up(pv))
		dev_err(dev, "unbind from stream %u failed: %pe\n", ep->stream, ERR_PTR(ret));
	kfree(ep);
}

/*
 * The device tells functions apart by stream, whatever PCI topology the hypervisor shows, and it
 * lets none reach another's BARs: ACS and aliases are of no concern, each function is a group.
 */
static struct iommu_group *pviommu_device_group(struct device *dev)
{
	return generic_device_group(dev);
}

static void pviommu_get_resv_regions(struct device *dev, struct list_head *head)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	const struct pviommu_capabilities *caps = &ep->pv->caps;
	struct iommu_resv_region *region;
	unsigned int i;

	for (i = 0; i < caps->nr_reserved; i++) {
		const struct pviommu_reserved *entry = &caps->reserved[i];
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

static bool pviommu_capable(struct device *dev, enum iommu_cap cap)
{
	return cap == IOMMU_CAP_CACHE_COHERENCY || cap == IOMMU_CAP_DEFERRED_FLUSH;
}

static int pviommu_def_domain_type(struct device *dev)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);

	return ep->pv->caps.identity_default ? 0 : IOMMU_DOMAIN_DMA;
}

const struct iommu_ops pviommu_ops = {
	.owner = THIS_MODULE,
	.identity_domain = &pviommu_identity_domain,
	.blocked_domain = &pviommu_blocked_domain,
	.release_domain = &pviommu_blocked_domain,
	.capable = pviommu_capable,
	.domain_alloc_paging = pviommu_domain_alloc_paging,
	.probe_device = pviommu_probe_device,
	.release_device = pviommu_release_device,
	.device_group = pviommu_device_group,
	.get_resv_regions = pviommu_get_resv_regions,
	.def_domain_type = pviommu_def_domain_type,
	.default_domain_ops = &pviommu_domain_ops,
};
