// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the functions behind it, as the IOMMU core sees them.
 *
 * The identity domain is context 0. In the blocked domain, which released devices are in too, a
 * function is in no context and reaches nothing, not even a direct region. Attaching to either
 * allocates nothing and cannot conflict with regions of other functions.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/delay.h>
#include <linux/device.h>
#include <linux/slab.h>

#include "pviommu.h"

#define PVIOMMU_FIRST_ATTACH_TRIES 20
#define PVIOMMU_FIRST_ATTACH_PAUSE_MS 25

/* Converts an errno of the device to one that the core documents for an attach. */
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

/* @first tells whether the function was attached to nothing before. */
static int pviommu_attach_once(struct pviommu_endpoint *ep, struct iommu_domain *domain, u16 ctx,
			       bool *first)
{
	int ret;

	mutex_lock(&ep->pv->lock);
	*first = !ep->domain;
	/* if this fails, the function may have moved or not */
	ep->confined = ep->confined && ctx != PVIOMMU_DEFAULT_CONTEXT;
	ret = pviommu_op_reattach(ep->pv, ep->sbdf, ctx);
	if (!ret) {
		ep->domain = domain;
		ep->confined = ctx != PVIOMMU_DEFAULT_CONTEXT;
	}
	mutex_unlock(&ep->pv->lock);
	return ret;
}

/*
 * Moves a function to a context. Failures are logged, but only once for a device that was given up.
 *
 * The core does not let drivers fail the first attach of a function: it warns, and no function of
 * the IOMMU gets a driver. So if the device has no memory for it, that is waited for, but no longer
 * than half a second: the core holds the group's mutex, and when it probes, one of all devices.
 */
int pviommu_attach(struct pviommu_endpoint *ep, struct iommu_domain *domain, u16 ctx)
{
	unsigned int tries = PVIOMMU_FIRST_ATTACH_TRIES;
	bool first;
	int ret;

	for (;;) {
		ret = pviommu_attach_once(ep, domain, ctx, &first);
		if (ret != -ENOMEM || !first || !--tries)
			break;
		msleep(PVIOMMU_FIRST_ATTACH_PAUSE_MS);
	}
	if (!ret)
		return 0;
	ret = pviommu_attach_error(ret);
	/* errors that a caller may provoke are not logged */
	if (ret == -ENODEV && !pviommu_given_up(ep->pv))
		dev_err(ep->dev, "reattach to context %u failed\n", ctx);
	return ret;
}

/* A domain is about to be freed: events are not reported to it any more. */
void pviommu_forget_domain(struct pviommu *pv, struct iommu_domain *domain)
{
	struct pviommu_endpoint *ep;

	mutex_lock(&pv->lock);
	list_for_each_entry(ep, &pv->endpoints, list)
		if (ep->domain == domain)
			ep->domain = NULL;
	mutex_unlock(&pv->lock);
}

/* Blocks a function: it reaches nothing until it is attached again. */
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

	/* there is no identity domain if context 0 is configured to block */
	if (!ep->pv->caps.identity_default)
		return -EINVAL;
	/* nor for a device that was given up: it cannot move functions to context 0 any more */
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
 * For functions that leave the IOMMU. Not the domain above: the core knows that a blocked domain
 * has no direct regions, and would put a function that has some into identity instead.
 */
static struct iommu_domain pviommu_release_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &pviommu_blocked_ops,
};

static struct pviommu_endpoint *pviommu_endpoint_add(struct pviommu *pv, struct pci_dev *pdev,
						     u32 stream)
{
	struct pviommu_endpoint *ep;
	unsigned long flags;
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
	/* the function's driver is shut down first, whichever of the two was found first */
	if (!device_link_add(&pdev->dev, pviommu_dev(pv), DL_FLAG_STATELESS)) {
		pviommu_op_unbind(pv, ep->sbdf);
		kfree(ep);
		return ERR_PTR(-ENOMEM);
	}
	refcount_inc(&pv->users);
	__set_bit(0, &ep->probing);
	INIT_LIST_HEAD(&ep->locked);
	mutex_lock(&pv->lock);
	spin_lock_irqsave(&pv->bars_lock, flags);
	list_add_tail(&ep->list, &pv->endpoints);
	spin_unlock_irqrestore(&pv->bars_lock, flags);
	mutex_unlock(&pv->lock);
	atomic_inc(&pv->nr_endpoints);
	return ep;
}

/*
 * Any error but -ENODEV makes the registration of the whole IOMMU fail, so devices that are not
 * behind this IOMMU get -ENODEV.
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
	 * A bound driver has untranslated DMA in flight. dev->driver does not tell: it is set
	 * before the bus configures DMA, from where newer kernels may call this function.
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

/* The core has finished probing the function, or has failed to. */
static void pviommu_probed(struct pviommu_endpoint *ep)
{
	if (test_and_clear_bit(0, &ep->probing))
		pviommu_probe_end(ep->pv);
}

/* Also called for functions that were probed earlier. */
static void pviommu_probe_finalize(struct device *dev)
{
	pviommu_probed(dev_iommu_priv_get(dev));
}

/* A function that is not locked yet, to be given back with put_device(), or NULL. */
static struct device *pviommu_next_unlocked(struct pviommu *pv)
{
	struct device *found = NULL;
	struct pviommu_endpoint *ep;

	mutex_lock(&pv->lock);
	list_for_each_entry(ep, &pv->endpoints, list) {
		if (list_empty(&ep->locked)) {
			found = get_device(ep->dev);
			break;
		}
	}
	mutex_unlock(&pv->lock);
	return found;
}

/* Records that a function is locked; false if it is no endpoint any more. */
static bool pviommu_note_locked(struct pviommu *pv, struct device *dev, struct list_head *locked)
{
	struct pviommu_endpoint *ep;
	bool found = false;

	mutex_lock(&pv->lock);
	list_for_each_entry(ep, &pv->endpoints, list) {
		if (ep->dev == dev) {
			list_add_tail(&ep->locked, locked);
			found = true;
			break;
		}
	}
	mutex_unlock(&pv->lock);
	return found;
}

/**
 * pviommu_lock_endpoints - unbinds the drivers of all functions behind the PV-IOMMU
 * @pv: the PV-IOMMU, which probes no more functions
 * @locked: the list that gets the functions
 *
 * A driver would be left with mappings and no domain. The functions stay locked, so that no driver
 * binds before the IOMMU core has released them. Managed device links would do that too, but once
 * the driver core has deferred a probe for such a link, the unbind waits for it forever.
 *
 * This waits for each lock: with trylock, a process that keeps binding drivers could win forever.
 */
void pviommu_lock_endpoints(struct pviommu *pv, struct list_head *locked)
{
	struct device *dev;

	while ((dev = pviommu_next_unlocked(pv))) {
		device_lock(dev);
		if (!device_is_bound(dev) && pviommu_note_locked(pv, dev, locked))
			continue;
		device_unlock(dev);
		device_release_driver(dev);
		put_device(dev);
	}
}

/**
 * pviommu_unlock_endpoints - ends what pviommu_lock_endpoints() began
 * @pv: the PV-IOMMU, which the IOMMU core has released
 * @locked: the list, which keeps those that are no endpoints any more for
 *	pviommu_free_endpoints()
 *
 * An endpoint that is left is being removed: the core leaves it to the remover, which may wait for
 * the lock, and no driver can bind to it any more.
 */
void pviommu_unlock_endpoints(struct pviommu *pv, struct list_head *locked)
{
	struct pviommu_endpoint *ep, *next;

	mutex_lock(&pv->lock);
	list_for_each_entry_safe(ep, next, locked, locked) {
		if (!list_empty(&ep->list))
			list_del_init(&ep->locked);
		device_unlock(ep->dev);
		put_device(ep->dev);
	}
	mutex_unlock(&pv->lock);
}

/* Frees what pviommu_unlock_endpoints() kept. Nobody has a reference to the PV-IOMMU any more. */
void pviommu_free_endpoints(struct list_head *locked)
{
	struct pviommu_endpoint *ep, *next;

	list_for_each_entry_safe(ep, next, locked, locked)
		kfree(ep);
}

static void pviommu_release_device(struct device *dev)
{
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);
	struct pviommu *pv = ep->pv;
	unsigned long flags;
	bool locked;
	int ret;

	mutex_lock(&pv->lock);
	spin_lock_irqsave(&pv->bars_lock, flags);
	list_del_init(&ep->list);
	spin_unlock_irqrestore(&pv->bars_lock, flags);
	locked = !list_empty(&ep->locked);
	mutex_unlock(&pv->lock);
	atomic_dec(&pv->nr_endpoints);
	ret = pviommu_op_unbind(pv, ep->sbdf);
	if (ret && !pviommu_given_up(pv))
		dev_err(dev, "unbind from stream %u failed: %pe\n", ep->stream, ERR_PTR(ret));
	/* by name: if the function is being removed, its link is gone already */
	device_link_remove(dev, pviommu_dev(pv));
	pviommu_probed(ep);
	if (!locked)
		kfree(ep);
	pviommu_put(pv);
}

/*
 * The device tells functions apart by stream, whatever the PCI topology is, and translates every
 * request before it is routed, even to another function's BAR. So ACS and aliases do not matter,
 * and each function has its own group.
 */
static struct iommu_group *pviommu_device_group(struct device *dev)
{
	return generic_device_group(dev);
}

/* This cannot report a lack of memory, and an incomplete list would be taken for a complete one. */
static struct iommu_resv_region *pviommu_resv_region(const struct pviommu_reserved *entry)
{
	enum iommu_resv_type type = IOMMU_RESV_RESERVED;
	int prot = 0;

	if (entry->kind == PVIOMMU_REGION_MSI) {
		type = IOMMU_RESV_MSI;
		prot = PVIOMMU_PROT_MSI;
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
	struct pviommu_endpoint *ep = dev_iommu_priv_get(dev);

	if (cap == IOMMU_CAP_DIRTY_TRACKING)
		return ep->pv->has_tables;
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
	.PVIOMMU_ALLOC_OP = pviommu_domain_alloc_flags,
	.probe_device = pviommu_probe_device,
	.probe_finalize = pviommu_probe_finalize,
	.release_device = pviommu_release_device,
	.device_group = pviommu_device_group,
	.get_resv_regions = pviommu_get_resv_regions,
	.def_domain_type = pviommu_def_domain_type,
};
