// SPDX-License-Identifier: GPL-2.0-only
/* Paravirtual IOMMU: the PCI function. */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/pm.h>
#include <linux/slab.h>

#include "pv_iommu.h"

/* base system peripheral, IOMMU; linux/pci_ids.h has no name for it */
#define PV_CLASS_IOMMU	0x080600
#define PV_CLASS_MASK	0xffffff

static char *profile = "xen-2024";
module_param(profile, charp, 0444);
MODULE_PARM_DESC(profile, "interface of the device to use: xen-2024 or xen-v7");

static LIST_HEAD(pv_iommus);
static DEFINE_MUTEX(pv_iommus_lock);

struct pv_iommu *pv_iommu_find(u32 instance)
{
	struct pv_iommu *pv, *found = NULL;

	mutex_lock(&pv_iommus_lock);
	list_for_each_entry(pv, &pv_iommus, list)
		if (pv->instance == instance)
			found = pv;
	mutex_unlock(&pv_iommus_lock);
	return found;
}

struct pv_iommu *pv_iommu_get_first(void)
{
	struct pv_iommu *pv;

	mutex_lock(&pv_iommus_lock);
	pv = list_first_entry_or_null(&pv_iommus, struct pv_iommu, list);
	if (pv)
		pv->users++;
	mutex_unlock(&pv_iommus_lock);
	return pv;
}

void pv_iommu_put(struct pv_iommu *pv)
{
	mutex_lock(&pv_iommus_lock);
	if (!--pv->users)
		wake_up_all(&pv->idle);
	mutex_unlock(&pv_iommus_lock);
}

static bool pv_iommu_unused(struct pv_iommu *pv)
{
	bool unused;

	mutex_lock(&pv_iommus_lock);
	unused = !pv->users;
	mutex_unlock(&pv_iommus_lock);
	return unused;
}

static int pv_iommu_list(struct pv_iommu *pv)
{
	struct pv_iommu *other;
	int ret = 0;

	mutex_lock(&pv_iommus_lock);
	list_for_each_entry(other, &pv_iommus, list)
		if (other->instance == pv->instance)
			ret = -EEXIST;
	if (!ret)
		list_add_tail(&pv->list, &pv_iommus);
	mutex_unlock(&pv_iommus_lock);
	if (ret)
		dev_err(pv_dev(pv), "there is a PV-IOMMU %u already\n", pv->instance);
	return ret;
}

static void pv_iommu_unlist(struct pv_iommu *pv)
{
	mutex_lock(&pv_iommus_lock);
	list_del(&pv->list);
	mutex_unlock(&pv_iommus_lock);
}

/* Maps the registers and the shared memory. */
static int pv_map_bars(struct pv_iommu *pv)
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
	/* Memory of the host, not a device's: it is cached and ordered like all other memory. */
	pv->shared = memremap(pci_resource_start(pdev, PVIOMMU_SHARED_BAR),
			      PVIOMMU_SHARED_BAR_SIZE, MEMREMAP_WB);
	if (!pv->shared) {
		pci_iounmap(pdev, pv->regs);
		return -ENOMEM;
	}
	return 0;
}

static void pv_unmap_bars(struct pv_iommu *pv)
{
	memunmap(pv->shared);
	pci_iounmap(pv->pdev, pv->regs);
}

static int pv_identify(struct pv_iommu *pv)
{
	u32 magic = readl(pv->regs + PVIOMMU_REG_MAGIC);
	u32 version = readl(pv->regs + PVIOMMU_REG_VERSION);
	u32 features = readl(pv->regs + PVIOMMU_REG_FEATURES);

	if (magic != PVIOMMU_MAGIC || version != PVIOMMU_ABI_VERSION) {
		dev_err(pv_dev(pv), "not a PV-IOMMU of version %d: magic %#x, version %u\n",
			PVIOMMU_ABI_VERSION, magic, version);
		return -ENODEV;
	}
	if (!(features & pv->profile->feature)) {
		dev_err(pv_dev(pv), "the device does not have profile %s: features %#x\n",
			pv->profile->name, features);
		return -ENODEV;
	}
	pv->caps.features = features;
	pv->instance = readl(pv->regs + PVIOMMU_REG_INSTANCE);
	return 0;
}

/* From any state to running rings: whoever had the device before may not have shut it down. */
static int pv_start(struct pv_iommu *pv)
{
	int ret;

	writel(1, pv->regs + PVIOMMU_REG_RESET);
	pv_events_init(pv);
	writel(pv->profile->number, pv->regs + PVIOMMU_REG_PROFILE);
	if (readl(pv->regs + PVIOMMU_REG_PROFILE) != pv->profile->number) {
		dev_err(pv_dev(pv), "the device refused profile %s\n", pv->profile->name);
		return -EIO;
	}
	ret = pv_capabilities_read(pv);
	if (ret)
		return ret;
	ret = pv_rings_init(pv);
	if (ret)
		return ret;
	return pv_rings_start(pv);
}

static void pv_stop(struct pv_iommu *pv)
{
	pv_rings_stop(pv);
	writel(1, pv->regs + PVIOMMU_REG_RESET);
}

/* Hands the running device to the IOMMU core, which probes all its endpoints at once. */
static int pv_register(struct pv_iommu *pv)
{
	int ret;

	ret = pv_op_init(pv);
	if (ret) {
		dev_err(pv_dev(pv), "init of profile %s failed: %pe\n", pv->profile->name,
			ERR_PTR(ret));
		return ret;
	}
	ret = pv_op_alloc_context(pv, &pv->blocked_ctx);
	if (ret) {
		dev_err(pv_dev(pv), "no context for the blocked domain: %pe\n", ERR_PTR(ret));
		return ret;
	}
	pv_debugfs_add(pv);
	ret = iommu_device_sysfs_add(&pv->iommu, pv_dev(pv), NULL, "%s-%s", KBUILD_MODNAME,
				     pci_name(pv->pdev));
	if (ret)
		goto err_debugfs;
	ret = pv_iommu_list(pv);
	if (ret)
		goto err_sysfs;
	/* No hwdev: the core then uses it for all functions that firmware says nothing about. */
	ret = iommu_device_register(&pv->iommu, &pv_iommu_ops, NULL);
	if (ret)
		goto err_unlist;
	return 0;

err_unlist:
	pv_iommu_unlist(pv);
err_sysfs:
	iommu_device_sysfs_remove(&pv->iommu);
err_debugfs:
	pv_debugfs_remove(pv);
	return ret;
}

static int pv_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	const struct pv_profile *chosen = pv_profile_find(profile);
	struct pv_iommu *pv;
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
	INIT_LIST_HEAD(&pv->endpoints);
	init_waitqueue_head(&pv->idle);

	ret = pci_enable_device_mem(pdev);
	if (ret)
		goto err_free;
	ret = pci_request_regions(pdev, KBUILD_MODNAME);
	if (ret)
		goto err_disable;
	ret = pv_map_bars(pv);
	if (ret)
		goto err_regions;
	ret = pv_identify(pv);
	if (ret)
		goto err_bars;
	/* interrupts are messages, and those need bus mastering */
	pci_set_master(pdev);
	ret = pv_start(pv);
	if (ret)
		goto err_stop;
	ret = pv_request_irqs(pv);
	if (ret)
		goto err_stop;
	pci_set_drvdata(pdev, pv);
	ret = pv_register(pv);
	if (ret)
		goto err_irqs;
	dev_info(&pdev->dev, "PV-IOMMU %u, profile %s: %u endpoints, %u contexts, %u address bits, %u rings of %u slots\n",
		 pv->instance, pv->profile->name, atomic_read(&pv->nr_endpoints),
		 pv->caps.max_contexts, pv->caps.aperture_bits, pv->nr_rings,
		 pv->rings[0].entries);
	return 0;

err_irqs:
	pv_free_irqs(pv);
err_stop:
	pv_stop(pv);
	pci_clear_master(pdev);
	pv_rings_free(pv);
err_bars:
	pv_unmap_bars(pv);
err_regions:
	pci_release_regions(pdev);
err_disable:
	pci_disable_device(pdev);
err_free:
	kfree(pv);
	return ret;
}

/* With the last endpoint go its domain and the tables of that. */
static void pv_count_leaks(struct pv_iommu *pv)
{
	int endpoints = atomic_read(&pv->nr_endpoints);
	int domains = atomic_read(&pv->nr_domains);
	int tables = atomic_read(&pv->nr_tables);

	if (endpoints || domains || tables)
		dev_err(pv_dev(pv), "leak: %d endpoints, %d domains, %d table pages\n", endpoints,
			domains, tables);
}

static void pv_remove(struct pci_dev *pdev)
{
	struct pv_iommu *pv = pci_get_drvdata(pdev);

	/* first: registering another PV-IOMMU makes the core probe devices of this one too */
	pv_iommu_unlist(pv);
	pv_release_drivers(pv);
	iommu_device_unregister(&pv->iommu);
	pv_count_leaks(pv);
	iommu_device_sysfs_remove(&pv->iommu);
	wait_event(pv->idle, pv_iommu_unused(pv));
	pv_debugfs_remove(pv);
	pv_stop(pv);
	pv_free_irqs(pv);
	pci_clear_master(pdev);
	pv_rings_free(pv);
	pv_unmap_bars(pv);
	pci_release_regions(pdev);
	pci_disable_device(pdev);
	kfree(pv);
}

/*
 * Before a reboot or kexec: no DMA of the functions behind the device goes on, because the reset
 * blocks all that are not in context 0. Drivers that are still at work find no device any more.
 */
static void pv_shutdown(struct pci_dev *pdev)
{
	struct pv_iommu *pv = pci_get_drvdata(pdev);

	WRITE_ONCE(pv->given_up, true);
	pv_rings_wake(pv);
	pv_stop(pv);
}

/*
 * The contexts are the device's, and nothing says that it keeps them while the guest sleeps. This
 * phase comes before any driver has suspended its device, so nothing has to be undone.
 */
static int pv_prepare(struct device *dev)
{
	dev_warn(dev, "suspend is not supported\n");
	return -EOPNOTSUPP;
}

static const struct dev_pm_ops pv_pm_ops = {
	.prepare = pm_sleep_ptr(pv_prepare),
};

/* The ids are configurable on the host, so new_id works; the class is checked as well. */
static const struct pci_device_id pv_ids[] = {
	{
		PCI_DEVICE(PVIOMMU_VENDOR_ID, PVIOMMU_DEVICE_ID),
		.class = PV_CLASS_IOMMU,
		.class_mask = PV_CLASS_MASK,
	},
	{}
};

#ifndef PV_IOMMU_FLOOR
MODULE_DEVICE_TABLE(pci, pv_ids);
#endif

static struct pci_driver pv_driver = {
	.name = KBUILD_MODNAME,
	.id_table = pv_ids,
	.probe = pv_probe,
	.remove = pv_remove,
	.shutdown = pv_shutdown,
	.driver.pm = pm_sleep_ptr(&pv_pm_ops),
};

static int __init pv_init(void)
{
	int ret;

	pv_debugfs_init();
	ret = pci_register_driver(&pv_driver);
	if (ret)
		pv_debugfs_exit();
	return ret;
}
module_init(pv_init);

static void __exit pv_exit(void)
{
	pci_unregister_driver(&pv_driver);
	pv_debugfs_exit();
}
module_exit(pv_exit);

MODULE_DESCRIPTION("Paravirtual IOMMU");
MODULE_LICENSE("GPL");
