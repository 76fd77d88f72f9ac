// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: number and places of the rings, and their interrupts.
 *
 * Ring 0 is for what concerns the device as a whole; all maps and unmaps of a context go through
 * the ring of that context, because the device keeps order within a ring only.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/msi.h>
#include <linux/slab.h>

#include "pviommu.h"

static unsigned int rings;
module_param(rings, uint, 0444);
MODULE_PARM_DESC(rings, "command rings to use at most; 0, the default: one for each CPU");

void pviommu_rings_wake(struct pviommu *pv)
{
	unsigned int i;

	for (i = 0; i < pv->nr_rings; i++)
		wake_up_all(&pv->rings[i].wait);
}

/* Waits until everything that was sent on any ring before this call is completed. */
void pviommu_rings_sync(struct pviommu *pv)
{
	unsigned int i;

	for (i = 0; i < pv->nr_rings; i++)
		pviommu_ring_sync(&pv->rings[i]);
}

/* The ring of a context. */
struct pviommu_ring *pviommu_ring_of(struct pviommu *pv, u16 ctx)
{
	return &pv->rings[ctx % pv->nr_rings];
}

static int pviommu_ring_init(struct pviommu *pv, unsigned int number, u32 place, u32 entries)
{
	struct pviommu_ring *ring = &pv->rings[number];

	ring->answers = kcalloc(entries, sizeof(*ring->answers), GFP_KERNEL);
	if (!ring->answers)
		return -ENOMEM;
	spin_lock_init(&ring->lock);
	mutex_init(&ring->sleeper);
	init_waitqueue_head(&ring->wait);
	ring->pv = pv;
	ring->entries = entries;
	ring->place = place;
	/* a device may be asleep at the first slot: no doorbell was rung yet */
	ring->rung = U32_MAX;
	ring->guest = pv->shared + PVIOMMU_INDEX_OFFSET + number * PVIOMMU_RING_INDEX_STRIDE;
	ring->device = (void *)ring->guest + PVIOMMU_CACHE_LINE;
	ring->slots = pv->shared + place;
	ring->doorbell = pv->regs + PVIOMMU_REG_DOORBELL + number * PVIOMMU_DOORBELL_STRIDE;
	return 0;
}

/* Finds places for the rings in the shared memory. They are off. */
int pviommu_rings_init(struct pviommu *pv)
{
	u32 most = readl(pv->regs + PVIOMMU_REG_MAX_RING_ENTRIES);
	u32 count = readl(pv->regs + PVIOMMU_REG_MAX_RINGS);
	u32 area = readl(pv->regs + PVIOMMU_REG_RING_AREA);
	u32 size = readl(pv->regs + PVIOMMU_REG_RING_AREA_SIZE);
	u32 entries, stride, i;
	int ret;

	if (!most || !count || area > PVIOMMU_SHARED_BAR_SIZE ||
	    size > PVIOMMU_SHARED_BAR_SIZE - area || !IS_ALIGNED(area, PVIOMMU_RING_ALIGNMENT)) {
		dev_err(pviommu_dev(pv), "ring area %#x+%#x for %u rings of %u slots does not fit the shared BAR\n",
			area, size, count, most);
		return -EINVAL;
	}
	count = min3(count, rings ?: num_possible_cpus(), (u32)PVIOMMU_MAX_RINGS);
	stride = round_down(size / count, PVIOMMU_RING_ALIGNMENT);
	entries = min3((u32)PVIOMMU_RING_ENTRIES, rounddown_pow_of_two(most),
		       rounddown_pow_of_two(max(stride / PVIOMMU_SLOT_SIZE, 1U)));
	if (entries < PVIOMMU_MIN_RING_ENTRIES) {
		dev_err(pviommu_dev(pv), "a ring of %u slots is smaller than the least, %u\n",
			entries, PVIOMMU_MIN_RING_ENTRIES);
		return -EINVAL;
	}
	pv->rings = kcalloc(count, sizeof(*pv->rings), GFP_KERNEL);
	if (!pv->rings)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		ret = pviommu_ring_init(pv, i, area + i * stride, entries);
		if (ret)
			return ret;
		pv->nr_rings++;
	}
	return 0;
}

/* Nothing is sent any more. Also called after an error of pviommu_rings_init(). */
void pviommu_rings_free(struct pviommu *pv)
{
	unsigned int i;

	for (i = 0; i < pv->nr_rings; i++)
		kfree(pv->rings[i].answers);
	kfree(pv->rings);
}

static int pviommu_ring_start(struct pviommu *pv, unsigned int number)
{
	struct pviommu_ring *ring = &pv->rings[number];
	u32 status;

	/*
	 * The reset before has zeroed all index words, the guest's too. A completion event of 0
	 * costs at most one needless interrupt.
	 */
	memset(ring->slots, 0, array_size(ring->entries, PVIOMMU_SLOT_SIZE));

	writel(number, pv->regs + PVIOMMU_REG_RING_SELECT);
	writel(PVIOMMU_RING_TYPE_SHARED_BAR, pv->regs + PVIOMMU_REG_RING_TYPE);
	writel(ring->entries, pv->regs + PVIOMMU_REG_RING_ENTRIES);
	writel(ring->place, pv->regs + PVIOMMU_REG_RING_BASE_LO);
	writel(0, pv->regs + PVIOMMU_REG_RING_BASE_HI);
	writel(PVIOMMU_RING_CONTROL_ENABLE, pv->regs + PVIOMMU_REG_RING_CONTROL);

	status = readl(pv->regs + PVIOMMU_REG_STATUS);
	if (status & PVIOMMU_STATUS_MEMORY_NOT_SHARED) {
		dev_err(pviommu_dev(pv), "guest memory is not shared with the device: share=on is missing\n");
		return -ENODEV;
	}
	if (status & PVIOMMU_STATUS_REFUSED ||
	    !(readl(pv->regs + PVIOMMU_REG_RING_STATUS) & PVIOMMU_RING_STATUS_ENABLED)) {
		dev_err(pviommu_dev(pv), "the device refused ring %u of %u slots at %#x (status %#x)\n",
			number, ring->entries, ring->place, status);
		return -EIO;
	}
	return 0;
}

int pviommu_rings_start(struct pviommu *pv)
{
	unsigned int i;
	int ret;

	for (i = 0; i < pv->nr_rings; i++) {
		ret = pviommu_ring_start(pv, i);
		if (ret)
			return ret;
	}
	return 0;
}

void pviommu_rings_stop(struct pviommu *pv)
{
	unsigned int i;

	for (i = 0; i < pv->nr_rings; i++) {
		writel(i, pv->regs + PVIOMMU_REG_RING_SELECT);
		writel(0, pv->regs + PVIOMMU_REG_RING_CONTROL);
	}
}

/* After this no slot is filled any more, if the device was given up before. */
void pviommu_rings_settle(struct pviommu *pv)
{
	unsigned long flags;
	unsigned int i;

	for (i = 0; i < pv->nr_rings; i++) {
		spin_lock_irqsave(&pv->rings[i].lock, flags);
		spin_unlock_irqrestore(&pv->rings[i].lock, flags);
	}
}

static irqreturn_t pviommu_ring_interrupt(int irq, void *data)
{
	struct pviommu_ring *ring = data;

	wake_up_all(&ring->wait);
	return IRQ_HANDLED;
}

static int pviommu_ring_vector(struct pviommu *pv, unsigned int number)
{
	return pci_irq_vector(pv->pdev, PVIOMMU_VECTOR_RING + number);
}

static void pviommu_free_ring_irqs(struct pviommu *pv, unsigned int count)
{
	while (count--)
		free_irq(pviommu_ring_vector(pv, count), &pv->rings[count]);
}

/* Vector 0 is for events, the next ones are for the rings in use. */
int pviommu_request_irqs(struct pviommu *pv)
{
	int vectors = PVIOMMU_VECTOR_RING + pv->nr_rings;
	struct pci_dev *pdev = pv->pdev;
	struct msi_msg msg = {};
	unsigned int i;
	int ret;

	ret = pci_alloc_irq_vectors(pdev, vectors, vectors, PCI_IRQ_MSIX);
	if (ret < 0) {
		dev_err(&pdev->dev, "%d MSI-X vectors wanted: %pe\n", vectors, ERR_PTR(ret));
		return ret;
	}
	ret = request_threaded_irq(pci_irq_vector(pdev, PVIOMMU_VECTOR_EVENTS), NULL,
				   pviommu_events_interrupt, IRQF_ONESHOT, "pviommu-events", pv);
	if (ret)
		goto err_vectors;
	for (i = 0; i < pv->nr_rings; i++) {
		snprintf(pv->rings[i].name, sizeof(pv->rings[i].name), "pviommu-ring%u", i);
		ret = request_irq(pviommu_ring_vector(pv, i), pviommu_ring_interrupt, 0,
				  pv->rings[i].name, &pv->rings[i]);
		if (ret)
			goto err_rings;
	}
	get_cached_msi_msg(pci_irq_vector(pdev, PVIOMMU_VECTOR_EVENTS), &msg);
	pv->msi_page = ((u64)msg.address_hi << 32 | msg.address_lo) & PAGE_MASK;
	return 0;

err_rings:
	pviommu_free_ring_irqs(pv, i);
	free_irq(pci_irq_vector(pdev, PVIOMMU_VECTOR_EVENTS), pv);
err_vectors:
	pci_free_irq_vectors(pdev);
	return ret;
}

void pviommu_free_irqs(struct pviommu *pv)
{
	pviommu_free_ring_irqs(pv, pv->nr_rings);
	free_irq(pci_irq_vector(pv->pdev, PVIOMMU_VECTOR_EVENTS), pv);
	pci_free_irq_vectors(pv->pdev);
}
