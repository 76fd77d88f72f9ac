// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the command ring.
 *
 * Slots and indices lie in memory that the device shares, so sending a command and taking its
 * result are plain memory accesses. Only when the device sleeps does it ask, by its event index,
 * for the doorbell, which is a trapped register.
 */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <asm/barrier.h>

#include "pv_iommu.h"

/* Reading the clock may trap, so a polling waiter looks at it once in so many rounds. */
#define PV_SPINS_PER_CLOCK	256

static unsigned int op_timeout_ms = 5000;
module_param(op_timeout_ms, uint, 0644);
MODULE_PARM_DESC(op_timeout_ms, "time that a command may take before the device is given up");

/*
 * The event index rule of the interface: whether going from @old to @new passes @event.
 * All three wrap.
 */
static bool pv_index_passed(u32 event, u32 new, u32 old)
{
	return new - event - 1 < new - old;
}

static u32 pv_completed(struct pv_ring *ring)
{
	/* Pairs with the device, which writes a slot before it moves the index past it. */
	return le32_to_cpu(virt_load_acquire(&ring->device->completed));
}

static bool pv_room(struct pv_ring *ring)
{
	return ring->producer - pv_completed(ring) < ring->entries &&
	       !test_bit_acquire(ring->producer & (ring->entries - 1), ring->busy);
}

static bool pv_broken(struct pv_ring *ring)
{
	return READ_ONCE(ring->broken);
}

/* The device has stopped answering. Nothing it may still write to is ever used again. */
static void pv_ring_break(struct pv_iommu *pv)
{
	struct pv_ring *ring = &pv->ring;

	if (xchg(&ring->broken, true))
		return;
	dev_err(pv_dev(pv), "a command took longer than %u ms: the device is given up\n",
		op_timeout_ms);
	wake_up_all(&ring->wait);
}

/* Called in each round of a polling loop; false when the command's time is up. */
static bool pv_keep_polling(unsigned int *spins, u64 *deadline)
{
	u64 now;

	cpu_relax();
	if (++*spins % PV_SPINS_PER_CLOCK)
		return true;
	now = ktime_get_mono_fast_ns();
	if (!*deadline)
		*deadline = now + (u64)op_timeout_ms * NSEC_PER_MSEC;
	return now < *deadline;
}

/* Fills the next slot and publishes it. Returns with its index, or -EIO. */
static int pv_ring_push(struct pv_iommu *pv, struct pv_command *command, bool posted, u32 *index)
{
	struct pv_ring *ring = &pv->ring;
	unsigned int spins = 0;
	unsigned long flags;
	u64 deadline = 0;
	u32 place, event;

	for (;;) {
		spin_lock_irqsave(&ring->lock, flags);
		if (pv_broken(ring)) {
			spin_unlock_irqrestore(&ring->lock, flags);
			return -EIO;
		}
		if (pv_room(ring))
			break;
		spin_unlock_irqrestore(&ring->lock, flags);
		if (!pv_keep_polling(&spins, &deadline)) {
			pv_ring_break(pv);
			return -EIO;
		}
	}
	*index = ring->producer++;
	place = *index & (ring->entries - 1);
	command->slot.sequence = cpu_to_le32(*index + 1);
	ring->slots[place] = *command;
	if (!posted)
		__set_bit(place, ring->busy);
	/* The slot is there before the index says so. */
	virt_store_release(&ring->guest->producer, cpu_to_le32(*index + 1));
	spin_unlock_irqrestore(&ring->lock, flags);

	/* The device publishes its event index, then looks at producer: one of both sees it. */
	virt_mb();
	event = le32_to_cpu(READ_ONCE(ring->device->doorbell_event));
	if (pv_index_passed(event, *index + 1, *index))
		writel(1, ring->doorbell);
	return 0;
}

static bool pv_ring_done(struct pv_ring *ring, u32 index)
{
	struct pv_command *slot = &ring->slots[index & (ring->entries - 1)];

	return (s32)(pv_completed(ring) - index) > 0 &&
	       le32_to_cpu(READ_ONCE(slot->slot.completed)) == index + 1;
}

static int pv_ring_poll(struct pv_iommu *pv, u32 index)
{
	unsigned int spins = 0;
	u64 deadline = 0;

	while (!pv_ring_done(&pv->ring, index)) {
		if (pv_broken(&pv->ring))
			return -EIO;
		if (!pv_keep_polling(&spins, &deadline)) {
			pv_ring_break(pv);
			return -EIO;
		}
	}
	return 0;
}

static int pv_ring_sleep(struct pv_iommu *pv, u32 index)
{
	struct pv_ring *ring = &pv->ring;

	mutex_lock(&ring->sleeper);
	WRITE_ONCE(ring->guest->completion_event, cpu_to_le32(index));
	/* The device moves completed, then looks at the event index. */
	virt_mb();
	wait_event_timeout(ring->wait, pv_ring_done(ring, index) || pv_broken(ring),
			   msecs_to_jiffies(op_timeout_ms));
	mutex_unlock(&ring->sleeper);
	if (pv_ring_done(ring, index))
		return 0;
	pv_ring_break(pv);
	return -EIO;
}

/**
 * pv_submit - sends a command to the device
 * @pv: the PV-IOMMU
 * @command: slot to send; sequence, result and payload are filled in
 * @wait: how to wait for the result
 *
 * Return: what the device answered, 0 or a negative errno; -EIO when it did not.
 */
int pv_submit(struct pv_iommu *pv, struct pv_command *command, enum pv_wait wait)
{
	struct pv_ring *ring = &pv->ring;
	u32 index, place;
	int ret;

	command->slot.flags = cpu_to_le16(wait == PV_POSTED ? PVIOMMU_SLOT_POSTED : 0);
	command->slot.result = 0;
	command->slot.completed = 0;
	ret = pv_ring_push(pv, command, wait == PV_POSTED, &index);
	if (ret || wait == PV_POSTED)
		return ret;
	ret = wait == PV_WAIT_SLEEP ? pv_ring_sleep(pv, index) : pv_ring_poll(pv, index);
	if (ret)
		return ret;
	place = index & (ring->entries - 1);
	*command = ring->slots[place];
	clear_bit_unlock(place, ring->busy);
	ret = (s32)le32_to_cpu(command->slot.result);
	return ret <= 0 && ret >= -MAX_ERRNO ? ret : -EIO;
}

irqreturn_t pv_ring_interrupt(int irq, void *data)
{
	struct pv_iommu *pv = data;

	wake_up_all(&pv->ring.wait);
	return IRQ_HANDLED;
}

/* Slots that the device has not completed yet. */
u32 pv_ring_in_flight(struct pv_iommu *pv)
{
	return READ_ONCE(pv->ring.producer) - pv_completed(&pv->ring);
}

/* Finds the place of ring 0 in the shared memory. The ring is off. */
int pv_ring_init(struct pv_iommu *pv)
{
	u32 most = readl(pv->regs + PVIOMMU_REG_MAX_RING_ENTRIES);
	u32 area = readl(pv->regs + PVIOMMU_REG_RING_AREA);
	u32 size = readl(pv->regs + PVIOMMU_REG_RING_AREA_SIZE);
	struct pv_ring *ring = &pv->ring;

	spin_lock_init(&ring->lock);
	mutex_init(&ring->sleeper);
	init_waitqueue_head(&ring->wait);
	if (!most || area > PVIOMMU_SHARED_BAR_SIZE || size > PVIOMMU_SHARED_BAR_SIZE - area ||
	    !IS_ALIGNED(area, PVIOMMU_SLOT_SIZE)) {
		dev_err(pv_dev(pv), "ring area %#x+%#x for %u slots does not fit the shared BAR\n",
			area, size, most);
		return -EINVAL;
	}
	ring->entries = min3((u32)PV_RING_ENTRIES, rounddown_pow_of_two(most),
			     rounddown_pow_of_two(max(size / PVIOMMU_SLOT_SIZE, 1U)));
	if (ring->entries < PVIOMMU_MIN_RING_ENTRIES) {
		dev_err(pv_dev(pv), "a ring of %u slots is smaller than the least, %u\n",
			ring->entries, PVIOMMU_MIN_RING_ENTRIES);
		return -EINVAL;
	}
	ring->guest = pv->shared + PVIOMMU_INDEX_OFFSET;
	ring->device = (void *)ring->guest + PVIOMMU_CACHE_LINE;
	ring->slots = pv->shared + area;
	ring->doorbell = pv->regs + PVIOMMU_REG_DOORBELL;
	return 0;
}

int pv_ring_start(struct pv_iommu *pv)
{
	u32 area = readl(pv->regs + PVIOMMU_REG_RING_AREA);
	struct pv_ring *ring = &pv->ring;
	u32 status;

	/*
	 * The reset that came before has zeroed the index words, the guest's as well. A completion
	 * event of 0 costs one needless interrupt; later values were all passed before they could.
	 */
	memset(ring->slots, 0, array_size(ring->entries, PVIOMMU_SLOT_SIZE));

	writel(0, pv->regs + PVIOMMU_REG_RING_SELECT);
	writel(PVIOMMU_RING_TYPE_SHARED_BAR, pv->regs + PVIOMMU_REG_RING_TYPE);
	writel(ring->entries, pv->regs + PVIOMMU_REG_RING_ENTRIES);
	writel(area, pv->regs + PVIOMMU_REG_RING_BASE_LO);
	writel(0, pv->regs + PVIOMMU_REG_RING_BASE_HI);
	writel(PVIOMMU_RING_CONTROL_ENABLE, pv->regs + PVIOMMU_REG_RING_CONTROL);

	status = readl(pv->regs + PVIOMMU_REG_STATUS);
	if (status & PVIOMMU_STATUS_MEMORY_NOT_SHARED) {
		dev_err(pv_dev(pv), "guest memory is not shared with the device: share=on is missing\n");
		return -ENODEV;
	}
	if (status & PVIOMMU_STATUS_REFUSED ||
	    !(readl(pv->regs + PVIOMMU_REG_RING_STATUS) & PVIOMMU_RING_STATUS_ENABLED)) {
		dev_err(pv_dev(pv), "the device refused a ring of %u slots at %#x (status %#x)\n",
			ring->entries, area, status);
		return -EIO;
	}
	return 0;
}

void pv_ring_stop(struct pv_iommu *pv)
{
	writel(0, pv->regs + PVIOMMU_REG_RING_SELECT);
	writel(0, pv->regs + PVIOMMU_REG_RING_CONTROL);
}
