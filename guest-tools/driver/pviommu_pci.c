// SPDX-License-Identifier: GPL-2.0-only
/* Paravirtual IOMMU: the PCI function. */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/pm.h>
#include <linux/slab.h>

#include "pviommu.h"

/* base system peripheral, IOMMU; linux/pci_ids.h has no name for it */
#define PVIOMMU_CLASS_IOMMU	0x080600
#define PVIOMMU_CLASS_MASK	0xffffff
#define PVIOMMU_PROBE_TIMEOUT	(10 * HZ)

static char *profile = "xen-2024";
module_param(profile, charp, 0444);
MODULE_PARM_DESC(profile, "interface of the device to use: xen-2024 or xen-v7");

static LIST_HEAD(pviommus);
static DEFINE_MUTEX(pviommus_lock);

void pviommu_put(struct pviommu *pv)
{
	if (refcount_dec_and_test(&pv->users))
		complete(&pv->unused);
}

/*
 * The PV-IOMMU of a function that the IOMMU core is probing, or NULL. If the PV-IOMMU were
 * unregistered now, the core would not find this function yet, so that waits for
 * pviommu_probe_end().
 */
struct pviommu *pviommu_probe_begin(u32 instance)
{
	struct pviommu *pv, *found = NULL;

	mutex_lock(&pviommus_lock);
	list_for_each_entry(pv, &pviommus, list)
		if (pv->instance == instance)
			found = pv;
	if (found) {
		refcount_inc(&found->users);
		atomic_inc(&found->nr_probing);
	}
	mutex_unlock(&pviommus_lock);
	return found;
}

void pviommu_probe_end(struct pviommu *pv)
{
	if (atomic_dec_and_test(&pv->nr_probing))
		wake_up_all(&pv->probed);
	pviommu_put(pv);
}

struct pviommu *pviommu_get_first(void)
{
	struct pviommu *pv;

	mutex_lock(&pviommus_lock);
	pv = list_first_entry_or_null(&pviommus, struct pviommu, list);
	if (pv)
		refcount_inc(&pv->users);
	mutex_unlock(&pviommus_lock);
	return pv;
}

static int pviommu_list(struct pviommu *pv)
{
	struct pviommu *other;
	int ret = 0;

	mutex_lock(&pviommus_lock);
	list_for_each_entry(other, &pviommus, list)
		if (other->instance == pv->instance)
			ret = -EEXIST;
	if (!ret)
		list_add_tail(&pv->list, &pviommus);
	mutex_unlock(&pviommus_lock);
	if (ret)
		dev_err(pviommu_dev(pv), "there is a PV-IOMMU %u already\n", pv->instance);
	return ret;
}

/* Takes the PV-IOMMU off the list and waits until no function is being probed. */
static void pviommu_unlist(struct pviommu *pv)
{
	mutex_lock(&pviommus_lock);
	list_del(&pv->list);
	mutex_unlock(&pviommus_lock);
	/*
	 * if the core fails to register another IOMMU, it does not finalize all that it has probed
	 */
	wait_event_timeout(pv->probed, !atomic_read(&pv->nr_probing), PVIOMMU_PROBE_TIMEOUT);
}

/* Gives the driver's reference back, and waits for all others. */
static void pviommu_wait_unused(struct pviommu *pv)
{
	pviommu_put(pv);
	wait_for_completion(&pv->unused);
}

/* Maps the registers and the shared memory. */
static int pviommu_map_bars(struct pviommu *pv)
{
	struct pci_dev *pdev = pv->pdev;

	if (pci_resource_len(pdev, PVIOMMU_REGISTER_BAR) < PVIOMMU_REGISTER_BAR_SIZE ||
	    pci_resource_len(pdev, PVIOMMU_SHARED_BAR) < PVIOMMU_SHARED_BAR_SIZE) {
		dev_err(&pdev->dev, "BAR %d or BAR %d is too small\n", PVIOMMU_REGISTER_BAR,
			PVIOMMU_SHARED_BAR);
		return -ENODEV;
	}
	pv->regs = pci_iomap(pdev, PVIOMMU_REGISTER_BAR, 0);
	if (!pv->regs)
		return -ENOMEM;
	/* This is memory of the host: it is cached and ordered like all other memory. */
	pv->shared = memremap(pci_resource_start(pdev, PVIOMMU_SHARED_BAR),
			      PVIOMMU_SHARED_BAR_SIZE, MEMREMAP_WB);
	if (!pv->shared) {
		pci_iounmap(pdev, pv->regs);
		return -ENOMEM;
	}
	return 0;
}

static void pviommu_unmap_bars(struct pviommu *pv)
{
	memunmap(pv->shared);
	pci_iounmap(pv->pdev, pv->regs);
}

static int pviommu_identify(struct pviommu *pv)
{
	u32 magic = readl(pv->regs + PVIOMMU_REG_MAGIC);
	u32 version = readl(pv->regs + PVIOMMU_REG_VERSION);
	u32 features = readl(pv->regs + PVIOMMU_REG_FEATURES);

	if (magic != PVIOMMU_MAGIC || version != PVIOMMU_ABI_VERSION) {
		dev_err(pviommu_dev(pv), "not a PV-IOMMU of version %d: magic %#x, version %u\n",
			PVIOMMU_ABI_VERSION, magic, version);
		return -ENODEV;
	}
	if (!(features & pv->profile->feature)) {
		dev_err(pviommu_dev(pv), "the device does not have profile %s: features %#x\n",
			pv->profile->name, features);
		return -ENODEV;
	}
	pv->caps.features = features;
	pv->instance = readl(pv->regs + PVIOMMU_REG_INSTANCE);
	return 0;
}

/*
 * From any state to running rings: an earlier driver or kernel may not have shut the device down.
 */
static int pviommu_start(struct pviommu *pv)
{
	int ret;

	writel(PVIOMMU_RESET_POWER_ON, pv->regs + PVIOMMU_REG_RESET);
	pviommu_events_init(pv);
	writel(pv->profile->number, pv->regs + PVIOMMU_REG_PROFILE);
	if (readl(pv->regs + PVIOMMU_REG_PROFILE) != pv->profile->number) {
		dev_err(pviommu_dev(pv), "the device refused profile %s\n", pv->profile->name);
		return -EIO;
	}
	ret = pviommu_capabilities_read(pv) ?: pviommu_guest_choose(pv);
	if (ret)
		return ret;
	ret = pviommu_rings_init(pv);
	if (ret)
		return ret;
	return pviommu_rings_start(pv);
}

static void pviommu_stop(struct pviommu *pv)
{
	pviommu_give_up_finish(pv);
	pviommu_rings_stop(pv);
	pviommu_reset(pv, PVIOMMU_RESET_POWER_ON);
	pviommu_guest_end(pv);
}

/* Registers the running device with the IOMMU core, which probes all its endpoints at once. */
static int pviommu_register(struct pviommu *pv)
{
	int ret;

	ret = pviommu_op_init(pv);
	if (ret) {
		dev_err(pviommu_dev(pv), "init of profile %s failed: %pe\n", pv->profile->name,
			ERR_PTR(ret));
		return ret;
	}
	pviommu_debugfs_add(pv);
	ret = iommu_device_sysfs_add(&pv->iommu, pviommu_dev(pv), NULL, "%s-%s", KBUILD_MODNAME,
				     pci_name(pv->pdev));
	if (ret)
		goto err_debugfs;
	ret = pviommu_list(pv);
	if (ret)
		goto err_sysfs;
	/*
	 * No hwdev: the core then uses this IOMMU for all functions that firmware does not
	 * describe.
	 */
	ret = iommu_device_register(&pv->iommu, &pviommu_ops, NULL);
	if (ret)
		goto err_unlist;
	return 0;

err_unlist:
	pviommu_unlist(pv);
	pviommu_wait_unused(pv);
err_sysfs:
	iommu_device_sysfs_remove(&pv->iommu);
err_debugfs:
	pviommu_debugfs_remove(pv);
	return ret;
}

/*
 * If another IOMMU translates for the whole bus, the IOMMU core asks that one for every function
 * and this one for none. A hypervisor that has both should leave the other one out.
 */
static int pviommu_check_alone(struct pviommu *pv)
{
	struct pci_dev *pdev = NULL;
	u32 instance, stream;

	if (device_iommu_mapped(pviommu_dev(pv))) {
		dev_err(pviommu_dev(pv), "another IOMMU is in front of this one: not used\n");
		return -ENODEV;
	}
	for_each_pci_dev(pdev)
		if (device_iommu_mapped(&pdev->dev) &&
		    !pviommu_endpoint_capability(pdev, &instance, &stream) &&
		    instance == pv->instance)
			dev_warn(&pdev->dev, "another IOMMU has this function: left to it\n");
	return 0;
}

static int pviommu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	const struct pviommu_profile *chosen = pviommu_profile_find(profile);
	struct pviommu *pv;
	int ret;

	if (!chosen) {
		dev_err(&pdev->dev, "unknown profile %s: give xen-2024 or xen-v7\n", profile);
		return -EINVAL;
	}
	pv = kzalloc(sizeof(*pv), GFP_KERNEL);
	if (!pv)
		return -ENOMEM;
	pv->pdev = pdev;
	pv->profile = chosen;
	mutex_init(&pv->lock);
	spin_lock_init(&pv->bars_lock);
	mutex_init(&pv->guest_lock);
	INIT_LIST_HEAD(&pv->guest_domains);
	INIT_LIST_HEAD(&pv->guest_kept);
	INIT_LIST_HEAD(&pv->endpoints);
	spin_lock_init(&pv->domains_lock);
	INIT_LIST_HEAD(&pv->domains);
	pviommu_give_up_init(pv);
	refcount_set(&pv->users, 1);
	init_completion(&pv->unused);
	init_waitqueue_head(&pv->probed);

	ret = pci_enable_device_mem(pdev);
	if (ret)
		goto err_free;
	ret = pci_request_regions(pdev, KBUILD_MODNAME);
	if (ret)
		goto err_disable;
	ret = pviommu_map_bars(pv);
	if (ret)
		goto err_regions;
	ret = pviommu_identify(pv) ?: pviommu_check_alone(pv);
	if (ret)
		goto err_bars;
	/* MSI-X needs bus mastering */
	pci_set_master(pdev);
	ret = pviommu_start(pv);
	if (ret)
		goto err_stop;
	ret = pviommu_request_irqs(pv);
	if (ret)
		goto err_stop;
	pci_set_drvdata(pdev, pv);
	ret = pviommu_register(pv);
	if (ret)
		goto err_irqs;
	dev_info(&pdev->dev, "PV-IOMMU %u, profile %s, tables of the %s: %u endpoints, %u contexts, %u address bits, %u rings of %u slots\n",
		 pv->instance, pv->profile->name, pv->has_tables ? "guest" : "device",
		 atomic_read(&pv->nr_endpoints), pv->caps.max_contexts, pv->caps.aperture_bits,
		 pv->nr_rings, pv->rings[0].entries);
	return 0;

err_irqs:
	pviommu_free_irqs(pv);
err_stop:
	pviommu_stop(pv);
	pci_clear_master(pdev);
	pviommu_rings_free(pv);
	pviommu_capabilities_free(pv);
err_bars:
	pviommu_unmap_bars(pv);
err_regions:
	pci_release_regions(pdev);
err_disable:
	pci_disable_device(pdev);
err_free:
	kfree(pv);
	return ret;
}

/* The last endpoint's domain and its tables go with it. */
static void pviommu_count_leaks(struct pviommu *pv)
{
	int endpoints = atomic_read(&pv->nr_endpoints);
	int domains = atomic_read(&pv->nr_domains);
	int tables = atomic_read(&pv->nr_tables);

	if (endpoints || domains || tables)
		dev_err(pviommu_dev(pv), "leak: %d endpoints, %d domains, %d table pages\n",
			endpoints, domains, tables);
}

static void pviommu_remove(struct pci_dev *pdev)
{
	struct pviommu *pv = pci_get_drvdata(pdev);
	LIST_HEAD(locked);

	/*
	 * First, because a rescan, or the registration of another PV-IOMMU, makes the core probe
	 * functions of this one too, and unregistering finds only those that were probed
	 * completely.
	 */
	pviommu_unlist(pv);
	pviommu_lock_endpoints(pv, &locked);
	iommu_device_unregister(&pv->iommu);
	pviommu_unlock_endpoints(pv, &locked);
	/* the core leaves a function that is being removed, and its domain, to the remover */
	pviommu_wait_unused(pv);
	pviommu_free_endpoints(&locked);
	iommu_device_sysfs_remove(&pv->iommu);
	pviommu_debugfs_remove(pv);
	pviommu_stop(pv);
	pviommu_count_leaks(pv);
	pviommu_free_irqs(pv);
	pci_clear_master(pdev);
	pviommu_rings_free(pv);
	pviommu_capabilities_free(pv);
	pviommu_unmap_bars(pv);
	pci_release_regions(pdev);
	pci_disable_device(pdev);
	kfree(pv);
}

/*
 * Operations that are still running find no device any more, and waits end. Unmaps until then are
 * posted, and the reset carries them out before it stops all DMA.
 */
static void pviommu_quiesce(struct pviommu *pv, u32 reset)
{
	WRITE_ONCE(pv->given_up, true);
	pviommu_rings_wake(pv);
	pviommu_rings_settle(pv);
	pviommu_give_up_finish(pv);
	pviommu_reset(pv, reset);
}

/*
 * Before a reboot or kexec: ends the DMA of the functions behind the device, because the reset
 * blocks all that are outside context 0. Drivers that are still running find no device any more.
 */
static void pviommu_shutdown(struct pci_dev *pdev)
{
	pviommu_quiesce(pci_get_drvdata(pdev), PVIOMMU_RESET_POWER_ON);
}

/*
 * A reset that the driver did not ask for: contexts, bindings and rings are gone afterwards.
 * Nothing is sent from here on, so nobody waits for an answer that cannot come.
 */
static void pviommu_reset_prepare(struct pci_dev *pdev)
{
	pviommu_quiesce(pci_get_drvdata(pdev), PVIOMMU_RESET_BLOCKED);
}

static void pviommu_reset_done(struct pci_dev *pdev)
{
	struct pviommu *pv = pci_get_drvdata(pdev);

	/*
	 * after a reset of the bus, unlike one of this function, a function's own reset would end
	 * its block
	 */
	writel(PVIOMMU_RESET_BLOCKED, pv->regs + PVIOMMU_REG_RESET);
	dev_err(&pdev->dev, "the PV-IOMMU was reset: what is behind it cannot map any more until the driver is bound again\n");
}

static const struct pci_error_handlers pviommu_error_handlers = {
	.reset_prepare = pviommu_reset_prepare,
	.reset_done = pviommu_reset_done,
};

/*
 * The contexts are in the device, which may not keep them while the guest sleeps. This phase comes
 * before any driver has suspended its device, so nothing has to be undone.
 */
static int pviommu_prepare(struct device *dev)
{
	dev_warn(dev, "suspend is not supported\n");
	return -EOPNOTSUPP;
}

static const struct dev_pm_ops pviommu_pm_ops = {
	.prepare = pm_sleep_ptr(pviommu_prepare),
};

/* The IDs are configurable on the host, so new_id works; the class is checked as well. */
static const struct pci_device_id pviommu_ids[] = {
	{
		PCI_DEVICE(PVIOMMU_VENDOR_ID, PVIOMMU_DEVICE_ID),
		.class = PVIOMMU_CLASS_IOMMU,
		.class_mask = PVIOMMU_CLASS_MASK,
	},
	{}
};

MODULE_DEVICE_TABLE(pci, pviommu_ids);

static struct pci_driver pviommu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = pviommu_ids,
	.probe = pviommu_probe,
	.remove = pviommu_remove,
	.shutdown = pviommu_shutdown,
	.err_handler = &pviommu_error_handlers,
	.driver.pm = pm_sleep_ptr(&pviommu_pm_ops),
};

static int __init pviommu_init(void)
{
	int ret;

	pviommu_debugfs_init();
	ret = pci_register_driver(&pviommu_driver);
	if (ret)
		pviommu_debugfs_exit();
	return ret;
}
module_init(pviommu_init);

static void __exit pviommu_exit(void)
{
	pci_unregister_driver(&pviommu_driver);
	pviommu_debugfs_exit();
}
module_exit(pviommu_exit);

MODULE_DESCRIPTION("Paravirtual IOMMU");
MODULE_LICENSE("GPL");
