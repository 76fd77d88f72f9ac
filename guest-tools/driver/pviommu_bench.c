// SPDX-License-Identifier: GPL-2.0-only
/*
 * The cost of the DMA API behind an IOMMU: the time of one map and of one unmap.
 *
 * Binds to any PCI function, by driver_override only; the function does no DMA. Writing
 * "<rounds> <pages> <threads>" to /sys/kernel/debug/pviommu_bench/config measures, reading "result"
 * then gives one line of NAME=VALUE. Each thread has its own CPU and buffer and does all rounds.
 * The first rounds fill caches of addresses and tables: discard one measurement.
 */

#define pr_fmt(fmt) "pviommu_bench: " fmt

#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/dma-mapping.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define PVB_MAX_ROUNDS	1000000
#define PVB_MAX_PAGES	1024
#define PVB_MAX_THREADS	64
/* samples of all threads together: four times as many words are kept */
#define PVB_MAX_SAMPLES	4000000

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
 * @rounds: maps and unmaps that each thread timed, 0 before the first measurement
 * @pages: pages of each
 * @threads: threads that did so at the same time
 * @elapsed: from the first to the last, in ns
 * @map: times of map
 * @unmap: times of unmap
 * @pair: times of a map and the unmap after it
 * @clock: times of reading the clock twice, included in the others
 * @debugfs: its debugfs folder
 */
struct pvb {
	struct device *dev;
	struct mutex lock;	/* see above */
	unsigned int rounds;
	unsigned int pages;
	unsigned int threads;
	u64 elapsed;
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

/**
 * struct pvb_run - one measurement
 * @dev: the function
 * @count: rounds of each thread
 * @granule: pages of a map
 * @samples: times of all threads, one after the other
 * @ready: a thread waits for its start
 * @go: all may start
 */
struct pvb_run {
	struct device *dev;
	unsigned int count;
	unsigned int granule;
	struct pvb_samples samples;
	struct completion ready;
	struct completion go;
};

/**
 * struct pvb_thread - one thread of a measurement
 * @run: the measurement
 * @task: the thread, with a reference
 * @page: its buffer
 * @first: index of its first sample
 */
struct pvb_thread {
	struct pvb_run *run;
	struct task_struct *task;
	struct page *page;
	unsigned int first;
};

static int pvb_work(void *data)
{
	struct pvb_thread *thread = data;
	struct pvb_run *run = thread->run;
	size_t size = (size_t)run->granule << PAGE_SHIFT;
	unsigned int i;
	int ret = 0;

	complete(&run->ready);
	wait_for_completion(&run->go);
	for (i = 0; i < run->count && !ret; i++) {
		ret = pvb_round(run->dev, thread->page, size, &run->samples, thread->first + i);
		cond_resched();
	}
	/* the end is waited for with kthread_stop() */
	while (!kthread_should_stop()) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule();
		__set_current_state(TASK_RUNNING);
	}
	return ret;
}

/* Drops a thread that waits for its start. */
static int pvb_start(struct pvb_thread *thread, struct pvb_run *run, unsigned int number,
		     unsigned int cpu)
{
	thread->run = run;
	thread->first = number * run->count;
	thread->page = alloc_pages(GFP_KERNEL, ilog2(run->granule));
	if (!thread->page)
		return -ENOMEM;
	thread->task = kthread_create(pvb_work, thread, "pviommu_bench/%u", number);
	if (IS_ERR(thread->task)) {
		__free_pages(thread->page, ilog2(run->granule));
		return PTR_ERR(thread->task);
	}
	kthread_bind(thread->task, cpu);
	get_task_struct(thread->task);
	wake_up_process(thread->task);
	/* kthread_stop() prevents a thread that has not begun from running at all */
	wait_for_completion(&run->ready);
	return 0;
}

static int pvb_run_threads(struct pvb_run *run, unsigned int threads, u64 *elapsed)
{
	unsigned int started, i, cpu = cpumask_first(cpu_online_mask);
	struct pvb_thread *thread;
	int ret = 0, ended;
	u64 start;

	thread = kcalloc(threads, sizeof(*thread), GFP_KERNEL);
	if (!thread)
		return -ENOMEM;
	for (started = 0; started < threads; started++) {
		ret = pvb_start(&thread[started], run, started, cpu);
		if (ret)
			break;
		cpu = cpumask_next(cpu, cpu_online_mask);
	}
	if (ret)
		run->count = 0;
	start = ktime_get_ns();
	complete_all(&run->go);
	for (i = 0; i < started; i++) {
		ended = kthread_stop(thread[i].task);
		put_task_struct(thread[i].task);
		__free_pages(thread[i].page, ilog2(run->granule));
		ret = ret ?: ended;
	}
	*elapsed = ktime_get_ns() - start;
	kfree(thread);
	return ret;
}

static int pvb_measure(struct pvb *bench, unsigned int count, unsigned int granule,
		       unsigned int threads)
{
	unsigned int total = count * threads;
	struct pvb_run run = {
		.dev = bench->dev,
		.count = count,
		.granule = granule,
	};
	u64 elapsed;
	u32 *times;
	int ret;

	times = vmalloc(array3_size(total, sizeof(*times), 4));
	if (!times)
		return -ENOMEM;
	run.samples.map = times;
	run.samples.unmap = times + total;
	run.samples.pair = times + 2 * total;
	run.samples.clock = times + 3 * total;
	init_completion(&run.ready);
	init_completion(&run.go);
	ret = pvb_run_threads(&run, threads, &elapsed);
	if (ret)
		goto out;
	bench->rounds = count;
	bench->pages = granule;
	bench->threads = threads;
	bench->elapsed = elapsed;
	bench->map = pvb_summary(run.samples.map, total);
	bench->unmap = pvb_summary(run.samples.unmap, total);
	bench->pair = pvb_summary(run.samples.pair, total);
	bench->clock = pvb_summary(run.samples.clock, total);

out:
	vfree(times);
	return ret;
}

static bool pvb_is_possible(unsigned int count, unsigned int granule, unsigned int threads)
{
	if (!count || count > PVB_MAX_ROUNDS)
		return false;
	if (granule > PVB_MAX_PAGES || !is_power_of_2(granule))
		return false;
	if (!threads || threads > PVB_MAX_THREADS || threads > num_online_cpus())
		return false;
	return count <= PVB_MAX_SAMPLES / threads;
}

static ssize_t pvb_config_write(struct file *file, const char __user *data, size_t size,
				loff_t *pos)
{
	struct pvb *bench = file->private_data;
	unsigned int count, granule = pages, threads = 1;
	char text[64];
	int ret;

	if (size >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, data, size))
		return -EFAULT;
	text[size] = '\0';
	/* the numbers of pages and of threads may be left out */
	if (sscanf(text, "%u %u %u", &count, &granule, &threads) < 1)
		return -EINVAL;
	if (!pvb_is_possible(count, granule, threads)) {
		dev_err(bench->dev, "%u rounds of %u pages by %u threads: at most %u rounds, a power of two up to %u pages, a CPU each for up to %u threads, %u samples in all\n",
			count, granule, threads, PVB_MAX_ROUNDS, PVB_MAX_PAGES, PVB_MAX_THREADS,
			PVB_MAX_SAMPLES);
		return -EINVAL;
	}
	mutex_lock(&bench->lock);
	ret = pvb_measure(bench, count, granule, threads);
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
	seq_printf(s, "rounds=%u pages=%u threads=%u elapsed_ns=%llu\n", bench->rounds,
		   bench->pages, bench->threads, bench->elapsed);
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
	/* one folder only: a second function that is bound has none, which the log says */
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
