// SPDX-License-Identifier: GPL-2.0-only
/*
 * The cost of an SMMUv3 to its driver: accesses to registers, and an invalidation that is waited
 * for, as the driver that is there makes it.
 *
 *   registers=0x9050000     where the register frame is
 *   device=0000:00:10.0     a function behind the SMMU, in a domain of its own
 *   count=1000              operations of each kind in a measurement
 *
 * Reading /sys/kernel/debug/pviommu_smmu_bench measures, and gives one line of NAME=VALUE: medians,
 * in ns.
 */

#define pr_fmt(fmt) "pviommu_smmu_bench: " fmt

#include <linux/debugfs.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/seq_file.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>

#define FRAME_SIZE	0x1000
/* SMMU_CR0, and SMMU_GERRORN, which has no effect while it is written as it is */
#define REG_CR0		0x20
#define REG_GERRORN	0x64

static unsigned long registers;
module_param(registers, ulong, 0444);
MODULE_PARM_DESC(registers, "address of the register frame");

static char *device = "";
module_param(device, charp, 0444);
MODULE_PARM_DESC(device, "a function behind the SMMU, as 0000:00:10.0");

static unsigned int count = 1000;
module_param(count, uint, 0444);
MODULE_PARM_DESC(count, "operations of each kind in a measurement");

static struct pci_dev *function;
static void __iomem *frame;
static struct dentry *file;
static u32 gerrorn;

static void smmu_bench_read(struct iommu_domain *domain)
{
	readl_relaxed(frame + REG_CR0);
}

static void smmu_bench_write(struct iommu_domain *domain)
{
	writel_relaxed(gerrorn, frame + REG_GERRORN);
}

/* Writes a TLBI and a CMD_SYNC, and waits for that. */
static void smmu_bench_flush(struct iommu_domain *domain)
{
	iommu_flush_iotlb_all(domain);
}

static int smmu_bench_compare(const void *a, const void *b)
{
	u32 left = *(const u32 *)a, right = *(const u32 *)b;

	return left < right ? -1 : left > right;
}

/* The median of the times of an operation; each contains one look at the clock. */
static u32 smmu_bench_median(void (*operation)(struct iommu_domain *domain),
			     struct iommu_domain *domain, u32 *samples)
{
	unsigned int i;
	u64 start;

	for (i = 0; i < count; i++) {
		start = ktime_get_ns();
		operation(domain);
		samples[i] = ktime_get_ns() - start;
	}
	readl_relaxed(frame + REG_CR0); /* whatever was posted has arrived */
	sort(samples, count, sizeof(*samples), smmu_bench_compare, NULL);
	return samples[count / 2];
}

static int smmu_bench_show(struct seq_file *s, void *unused)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(&function->dev);

	u32 *samples;

	if (!domain || !(domain->type & __IOMMU_DOMAIN_PAGING))
		return -ENODEV;
	samples = vmalloc(array_size(count, sizeof(*samples)));
	if (!samples)
		return -ENOMEM;
	gerrorn = readl_relaxed(frame + REG_GERRORN);
	seq_printf(s, "read_ns=%u ", smmu_bench_median(smmu_bench_read, domain, samples));
	seq_printf(s, "write_ns=%u ", smmu_bench_median(smmu_bench_write, domain, samples));
	seq_printf(s, "flush_ns=%u\n", smmu_bench_median(smmu_bench_flush, domain, samples));
	vfree(samples);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(smmu_bench);

static int __init smmu_bench_init(void)
{
	unsigned int segment, bus, slot, number;

	if (sscanf(device, "%x:%x:%x.%u", &segment, &bus, &slot, &number) != 4 || bus > 0xff ||
	    slot > 0x1f || number > 7) {
		pr_err("device=%s: must be as 0000:00:10.0\n", device);
		return -EINVAL;
	}
	if (!registers || !count) {
		pr_err("registers=%#lx, count=%u: neither can be 0\n", registers, count);
		return -EINVAL;
	}
	function = pci_get_domain_bus_and_slot(segment, bus, PCI_DEVFN(slot, number));
	if (!function) {
		pr_err("device=%s: is not there\n", device);
		return -ENODEV;
	}
	frame = ioremap(registers, FRAME_SIZE);
	if (!frame) {
		pci_dev_put(function);
		return -ENOMEM;
	}
	file = debugfs_create_file(KBUILD_MODNAME, 0400, NULL, NULL, &smmu_bench_fops);
	return 0;
}

static void __exit smmu_bench_exit(void)
{
	debugfs_remove(file);
	iounmap(frame);
	pci_dev_put(function);
}

module_init(smmu_bench_init);
module_exit(smmu_bench_exit);

MODULE_DESCRIPTION("Measures an SMMUv3 from its driver's side");
MODULE_LICENSE("GPL");
