// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: a command ring at work.
 *
 * Slots and indices lie in memory that the device shares, so sending a command and learning that it
 * is done are plain memory accesses. Only when the device sleeps does it ask, by its event index,
 * for the doorbell, which is a trapped register.
 *
 * Whether it asks need not be looked at after each slot. A posted command may lie in the ring of a
 * sleeping device for any time: who posts a map relies on the DMA that follows, and the device
 * works off its rings before it refuses a translation; who posts an unmap waits for it later, and
 * whoever waits looks. So the event index is compared with everything since the last look
 * (@notified), by each waiter and by whoever finds the ring half full. Nothing is missed: a device
 * that fell asleep did so at an index that it had completed, that index lies behind every slot that
 * it has not seen, and it has looked at producer after publishing its event index, as the driver
 * looks at the event index after publishing producer. A look may start at @completed instead if
 * that is further on: an event index before it is one that the device has left behind.
 *
 * The barrier between the two is mb(), for a device, and not virt_mb(), for another CPU: QEMU's TCG
 * carries out the locked instruction of the latter as a plain one while the guest has one CPU.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <asm/barrier.h>

#include "pviommu.h"

/* Reading the clock may trap, so a polling waiter looks at it once in so many rounds. */
#define PVIOMMU_SPINS_PER_CLOCK	256
/* A waiter looks again whether the device asks for the doorbell, in case that one got lost. */
#define PVIOMMU_LOOK_AGAIN_MS	10

static unsigned int op_timeout_ms = 5000;
module_param(op_timeout_ms, uint, 0644);
MODULE_PARM_DESC(op_timeout_ms, "time that a command may take before the device is given up");

/*
 * The event index rule of the interface: whether going from @old to @new passes @event.
 * All three wrap.
 */
static bool pviommu_index_passed(u32 event, u32 new, u32 old)
{
	return new - event - 1 < new - old;
}

static u32 pviommu_completed(struct pviommu_ring *ring)
{
	/* Pairs with the device, which writes a slot before it moves the index past it. */
	return le32_to_cpu(virt_load_acquire(&ring->device->completed));
}

/* Whether all slots before @target are completed. */
static bool pviommu_ring_reached(struct pviommu_ring *ring, u32 target)
{
	return (s32)(pviommu_completed(ring) - target) >= 0;
}

/* The device has stopped answering. Nothing it may still write to is ever used again. */
static void pviommu_give_up(struct pviommu_ring *ring)
{
	struct pviommu *pv = ring->pv;

	if (xchg(&pv->given_up, true))
		return;
	dev_err(pviommu_dev(pv), "a command took longer than %u ms: the device is given up (ring %u: %u of %u slots completed, doorbell event %u, looked at up to %u, %llu doorbells rung)\n",
		op_timeout_ms, (unsigned int)(ring - pv->rings), pviommu_completed(ring),
		READ_ONCE(ring->producer), le32_to_cpu(READ_ONCE(ring->device->doorbell_event)),
		READ_ONCE(ring->notified), READ_ONCE(ring->doorbells));
	pviommu_rings_wake(pv);
}

/* Called in each round of a polling loop; false when the time is up. */
static bool pviommu_keep_polling(unsigned int *spins, u64 *deadline)
{
	u64 now;

	cpu_relax();
	if (++*spins % PVIOMMU_SPINS_PER_CLOCK)
		return true;
	now = ktime_get_mono_fast_ns();
	if (!*deadline)
		*deadline = now + (u64)op_timeout_ms * NSEC_PER_MSEC;
	return now < *deadline;
}

/* Copies the outcome of a command to whom it belongs; its slot is free then. Under the lock. */
static void pviommu_ring_hand_over(struct pviommu_ring *ring, struct pviommu_answer *answer)
{
	u32 place = answer->index & (ring->entries - 1);

	answer->command = ring->slots[place];
	answer->taken = true;
	ring->answers[place] = NULL;
}

/*
 * Whether the next slot may be filled. An outcome that lies there untaken is handed over: its owner
 * may be anyone that this CPU has interrupted, so nobody may have to wait for it.
 */
static bool pviommu_ring_room(struct pviommu_ring *ring)
{
	struct pviommu_answer *answer;

	if (ring->producer - ring->completed >= ring->entries) {
		ring->completed = pviommu_completed(ring);
		if (ring->producer - ring->completed >= ring->entries)
			return false;
	}
	answer = ring->answers[ring->producer & (ring->entries - 1)];
	if (unlikely(answer))
		pviommu_ring_hand_over(ring, answer);
	return true;
}

/* Whether the device wants the doorbell for what came since the last look. Under the lock. */
static bool pviommu_ring_asks(struct pviommu_ring *ring)
{
	u32 event, old;

	/* The device publishes its event index, then looks at producer: one of both sees it. */
	mb();
	/* Read before completed, so that an event index left behind is seen to be that. */
	event = le32_to_cpu(virt_load_acquire(&ring->device->doorbell_event));
	ring->completed = pviommu_completed(ring);
	old = (s32)(ring->completed - ring->notified) > 0 ? ring->completed : ring->notified;
	ring->notified = ring->producer;
	if (!pviommu_index_passed(event, ring->producer, old))
		return false;
	ring->doorbells++;
	return true;
}

static bool pviommu_ring_half_full(struct pviommu_ring *ring)
{
	if (likely(ring->producer - ring->completed < ring->entries / 2))
		return false;
	ring->completed = pviommu_completed(ring);
	return ring->producer - ring->completed >= ring->entries / 2;
}

/* Takes the lock when there is room in the ring: 0; or when there is no device any more: -EIO. */
static int pviommu_ring_lock(struct pviommu_ring *ring, unsigned long *flags)
	__acquires(&ring->lock)
{
	unsigned int spins = 0;
	u64 deadline = 0;

	for (;;) {
		spin_lock_irqsave(&ring->lock, *flags);
		if (unlikely(pviommu_given_up(ring->pv)))
			return -EIO;
		if (likely(pviommu_ring_room(ring)))
			return 0;
		spin_unlock_irqrestore(&ring->lock, *flags);
		if (!pviommu_keep_polling(&spins, &deadline))
			pviommu_give_up(ring);
	}
}

/* The slot that is to be filled next. Under the lock. */
static struct pviommu_command *pviommu_ring_next(struct pviommu_ring *ring)
{
	return &ring->slots[ring->producer & (ring->entries - 1)];
}

/* Publishes the next slot, which is filled. Under the lock; whether the doorbell is to be rung. */
static bool pviommu_ring_publish(struct pviommu_ring *ring, bool notify)
{
	u32 index = ring->producer;

	pviommu_ring_next(ring)->slot.sequence = cpu_to_le32(index + 1);
	ring->producer = index + 1;
	/* The slot is there before the index says so. */
	virt_store_release(&ring->guest->producer, cpu_to_le32(index + 1));
	return (notify || pviommu_ring_half_full(ring)) && pviommu_ring_asks(ring);
}

/* Ends what pviommu_ring_lock() began: publishes the next slot unless @ret is an error. */
static int pviommu_ring_unlock_post(struct pviommu_ring *ring, unsigned long flags, int ret,
				    bool notify) __releases(&ring->lock)
{
	bool doorbell = false;

	if (likely(!ret)) {
		pviommu_ring_next(ring)->slot.flags = cpu_to_le16(PVIOMMU_SLOT_POSTED);
		ring->posted++;
		doorbell = pviommu_ring_publish(ring, notify);
	}
	spin_unlock_irqrestore(&ring->lock, flags);
	if (doorbell)
		writel(1, ring->doorbell);
	return ret;
}

/**
 * pviommu_ring_post_map - sends a map that nobody waits for
 * @own: the domain
 * @dfn: first page
 * @gfn: first frame
 * @nr_pages: how many
 * @flags: PVIOMMU_MAP_*
 *
 * Return: 0; -EIO when the device is given up; -EAGAIN, with nothing sent, when the domain has
 * tables that the device has promised no pages for.
 */
int pviommu_ring_post_map(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags)
{
	struct pviommu_ring *ring = own->ring;
	unsigned long irq;
	int ret;

	ret = pviommu_ring_lock(ring, &irq);
	/*
	 * Under the lock: a map that needs a table which the device has promised nothing for comes
	 * after the one that is posted here, or its table is counted already.
	 */
	if (unlikely(!pviommu_table_covered(&own->table)))
		ret = ret ?: -EAGAIN;
	/* Made in its place: the device does not look at it before it is published. */
	if (likely(!ret))
		own->pv->profile->map(pviommu_ring_next(ring), own->ctx, dfn, gfn, nr_pages, flags);
	return pviommu_ring_unlock_post(ring, irq, ret, false);
}

/* Sends an unmap that nobody waits for: 0, or -EIO when the device is given up. */
int pviommu_ring_post_unmap(struct pviommu_domain *own, u64 dfn, u32 nr_pages)
{
	struct pviommu_ring *ring = own->ring;
	unsigned long irq;
	int ret;

	ret = pviommu_ring_lock(ring, &irq);
	if (likely(!ret))
		own->pv->profile->unmap(pviommu_ring_next(ring), own->ctx, dfn, nr_pages);
	return pviommu_ring_unlock_post(ring, irq, ret, false);
}

/*
 * Sends a command that nobody waits for, and tells the device: 0, or -EIO when it is given up. The
 * command gets the sequence that an event would name.
 */
static int pviommu_ring_post(struct pviommu_ring *ring, struct pviommu_command *command)
{
	unsigned long irq;
	int ret;

	ret = pviommu_ring_lock(ring, &irq);
	if (likely(!ret)) {
		command->slot.sequence = cpu_to_le32(ring->producer + 1);
		*pviommu_ring_next(ring) = *command;
	}
	return pviommu_ring_unlock_post(ring, irq, ret, true);
}

/**
 * pviommu_ring_send - sends a command whose outcome pviommu_ring_take() will get
 * @ring: the ring
 * @answer: holds the command; belongs to the ring until it is taken
 * @notify: whether the device is to be told now; else pviommu_ring_notify() must do that
 *
 * Return: 0, or -EIO when the device is given up.
 */
int pviommu_ring_send(struct pviommu_ring *ring, struct pviommu_answer *answer, bool notify)
{
	bool doorbell = false;
	unsigned long flags;
	int ret;

	answer->taken = false;
	ret = pviommu_ring_lock(ring, &flags);
	if (likely(!ret)) {
		answer->index = ring->producer;
		ring->answers[answer->index & (ring->entries - 1)] = answer;
		ring->waited++;
		*pviommu_ring_next(ring) = answer->command;
		doorbell = pviommu_ring_publish(ring, notify);
	}
	spin_unlock_irqrestore(&ring->lock, flags);
	if (doorbell)
		writel(1, ring->doorbell);
	return ret;
}

/* Tells the device of all that was sent, if it wants to know. Returns the index after that. */
u32 pviommu_ring_notify(struct pviommu_ring *ring)
{
	bool doorbell = false;
	unsigned long flags;
	u32 target;

	spin_lock_irqsave(&ring->lock, flags);
	target = ring->producer;
	if (!pviommu_given_up(ring->pv) && !pviommu_ring_reached(ring, target))
		doorbell = pviommu_ring_asks(ring);
	spin_unlock_irqrestore(&ring->lock, flags);
	if (doorbell)
		writel(1, ring->doorbell);
	return target;
}

/* As if nobody had looked at the device's wish yet: costs one needless doorbell at most. */
static void pviommu_ring_look_again(struct pviommu_ring *ring)
{
	unsigned long flags;

	spin_lock_irqsave(&ring->lock, flags);
	ring->notified = pviommu_completed(ring);
	spin_unlock_irqrestore(&ring->lock, flags);
	pviommu_ring_notify(ring);
}

static int pviommu_ring_poll(struct pviommu_ring *ring, u32 target)
{
	u64 deadline = 0, looked = 0, now;
	unsigned int spins = 0;

	while (!pviommu_ring_reached(ring, target)) {
		if (pviommu_given_up(ring->pv))
			return -EIO;
		if (!pviommu_keep_polling(&spins, &deadline)) {
			pviommu_give_up(ring);
			return -EIO;
		}
		if (spins % PVIOMMU_SPINS_PER_CLOCK)
			continue;
		now = ktime_get_mono_fast_ns();
		if (looked && now - looked < PVIOMMU_LOOK_AGAIN_MS * NSEC_PER_MSEC)
			continue;
		if (looked)
			pviommu_ring_look_again(ring);
		looked = now;
	}
	return 0;
}

static int pviommu_ring_sleep(struct pviommu_ring *ring, u32 target)
{
	unsigned long deadline;

	mutex_lock(&ring->sleeper);
	WRITE_ONCE(ring->guest->completion_event, cpu_to_le32(target - 1));
	/* The device moves completed, then looks at the event index. */
	mb();
	deadline = jiffies + msecs_to_jiffies(op_timeout_ms);
	while (!wait_event_timeout(ring->wait,
				   pviommu_ring_reached(ring, target) || pviommu_given_up(ring->pv),
				   msecs_to_jiffies(PVIOMMU_LOOK_AGAIN_MS)) &&
	       time_before(jiffies, deadline))
		pviommu_ring_look_again(ring);
	mutex_unlock(&ring->sleeper);
	if (pviommu_ring_reached(ring, target))
		return 0;
	pviommu_give_up(ring);
	return -EIO;
}

/**
 * pviommu_ring_take - waits for the outcome of a command
 * @ring: the ring
 * @answer: what was sent; its command has the outcome then
 * @wait: how to wait
 *
 * Return: what the device answered, 0 or a negative errno; -EIO when it did not.
 */
int pviommu_ring_take(struct pviommu_ring *ring, struct pviommu_answer *answer,
		      enum pviommu_wait wait)
{
	u32 target = answer->index + 1;
	unsigned long flags;
	int ret;

	ret = wait == PVIOMMU_WAIT_SLEEP ? pviommu_ring_sleep(ring, target)
					 : pviommu_ring_poll(ring, target);
	/* also when there is none: the ring must forget where it would go */
	spin_lock_irqsave(&ring->lock, flags);
	if (!answer->taken)
		pviommu_ring_hand_over(ring, answer);
	spin_unlock_irqrestore(&ring->lock, flags);
	if (ret)
		return ret;
	ret = (s32)le32_to_cpu(answer->command.slot.result);
	return ret <= 0 && ret >= -MAX_ERRNO ? ret : -EIO;
}

/* Waits until all that was sent before this call is completed. Returns at once without a device. */
void pviommu_ring_sync(struct pviommu_ring *ring)
{
	pviommu_ring_poll(ring, pviommu_ring_notify(ring));
}

/* Slots that the device has not completed yet. */
u32 pviommu_ring_in_flight(struct pviommu_ring *ring)
{
	return READ_ONCE(ring->producer) - pviommu_completed(ring);
}

/**
 * pviommu_submit - sends a command to the device, through ring 0
 * @pv: the PV-IOMMU
 * @command: slot to send; sequence, result and payload are filled in
 * @wait: how to wait for the result; the device is told of a posted command too
 *
 * Return: what the device answered, 0 or a negative errno; -EIO when it did not.
 */
int pviommu_submit(struct pviommu *pv, struct pviommu_command *command, enum pviommu_wait wait)
{
	struct pviommu_ring *ring = &pv->rings[0];
	struct pviommu_answer answer;
	int ret;

	command->slot.flags = 0;
	command->slot.result = 0;
	command->slot.completed = 0;
	if (wait == PVIOMMU_POSTED)
		return pviommu_ring_post(ring, command);
	answer.command = *command;
	ret = pviommu_ring_send(ring, &answer, true) ?: pviommu_ring_take(ring, &answer, wait);
	*command = answer.command;
	return ret;
}
