// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the functions behind it, as the IOMMU core sees them.
 *
 * The identity domain is context 0. In the blocked domain, also that of released devices, a
 * function is in no context and reaches nothing, no direct region either. Neither allocates
 * anything, nor can it be refused for what other functions have.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/delay.h>
#include <linux/device.h>
#include <linux/slab.h>

#include "pviommu.h"

#define PVIOMMU_LOCK_AGAIN_MS	1

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

/* Has a function reach nothing until it is attached again. */
static int pviommu_block(struct pviommu_endpoint *ep, struct iommu_domain *domain)
{
	int ret;

	mutex_lock(&ep->pv->lock);
	ret = pviommu_op_block(ep->pv, ep->sbdf);
	if (!ret) {
		ep->domain = domain;
		ep->confined = true;
	}
	mutex_unlock(&ep->pv->lock);
	if (!ret)
		return 0;
	if (pviommu_given_up(ep->pv))
		return pviommu_attach_given_up(ep, domain);
	dev_err(ep->dev, "block failed: %pe\n", ERR_PTR(ret));
	return pviommu_attach_error(ret);
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
	return pviommu_block(dev_iommu_priv_get(dev), domain);
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
 * Where a function leaves the IOMMU. Not the domain above: the core knows that one to have no
 * direct regions, and would put a function that has some into identity instead.
 */
static struct iommu_domain pviommu_release_domain = {
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
	/* its driver is shut down first, whichever of the two functions was found first */
	if (!device_link_add(&pdev->dev, pviommu_dev(pv), DL_FLAG_STATELESS)) {
		pviommu_op_unbind(pv, ep->sbdf);
		kfree(ep);
		return ERR_PTR(-ENOMEM);
	}
	refcount_inc(&pv->users);
	__set_bit(0, &ep->probing);
	INIT_LIST_HEAD(&ep->locked);
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
	pv = pviommu_probe_begin(instance);
	if (!pv)
		return ERR_PTR(-ENODEV);
	ep = pdev == pv->pdev ? ERR_PTR(-ENODEV) : pviommu_endpoint_add(pv, pdev, stream);
	if (IS_ERR(ep)) {
		pviommu_probe_end(pv);
		return ERR_CAST(ep);
	}
	dev_iommu_priv_set(dev, ep);
	return &pv->iommu;
}

/* The core has the function, or has given it up. */
static void pviommu_probed(struct pviommu_endpoint *ep)
{
	if (test_and_clear_bit(0, &ep->probing))
		pviommu_probe_end(ep->pv);
}

/* Also called for functions that were probed before. */
static void pviommu_probe_finalize(struct device *dev)
{
	pviommu_probed(dev_iommu_priv_get(dev));
}

/* One that is not locked, or still has a driver, is the last entry of @locked. */
static bool pviommu_try_lock(struct pviommu *pv, struct list_head *locked)
{
	struct pviommu_endpoint *ep;

	list_for_each_entry(ep, &pv->endpoints, list) {
		if (!device_trylock(ep->dev))
			return false;
		list_add_tail(&ep->locked, locked);
		if (device_is_bound(ep->dev))
			return false;
	}
	return true;
}

/* Unlocks all; returns one that has a driver, to be given back with put_device(), or NULL. */
static struct device *pviommu_unlock_bound(struct list_head *locked)
{
	struct pviommu_endpoint *ep, *next;
	struct device *bound = NULL;

	list_for_each_entry_safe(ep, next, locked, locked) {
		if (device_is_bound(ep->dev))
			bound = get_device(ep->dev);
		list_del_init(&ep->locked);
		device_unlock(ep->dev);
	}
	return bound;
}

/**
 * pviommu_lock_endpoints - unbinds the drivers of all functions behind the PV-IOMMU
 * @pv: the PV-IOMMU, which finds no more functions
 * @locked: gets the functions
 *
 * A driver would be left with mappings and no domain. The functions stay locked, so that no driver
 * binds before the IOMMU core has let go of them. Managed device links would do that too, but after
 * a driver that the driver core has put off for such a link the next one waits for it forever.
 */
void pviommu_lock_endpoints(struct pviommu *pv, struct list_head *locked)
{
	struct pviommu_endpoint *ep;
	struct device *bound;
	bool done;

	do {
		bound = NULL;
		mutex_lock(&pv->lock);
		done = pviommu_try_lock(pv, locked);
		if (!done)
			bound = pviommu_unlock_bound(locked);
		mutex_unlock(&pv->lock);
		if (bound) {
			device_release_driver(bound);
			put_device(bound);
		} else if (!done) {
			/* somebody else has locked one, maybe all of a bus and this one as well */
			msleep(PVIOMMU_LOCK_AGAIN_MS);
		}
	} while (!done);
	list_for_each_entry(ep, locked, locked)
		get_device(ep->dev);
}

/* Ends what pviommu_lock_endpoints() began. They are endpoints no more. */
void pviommu_unlock_endpoints(struct list_head *locked)
{
	struct pviommu_endpoint *ep, *next;

	list_for_each_entry_safe(ep, next, locked, locked) {
		device_unlock(ep->dev);
		put_device(ep->dev);
		kfree(ep);
	}
}

static void pviommu_release_device(struct device *dev)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	struct pviommu *pv = ep->pv;
	bool locked;
	int ret;

	mutex_lock(&pv->lock);
	list_del(&ep->list);
	locked = !list_empty(&ep->locked);
	mutex_unlock(&pv->lock);
	atomic_dec(&pv->nr_endpoints);
	ret = pviommu_op_unbind(pv, ep->sbdf);
	if (ret && !pviommu_given_up(pv))
		dev_err(dev, "unbind from stream %u failed: %pe\n", ep->stream, ERR_PTR(ret));
	/* by name: the link of a function that is being removed is gone already */
	device_link_remove(dev, pviommu_dev(pv));
	pviommu_probed(ep);
	if (!locked)
		kfree(ep);
	pviommu_put(pv);
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
