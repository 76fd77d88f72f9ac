// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the functions behind it, as the IOMMU core sees them.
 *
 * The identity domain is context 0. In the blocked domain, also that of released devices, a function
 * is in no context and reaches nothing, no direct region either. Neither allocates anything, nor can
 * it be refused for what other functions have.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/device.h>
#include <linux/slab.h>

#include "pviommu.h"

/* Moves a function to a context. Why it failed is logged, but once only for a device given up. */
int pviommu_attach(struct pviommu_endpoint *ep, struct iommu_domain *domain, u16 ctx)
{
	int ret;

	mutex_lock(&ep->pv->lock);
	ret = pviommu_op_reattach(ep->pv, ep->sbdf, ctx);
	if (!ret)
		ep->domain = domain;
	mutex_unlock(&ep->pv->lock);
	if (ret && !pviommu_given_up(ep->pv))
		dev_err(ep->dev, "reattach to context %u failed: %pe\n", ctx, ERR_PTR(ret));
	return ret;
}

/* Has a function reach nothing until it is attached again. */
static int pviommu_block(struct pviommu_endpoint *ep, struct iommu_domain *domain)
{
	int ret;

	mutex_lock(&ep->pv->lock);
	ret = pviommu_op_block(ep->pv, ep->sbdf);
	if (!ret)
		ep->domain = domain;
	mutex_unlock(&ep->pv->lock);
	if (ret && !pviommu_given_up(ep->pv))
		dev_err(ep->dev, "block failed: %pe\n", ERR_PTR(ret));
	return ret;
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
	int ret = pviommu_block(ep, domain);

	/* the core has nowhere else to go, and nobody will hand this device memory again */
	return ret && pviommu_given_up(ep->pv) ? 0 : ret;
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

/*
 * Where a function leaves the IOMMU. Not the one above: the core knows that that one has no direct
 * regions, and would put a function that has some into identity instead.
 */
static struct iommu_domain pviommu_release_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &pviommu_blocked_ops,
};

/*
 * Has the driver core unbind, and shut down, the function's driver before that of the PV-IOMMU, and
 * bind none meanwhile.
 *
 * When it unbinds a supplier it gives the link back and writes to it after that, so the link needs
 * one more reference. Nobody can tell when to give that back: it goes with either device. Until
 * then it means nothing but the order, and the next managed link is the same one.
 */
static int pviommu_link(struct pviommu_endpoint *ep)
{
	struct device *supplier = pviommu_dev(ep->pv);

	ep->link = device_link_add(ep->dev, supplier, DL_FLAG_AUTOREMOVE_SUPPLIER);
	if (!ep->link)
		return -ENOMEM;
	if (kref_read(&ep->link->kref) == 1)
		device_link_add(ep->dev, supplier, DL_FLAG_STATELESS);
	return 0;
}

/* A link to a PV-IOMMU whose driver does not bind after all would keep other drivers away. */
static void pviommu_unlink(struct pviommu_endpoint *ep)
{
	unsigned int references = kref_read(&ep->link->kref);

	while (references--)
		device_link_del(ep->link);
}

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
	ret = pviommu_link(ep);
	if (ret) {
		pviommu_op_unbind(pv, ep->sbdf);
		kfree(ep);
		return ERR_PTR(ret);
	}
	__set_bit(0, &ep->probing);
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
	/* the PV-IOMMU has the capability too, but its own DMA is not translated */
	if (stream == PVIOMMU_GLOBAL_STREAM)
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
	pv = pviommu_get(instance);
	if (!pv)
		return ERR_PTR(-ENODEV);
	ep = pdev == pv->pdev ? ERR_PTR(-ENODEV) : pviommu_endpoint_add(pv, pdev, stream);
	if (IS_ERR(ep)) {
		pviommu_put(pv);
		return ERR_CAST(ep);
	}
	dev_iommu_priv_set(dev, ep);
	return &pv->iommu;
}

/* The core has the function, or has given it up: it would find it when the PV-IOMMU goes. */
static void pviommu_probed(struct pviommu_endpoint *ep)
{
	if (test_and_clear_bit(0, &ep->probing))
		pviommu_put(ep->pv);
}

/* Also called for functions that were probed before. */
static void pviommu_probe_finalize(struct device *dev)
{
	pviommu_probed(dev_iommu_priv_get(dev));
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
	if (!pv->registered)
		pviommu_unlink(ep);
	pviommu_probed(ep);
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

/* There is no way to say that memory is short, and half a list would pass for the whole. */
static struct iommu_resv_region *pviommu_resv_region(const struct pviommu_reserved *entry)
{
	enum iommu_resv_type type = IOMMU_RESV_RESERVED;
	int prot = 0;

	if (entry->kind == PVIOMMU_REGION_MSI) {
		type = IOMMU_RESV_MSI;
		prot = IOMMU_WRITE | IOMMU_NOEXEC | IOMMU_MMIO;
	} else if (entry->kind == PVIOMMU_REGION_DIRECT) {
		type = IOMMU_RESV_DIRECT;
		prot = IOMMU_READ | IOMMU_WRITE;
	}
	return iommu_alloc_resv_region(entry->range.start,
				       entry->range.last - entry->range.start + 1, prot, type,
				       GFP_KERNEL | __GFP_NOFAIL);
}

static void pviommu_get_resv_regions(struct device *dev, struct list_head *head)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	const struct pviommu_capabilities *caps = &ep->pv->caps;
	unsigned int i;

	for (i = 0; i < caps->nr_reserved; i++) {
		const struct pviommu_reserved *entry = &caps->reserved[i];

		if (entry->stream != PVIOMMU_GLOBAL_STREAM && entry->stream != ep->stream)
			continue;
		list_add_tail(&pviommu_resv_region(entry)->list, head);
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
	.release_domain = &pviommu_release_domain,
	.capable = pviommu_capable,
	.domain_alloc_paging = pviommu_domain_alloc_paging,
	.probe_device = pviommu_probe_device,
	.probe_finalize = pviommu_probe_finalize,
	.release_device = pviommu_release_device,
	.device_group = pviommu_device_group,
	.get_resv_regions = pviommu_get_resv_regions,
	.def_domain_type = pviommu_def_domain_type,
	.default_domain_ops = &pviommu_domain_ops,
};
