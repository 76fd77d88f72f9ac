// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the DMA API costs behind an IOMMU: time of one map and of one unmap.
 *
 * Binds to any PCI function, by driver_override only; the function does no DMA. Writing
 * "<rounds> <pages>" to /sys/kernel/debug/pv_bench/config measures, reading "result" gives one line
 * of NAME=VALUE. The first rounds fill caches of addresses and tables: throw one measurement away.
 */

#define pr_fmt(fmt) "pv_bench: " fmt

#include <linux/debugfs.h>
#include <linux/dma-mapping.h>
#include <linux/ktime.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/seq_file.h>
#include <linux/sort.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define PVB_MAX_ROUNDS	1000000
#define PVB_MAX_PAGES	1024

static unsigned int pages = 1;
module_param(pages, uint, 0444);
MODULE_PARM_DESC(pages, "pages of one map, a power of two, unless config says otherwise");

/**
 * struct pvb_times - times of one kind of operation, in ns
 * @median: the median
 * @mean: the mean
 */
struct pvb_times {
	u32 median;
	u32 mean;
};

/**
 * struct pvb - one function
 * @dev: the function
 * @lock: one measurement at a time
 * @rounds: maps and unmaps that were timed, 0 before the first measurement
 * @pages: pages of each
 * @map: times of map
 * @unmap: times of unmap
 * @pair: times of a map and the unmap after it
 * @clock: times of reading the clock twice, contained in the others
 * @debugfs: its debugfs folder
 */
struct pvb {
	struct device *dev;
	struct mutex lock;	/* see above */
	unsigned int rounds;
	unsigned int pages;
	struct pvb_times map;
	struct pvb_times unmap;
	struct pvb_times pair;
	struct pvb_times clock;
	struct dentry *debugfs;
};

/* Times of all rounds, in ns. */
struct pvb_samples {
	u32 *map;
	u32 *unmap;
	u32 *pair;
	u32 *clock;
};

static int pvb_compare(const void *a, const void *b)
{
	u32 left = *(const u32 *)a, right = *(const u32 *)b;

	return left < right ? -1 : left > right;
}

static struct pvb_times pvb_summary(u32 *samples, unsigned int count)
{
	struct pvb_times times;
	unsigned int i;
	u64 sum = 0;

	for (i = 0; i < count; i++)
		sum += samples[i];
	sort(samples, count, sizeof(*samples), pvb_compare, NULL);
	times.median = samples[count / 2];
	times.mean = div_u64(sum, count);
	return times;
}

static int pvb_round(struct device *dev, struct page *page, size_t size,
		     struct pvb_samples *samples, unsigned int i)
{
	u64 start, mapped, between, unmapped, end;
	dma_addr_t iova;

	start = ktime_get_ns();
	iova = dma_map_page(dev, page, 0, size, DMA_BIDIRECTIONAL);
	mapped = ktime_get_ns();
	if (dma_mapping_error(dev, iova))
		return -EIO;
	between = ktime_get_ns();
	dma_unmap_page(dev, iova, size, DMA_BIDIRECTIONAL);
	unmapped = ktime_get_ns();
	end = ktime_get_ns();
	samples->map[i] = mapped - start;
	samples->unmap[i] = unmapped - between;
	samples->pair[i] = (mapped - start) + (unmapped - between);
	samples->clock[i] = end - unmapped;
	return 0;
}

static int pvb_measure(struct pvb *bench, unsigned int count, unsigned int granule)
{
	size_t size = (size_t)granule << PAGE_SHIFT;
	struct pvb_samples samples;
	struct page *page;
	unsigned int i;
	u32 *times;
	int ret = 0;

	page = alloc_pages(GFP_KERNEL, ilog2(granule));
	if (!page)
		return -ENOMEM;
	times = vmalloc(array3_size(count, sizeof(*times), 4));
	if (!times) {
		ret = -ENOMEM;
		goto out_pages;
	}
	samples.map = times;
	samples.unmap = times + count;
	samples.pair = times + 2 * count;
	samples.clock = times + 3 * count;
	for (i = 0; i < count && !ret; i++) {
		ret = pvb_round(bench->dev, page, size, &samples, i);
		cond_resched();
	}
	if (ret)
		goto out_times;
	bench->rounds = count;
	bench->pages = granule;
	bench->map = pvb_summary(samples.map, count);
	bench->unmap = pvb_summary(samples.unmap, count);
	bench->pair = pvb_summary(samples.pair, count);
	bench->clock = pvb_summary(samples.clock, count);

out_times:
	vfree(times);
out_pages:
	__free_pages(page, ilog2(granule));
	return ret;
}

static ssize_t pvb_config_write(struct file *file, const char __user *data, size_t size,
				loff_t *pos)
{
	struct pvb *bench = file->private_data;
	unsigned int count, granule = pages;
	char text[64];
	int ret;

	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, data, size))
		return -EFAULT;
	text[size] = '\0';
	/* the number of pages may be left out */
	if (sscanf(text, "%u %u", &count, &granule) < 1)
		return -EINVAL;
	if (!count || count > PVB_MAX_ROUNDS || granule > PVB_MAX_PAGES ||
	    !is_power_of_2(granule)) {
		dev_err(bench->dev, "%u rounds of %u pages: 1 to %u rounds, a power of two up to %u pages\n",
			count, granule, PVB_MAX_ROUNDS, PVB_MAX_PAGES);
		return -EINVAL;
	}
	mutex_lock(&bench->lock);
	ret = pvb_measure(bench, count, granule);
	mutex_unlock(&bench->lock);
	return ret ?: size;
}

static const struct file_operations pvb_config_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = pvb_config_write,
};

static void pvb_show(struct seq_file *s, const char *name, const struct pvb_times *times)
{
	seq_printf(s, "%s_ns_median=%u %s_ns_mean=%u ", name, times->median, name, times->mean);
}

static int result_show(struct seq_file *s, void *unused)
{
	struct pvb *bench = s->private;

	mutex_lock(&bench->lock);
	pvb_show(s, "map", &bench->map);
	pvb_show(s, "unmap", &bench->unmap);
	pvb_show(s, "pair", &bench->pair);
	pvb_show(s, "clock", &bench->clock);
	seq_printf(s, "rounds=%u pages=%u\n", bench->rounds, bench->pages);
	mutex_unlock(&bench->lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(result);

static int pvb_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct pvb *bench;
	int ret;

	bench = devm_kzalloc(&pdev->dev, sizeof(*bench), GFP_KERNEL);
	if (!bench)
		return -ENOMEM;
	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	bench->dev = &pdev->dev;
	mutex_init(&bench->lock);
	/* one folder: the second function that is bound gets none, and says so in the log */
	bench->debugfs = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("config", 0200, bench->debugfs, bench, &pvb_config_fops);
	debugfs_create_file("result", 0400, bench->debugfs, bench, &result_fops);
	pci_set_drvdata(pdev, bench);
	return 0;
}

static void pvb_remove(struct pci_dev *pdev)
{
	struct pvb *bench = pci_get_drvdata(pdev);

	debugfs_remove_recursive(bench->debugfs);
}

static struct pci_driver pvb_driver = {
	.name = KBUILD_MODNAME,
	.probe = pvb_probe,
	.remove = pvb_remove,
};
module_pci_driver(pvb_driver);

MODULE_DESCRIPTION("Benchmark of the DMA API");
MODULE_LICENSE("GPL");
