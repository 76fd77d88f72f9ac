// SPDX-License-Identifier: GPL-2.0-only
/* Driver of the DMA test engine: its queue, its interrupt, and a client interface for tests. */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/debugfs.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "pviommu_dmatest.h"
#include "ktap.h"
#include "pviommu_namespace.h"

static unsigned int timeout_ms = 10000;
module_param(timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms, "time that requests may take before their engine is reset");

/**
 * struct pvdt - one engine
 * @list: in the list of all engines
 * @pdev: its PCI function
 * @regs: trapped registers
 * @shared: descriptors and scatter/gather entries
 * @lock: one batch of requests at a time
 * @producer: descriptors submitted
 * @interrupts: interrupts received
 * @wait: woken by each interrupt
 * @users: references of clients
 * @idle: woken when @users falls to 0
 * @kept: pages of its tests' buffers that must not be used again while it may do DMA
 * @ktap: report of its tests
 * @debugfs: its debugfs folder
 */
struct pvdt {
	struct list_head list;
	struct pci_dev *pdev;
	void __iomem *regs;
	void *shared;
	struct mutex lock;	/* one batch */
	u32 producer;
	unsigned int interrupts;
	wait_queue_head_t wait;
	unsigned int users;
	wait_queue_head_t idle;
	struct list_head kept;
	struct ktap ktap;
	struct dentry *debugfs;
};

static LIST_HEAD(pvdt_engines);
static DEFINE_MUTEX(pvdt_engines_lock);
static struct dentry *pvdt_debugfs_root;

struct pci_dev *pvdt_pci_dev(struct pvdt *engine)
{
	return engine->pdev;
}

unsigned int pvdt_interrupts(struct pvdt *engine)
{
	return READ_ONCE(engine->interrupts);
}

struct list_head *pvdt_kept(struct pvdt *engine)
{
	return &engine->kept;
}

static struct pvdt_descriptor *pvdt_descriptor(struct pvdt *engine, u32 index)
{
	struct pvdt_descriptor *descriptors = engine->shared;

	return &descriptors[index % PVDT_ENTRIES];
}

static bool pvdt_done(struct pvdt *engine, u32 index)
{
	/* Pairs with the device, which writes the status last. */
	return virt_load_acquire(&pvdt_descriptor(engine, index)->status) !=
	       cpu_to_le32(PVDT_STATUS_PENDING);
}

static void pvdt_fill(struct pvdt *engine, u32 index, const struct pvdt_request *request, u8 flags)
{
	struct pvdt_descriptor *descriptor = pvdt_descriptor(engine, index);

	memset(descriptor, 0, sizeof(*descriptor));
	descriptor->op = request->op;
	descriptor->flags = request->flags | flags;
	descriptor->length = cpu_to_le32(request->length);
	descriptor->src = cpu_to_le64(request->src);
	descriptor->dst = cpu_to_le64(request->dst);
	memcpy(&descriptor->pattern, &request->pattern, sizeof(descriptor->pattern));
	descriptor->status = cpu_to_le32(PVDT_STATUS_PENDING);
}

/* @was_reset: the function was, which clears the queue and leaves what had not finished pending */
static void pvdt_take(struct pvdt *engine, u32 index, struct pvdt_request *request, bool was_reset)
{
	struct pvdt_descriptor *descriptor = pvdt_descriptor(engine, index);

	request->status = le32_to_cpu(descriptor->status);
	if (was_reset && request->status == PVDT_STATUS_PENDING)
		request->status = PVDT_STATUS_CANCELLED;
	request->detail = le64_to_cpu(descriptor->detail);
	request->checksum = le32_to_cpu(descriptor->checksum);
	request->reason = le16_to_cpu(descriptor->reason);
	request->access = le16_to_cpu(descriptor->access);
}

static int pvdt_poll(struct pvdt *engine, u32 index)
{
	ktime_t deadline = ktime_add_ms(ktime_get(), READ_ONCE(timeout_ms));

	while (!pvdt_done(engine, index)) {
		if (ktime_after(ktime_get(), deadline))
			return -ETIMEDOUT;
		cpu_relax();
		cond_resched();
	}
	return 0;
}

static int pvdt_sleep(struct pvdt *engine, u32 index, unsigned int interrupts)
{
	/* waits for the interrupt itself, not only for the status */
	if (!wait_event_timeout(engine->wait, pvdt_done(engine, index) &&
				pvdt_interrupts(engine) != interrupts,
				msecs_to_jiffies(READ_ONCE(timeout_ms))))
		return -ETIMEDOUT;
	return 0;
}

static void pvdt_reset(struct pvdt *engine)
{
	writel(PVDT_CONTROL_RESET, engine->regs + PVDT_REG_CONTROL);
	writel(PVDT_CONTROL_ENABLE, engine->regs + PVDT_REG_CONTROL);
	engine->producer = 0;
}

/*
 * The engine has not finished descriptor @last in time: ends all DMA of what is queued, so that its
 * memory can be used for something else. The engine's own reset cancels it. One that has stopped
 * does not even do that, and only a reset of its function makes it work again. trylock: whoever
 * removes the engine or shuts it down has locked it.
 *
 * Return: -ETIMEDOUT, or the errno of a reset that failed: the DMA may still go on.
 */
static int pvdt_recover(struct pvdt *engine, u32 last)
{
	struct device *dev = &engine->pdev->dev;
	int ret;

	dev_err(dev, "descriptor %u did not finish within %u ms\n", last, READ_ONCE(timeout_ms));
	pvdt_reset(engine);
	if (pvdt_done(engine, last))
		return -ETIMEDOUT;
	ret = pci_try_reset_function(engine->pdev);
	pvdt_reset(engine);
	if (ret) {
		dev_err(dev, "it has stopped and cannot be reset: %pe\n", ERR_PTR(ret));
		return ret;
	}
	dev_notice(dev, "it had stopped: its function was reset\n");
	return -ETIMEDOUT;
}

/**
 * pvdt_run_many - runs requests, started by one register write
 * @engine: the engine
 * @requests: what to do; each has its status afterwards
 * @count: how many, at most PVDT_ENTRIES
 * @wait: how to wait for the last one
 *
 * Return: 0, or -ETIMEDOUT if they took longer than timeout_ms. Then the engine was reset, requests
 * that were not finished are PVDT_STATUS_CANCELLED, and the next ones can be run. Another errno is
 * that of a reset that failed: some requests are PVDT_STATUS_PENDING, and the engine may still
 * reach their memory.
 */
int pvdt_run_many(struct pvdt *engine, struct pvdt_request *requests, unsigned int count,
		  enum pvdt_wait wait)
{
	unsigned int interrupts, i;
	u32 first, last;
	u8 flags;
	int ret;

	if (!count || count > PVDT_ENTRIES)
		return -EINVAL;
	mutex_lock(&engine->lock);
	interrupts = pvdt_interrupts(engine);
	first = engine->producer;
	last = first + count - 1;
	for (i = 0; i < count; i++) {
		flags = wait == PVDT_INTERRUPT && first + i == last ? PVDT_FLAG_INTERRUPT : 0;
		pvdt_fill(engine, first + i, &requests[i], flags);
	}
	engine->producer += count;
	/* writel() orders the descriptors before the register */
	writel(engine->producer, engine->regs + PVDT_REG_PRODUCER);
	ret = wait == PVDT_INTERRUPT ? pvdt_sleep(engine, last, interrupts) :
				       pvdt_poll(engine, last);
	if (ret)
		ret = pvdt_recover(engine, last);
	for (i = 0; i < count; i++)
		pvdt_take(engine, first + i, &requests[i], ret == -ETIMEDOUT);
	mutex_unlock(&engine->lock);
	return ret;
}

int pvdt_run(struct pvdt *engine, struct pvdt_request *request, enum pvdt_wait wait)
{
	return pvdt_run_many(engine, request, 1, wait);
}

void pvdt_set_sg(struct pvdt *engine, u32 index, u64 address, u32 length)
{
	struct pvdt_sg_entry *entries = engine->shared + PVDT_SG_OFFSET;

	entries[index].address = cpu_to_le64(address);
	entries[index].length = cpu_to_le32(length);
	entries[index].pad0 = 0;
}

static struct pvdt *pvdt_get(unsigned int number)
{
	struct pvdt *engine, *found = NULL;

	mutex_lock(&pvdt_engines_lock);
	list_for_each_entry(engine, &pvdt_engines, list) {
		if (!number--) {
			found = engine;
			found->users++;
			break;
		}
	}
	mutex_unlock(&pvdt_engines_lock);
	return found;
}

static void pvdt_put(struct pvdt *engine)
{
	mutex_lock(&pvdt_engines_lock);
	WRITE_ONCE(engine->users, engine->users - 1);
	if (!engine->users)
		wake_up_all(&engine->idle);
	mutex_unlock(&pvdt_engines_lock);
}

/* trylock: a remover of the engine has locked it and waits for its users. */
static int pvdt_reset_function(struct pvdt *engine)
{
	int ret;

	mutex_lock(&engine->lock);
	ret = pci_try_reset_function(engine->pdev);
	pvdt_reset(engine);
	mutex_unlock(&engine->lock);
	return ret;
}

const struct pvdt_client_ops pvdt_client_ops = {
	.get = pvdt_get,
	.put = pvdt_put,
	.run = pvdt_run,
	.run_many = pvdt_run_many,
	.pci_dev = pvdt_pci_dev,
	.reset = pvdt_reset_function,
};

PVIOMMU_EXPORT(pvdt_client_ops, PVIOMMU_DMATEST);

static irqreturn_t pvdt_interrupt(int irq, void *data)
{
	struct pvdt *engine = data;

	WRITE_ONCE(engine->interrupts, engine->interrupts + 1);
	wake_up_all(&engine->wait);
	return IRQ_HANDLED;
}

static int pvdt_map_bars(struct pvdt *engine)
{
	struct pci_dev *pdev = engine->pdev;

	if (pci_resource_len(pdev, PVDT_SHARED_BAR) < PVDT_SHARED_BAR_SIZE)
		return -ENODEV;
	engine->regs = pci_iomap(pdev, PVDT_REGISTER_BAR, 0);
	if (!engine->regs)
		return -ENOMEM;
	engine->shared = memremap(pci_resource_start(pdev, PVDT_SHARED_BAR), PVDT_SHARED_BAR_SIZE,
				  MEMREMAP_WB);
	if (!engine->shared) {
		pci_iounmap(pdev, engine->regs);
		return -ENOMEM;
	}
	return 0;
}

static void pvdt_unmap_bars(struct pvdt *engine)
{
	memunmap(engine->shared);
	pci_iounmap(engine->pdev, engine->regs);
}

static int pvdt_request_irq(struct pvdt *engine)
{
	int ret = pci_alloc_irq_vectors(engine->pdev, 1, 1, PCI_IRQ_MSIX);

	if (ret < 0)
		return ret;
	ret = request_irq(pci_irq_vector(engine->pdev, 0), pvdt_interrupt, 0, "pviommu_dmatest",
			  engine);
	if (ret)
		pci_free_irq_vectors(engine->pdev);
	return ret;
}

static int pvdt_identify(struct pvdt *engine)
{
	u32 magic = readl(engine->regs + PVDT_REG_MAGIC);
	u32 version = readl(engine->regs + PVDT_REG_VERSION);

	if (magic == PVDT_MAGIC && version == PVDT_VERSION)
		return 0;
	dev_err(&engine->pdev->dev, "not a DMA test engine of version %d: magic %#x, version %u\n",
		PVDT_VERSION, magic, version);
	return -ENODEV;
}

static void pvdt_publish(struct pvdt *engine)
{
	engine->debugfs = debugfs_create_dir(pci_name(engine->pdev), pvdt_debugfs_root);
	ktap_files(&engine->ktap, engine->debugfs);
	mutex_lock(&pvdt_engines_lock);
	list_add_tail(&engine->list, &pvdt_engines);
	mutex_unlock(&pvdt_engines_lock);
}

static int pvdt_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct pvdt *engine;
	int ret;

	engine = kzalloc(sizeof(*engine), GFP_KERNEL);
	if (!engine)
		return -ENOMEM;
	engine->pdev = pdev;
	mutex_init(&engine->lock);
	init_waitqueue_head(&engine->wait);
	init_waitqueue_head(&engine->idle);
	INIT_LIST_HEAD(&engine->kept);

	ret = ktap_init(&engine->ktap, pvdt_tests_run, engine);
	if (ret)
		goto err_free;
	ret = pci_enable_device_mem(pdev);
	if (ret)
		goto err_ktap;
	ret = pci_request_regions(pdev, KBUILD_MODNAME);
	if (ret)
		goto err_disable;
	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (ret)
		goto err_regions;
	/* a scatter/gather list becomes one run of device addresses, however long */
	dma_set_max_seg_size(&pdev->dev, UINT_MAX);
	ret = pvdt_map_bars(engine);
	if (ret)
		goto err_regions;
	ret = pvdt_identify(engine);
	if (ret)
		goto err_bars;
	pci_set_master(pdev);
	ret = pvdt_request_irq(engine);
	if (ret)
		goto err_master;
	pvdt_reset(engine);
	pci_set_drvdata(pdev, engine);
	pvdt_publish(engine);
	return 0;

err_master:
	pci_clear_master(pdev);
err_bars:
	pvdt_unmap_bars(engine);
err_regions:
	pci_release_regions(pdev);
err_disable:
	pci_disable_device(pdev);
err_ktap:
	ktap_free(&engine->ktap);
err_free:
	kfree(engine);
	return ret;
}

static void pvdt_remove(struct pci_dev *pdev)
{
	struct pvdt *engine = pci_get_drvdata(pdev);

	mutex_lock(&pvdt_engines_lock);
	list_del(&engine->list);
	mutex_unlock(&pvdt_engines_lock);
	/* it cannot be found any more, so this only falls */
	wait_event(engine->idle, !READ_ONCE(engine->users));
	/* the last user holds the lock until it is done with the engine */
	mutex_lock(&pvdt_engines_lock);
	mutex_unlock(&pvdt_engines_lock);
	debugfs_remove_recursive(engine->debugfs);
	writel(PVDT_CONTROL_RESET, engine->regs + PVDT_REG_CONTROL);
	free_irq(pci_irq_vector(pdev, 0), engine);
	pci_free_irq_vectors(pdev);
	pci_clear_master(pdev);
	pvdt_unmap_bars(engine);
	pci_release_regions(pdev);
	pci_disable_device(pdev);
	pvdt_free_kept(engine);
	ktap_free(&engine->ktap);
	kfree(engine);
}

/* A driver may need DMA at shutdown. */
static void pvdt_shutdown(struct pci_dev *pdev)
{
	struct pvdt_request request = { .op = PVDT_OP_FILL, .length = PAGE_SIZE };
	struct pvdt *engine = pci_get_drvdata(pdev);
	dma_addr_t iova;
	void *page;
	int ret;

	page = dma_alloc_coherent(&pdev->dev, PAGE_SIZE, &iova, GFP_KERNEL);
	if (page) {
		request.dst = iova;
		ret = pvdt_run(engine, &request, PVDT_POLL);
		/* leaked if the engine may still reach it */
		if (!ret || ret == -ETIMEDOUT)
			dma_free_coherent(&pdev->dev, PAGE_SIZE, page, iova);
	}
	pci_notice(pdev, "DMA at shutdown %s\n",
		   request.status == PVDT_STATUS_DONE ? "works" : "fails");
	writel(PVDT_CONTROL_RESET, engine->regs + PVDT_REG_CONTROL);
}

static const struct pci_device_id pvdt_ids[] = {
	{ PCI_DEVICE(PVDT_VENDOR_ID, PVDT_DEVICE_ID) },
	{}
};
MODULE_DEVICE_TABLE(pci, pvdt_ids);

static struct pci_driver pvdt_driver = {
	.name = KBUILD_MODNAME,
	.id_table = pvdt_ids,
	.probe = pvdt_probe,
	.remove = pvdt_remove,
	.shutdown = pvdt_shutdown,
};

static int __init pvdt_init(void)
{
	int ret;

	pvdt_debugfs_root = debugfs_create_dir(KBUILD_MODNAME, NULL);
	ret = pci_register_driver(&pvdt_driver);
	if (ret)
		debugfs_remove(pvdt_debugfs_root);
	return ret;
}
module_init(pvdt_init);

static void __exit pvdt_exit(void)
{
	pci_unregister_driver(&pvdt_driver);
	debugfs_remove(pvdt_debugfs_root);
}
module_exit(pvdt_exit);

MODULE_DESCRIPTION("DMA test engine behind a paravirtual IOMMU");
MODULE_LICENSE("GPL");
