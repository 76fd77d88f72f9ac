// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: doorbells of a command ring, and waiting for completions.
 *
 * Slots and indices are in memory shared with the device, so submitting a command and seeing its
 * completion are plain memory accesses. Only when the device sleeps it asks, by its event index,
 * for a doorbell, which is a trapped register.
 *
 * The rule: before it sleeps, the device publishes as its event index the number of slots that it
 * has completed, and then reads producer once more. So a doorbell is due if and only if the event
 * index lies between completed and producer (completed included), and one doorbell per event index
 * is enough, since the device reads producer when it wakes. An event index before completed is out
 * of date. The driver checks after publishing its slot, with a barrier between: either the device
 * sees the slot, or the driver sees the event index.
 *
 * Checking, ringing and recording the event index (@rung) are done under the ring's lock, with
 * interrupts off. So nothing can interrupt in between and see a doorbell recorded that is not yet
 * rung: it would wait for a device that was not woken, on the CPU that was about to wake it.
 *
 * The check is not needed after each slot. A posted command may stay in the ring of a sleeping
 * device for any time: a posted map is needed only by later DMA, and the device drains its rings
 * before it refuses a translation; a posted unmap is waited for later. So the driver checks when it
 * is about to wait, for a slot or for room, and when the ring is half full.
 *
 * The barrier is mb(), which is for devices, and not virt_mb(), which is for other CPUs: if the
 * guest has one CPU, QEMU's TCG executes the locked instruction of the latter as a plain one.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/delay.h>
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/module.h>

#include "pviommu.h"
#include "pviommu_ring.h"

/* Waits check again this often; by the rule above that never finds a doorbell due. */
#define PVIOMMU_LOOK_AGAIN_MS	10
#define PVIOMMU_LOOK_AGAIN_NS	((u64)PVIOMMU_LOOK_AGAIN_MS * NSEC_PER_MSEC)
/* Checks in a row that find the same doorbell due before it counts as lost. */
#define PVIOMMU_LOST_LOOKS	10
/*
 * Rounds of polling before a wait yields: minimum, maximum, and as a multiple of the usual number.
 */
#define PVIOMMU_LEAST_ROUNDS	64
#define PVIOMMU_MOST_ROUNDS	4096
#define PVIOMMU_USUAL_TIMES	4
/* Polling would have been better for a wait that yielded and ended within this time. */
#define PVIOMMU_SHORT_NS	(50 * NSEC_PER_USEC)
/* The weight of one wait in the usual number, as a power of two. */
#define PVIOMMU_USUAL_SHIFT	3
#define PVIOMMU_MOST_DELAY_US	50000

static unsigned int op_timeout_ms = 5000;
module_param(op_timeout_ms, uint, 0644);
MODULE_PARM_DESC(op_timeout_ms, "time that a command may take before the device is given up");

static unsigned int debug_doorbell_us;
module_param(debug_doorbell_us, uint, 0644);
MODULE_PARM_DESC(debug_doorbell_us, "for tests: time between the decision to ring and the doorbell");

/**
 * struct pviommu_patience - how long a caller has been waiting
 * @seen: when that was last updated, 0 for never
 * @ran: time in which the waiter ran; a time in which it did not run counts as one interval
 *	at most
 * @looked: @ran at the last check
 * @event: event index that was found not rung for at the last check
 * @completed: slots that were completed at that time
 * @suspects: checks in a row that found this
 */
struct pviommu_patience {
	u64 seen;
	u64 ran;
	u64 looked;
	u32 event;
	u32 completed;
	unsigned int suspects;
};

/* Whether all slots before @target are completed. */
static bool pviommu_ring_reached(struct pviommu_ring *ring, u32 target)
{
	return (s32)(pviommu_ring_completed(ring) - target) >= 0;
}

/* Copies the outcome of a command to its owner; its slot is free then. Under the lock. */
void pviommu_ring_hand_over(struct pviommu_ring *ring, struct pviommu_answer *answer)
{
	u32 place = pviommu_ring_place(ring, answer->index);

	answer->command = ring->slots[place];
	answer->taken = true;
	ring->answers[place] = NULL;
}

/* Whether the device asks for a doorbell that was not rung yet. Under the lock. */
static bool pviommu_ring_asks(struct pviommu_ring *ring, u32 *event)
{
	u32 in_flight;

	/* The device publishes its event index, then reads producer: one of both sees it. */
	mb();
	/* Read before completed, so that an outdated event index is recognised. */
	*event = le32_to_cpu(virt_load_acquire(&ring->device->doorbell_event));
	ring->completed = pviommu_ring_completed(ring);
	in_flight = ring->producer - ring->completed;
	/* Moved along when it is out of date, so that an index that wraps never meets it. */
	if (ring->rung - ring->completed >= in_flight)
		ring->rung = ring->completed - 1;
	return *event - ring->completed < in_flight && *event != ring->rung;
}

/* Rings the doorbell for an event index. Under the lock. */
static void pviommu_ring_doorbell(struct pviommu_ring *ring, u32 event)
{
	unsigned int delay = READ_ONCE(debug_doorbell_us);

	if (unlikely(delay)) {
		delay = min(delay, PVIOMMU_MOST_DELAY_US);
		mdelay(delay / USEC_PER_MSEC);
		udelay(delay % USEC_PER_MSEC);
	}
	ring->rung = event;
	ring->doorbells++;
	writel(1, ring->doorbell);
}

/* Rings the doorbell if the device asks for it. Under the lock. */
void pviommu_ring_look(struct pviommu_ring *ring)
{
	u32 event;

	/* if the device does not answer, the access may take seconds */
	if (likely(!pviommu_given_up(ring->pv)) && pviommu_ring_asks(ring, &event))
		pviommu_ring_doorbell(ring, event);
}

/*
 * Begins to wait until all slots before @target are completed; false when they are. This tells the
 * device that the driver polls: otherwise it need not hurry. It is written even if the device was
 * faster, or the device would take the next wait for the first. Of several waits the furthest
 * counts. Under the lock.
 */
static bool pviommu_ring_await(struct pviommu_ring *ring, u32 target, bool polls)
{
	/* an earlier wait that has not ended is between the two, even when indices wrap */
	if (polls && ring->awaited - target > ring->producer - target) {
		ring->awaited = target;
		WRITE_ONCE(ring->guest->awaited, cpu_to_le32(target));
	}
	if (pviommu_ring_reached(ring, target))
		return false;
	pviommu_ring_look(ring);
	return true;
}

/*
 * A doorbell that is due although the driver has checked. This is also seen while the device is
 * between publishing its event index and reading producer: normally for a moment, but on a busy
 * host that can take long. So only one that is found due again and again is a lost one.
 */
static void pviommu_ring_look_again(struct pviommu_ring *ring, struct pviommu_patience *patience)
{
	bool lost = false;
	unsigned long flags;
	u32 event = 0;

	spin_lock_irqsave(&ring->lock, flags);
	if (!pviommu_given_up(ring->pv) && pviommu_ring_asks(ring, &event)) {
		if (patience->event != event || patience->completed != ring->completed)
			patience->suspects = 0;
		lost = ++patience->suspects >= PVIOMMU_LOST_LOOKS;
		patience->event = event;
		patience->completed = ring->completed;
	} else {
		patience->suspects = 0;
	}
	if (lost) {
		ring->rescues++;
		pviommu_ring_doorbell(ring, event);
	}
	spin_unlock_irqrestore(&ring->lock, flags);
	if (lost)
		dev_warn_ratelimited(pviommu_dev(ring->pv), "ring %u: a doorbell for slot %u was lost\n",
				     (unsigned int)(ring - ring->pv->rings), event);
}

/*
 * Updates the time and checks again at each interval. False when the time is up; time in which the
 * guest or its CPU was paused does not count.
 */
static bool pviommu_ring_patient(struct pviommu_ring *ring, struct pviommu_patience *patience)
{
	u64 now = ktime_get_mono_fast_ns();

	if (patience->seen)
		patience->ran += min(now - patience->seen, PVIOMMU_LOOK_AGAIN_NS);
	patience->seen = now;
	if (patience->ran - patience->looked >= PVIOMMU_LOOK_AGAIN_NS) {
		patience->looked = patience->ran;
		pviommu_ring_look_again(ring, patience);
	}
	/* one more check, so that a timeout of 0 does not give up before the first */
	return patience->ran < PVIOMMU_LOOK_AGAIN_NS +
			       (u64)READ_ONCE(op_timeout_ms) * NSEC_PER_MSEC;
}

static void pviommu_ring_give_up(struct pviommu_ring *ring)
{
	if (!pviommu_give_up(ring->pv))
		return;
	dev_err(pviommu_dev(ring->pv), "a command took longer than %u ms: the device is given up (ring %u: %u of %u slots completed, doorbell event %u, rung for %u, %llu doorbells rung)\n",
		op_timeout_ms, (unsigned int)(ring - ring->pv->rings), pviommu_ring_completed(ring),
		READ_ONCE(ring->producer), le32_to_cpu(READ_ONCE(ring->device->doorbell_event)),
		READ_ONCE(ring->rung), READ_ONCE(ring->doorbells));
}

/*
 * After a round of a wait: 0 when it is over, -EAGAIN to go on, -EIO without a device. Completion
 * is checked last, so it is checked once more when the time is up.
 */
static int pviommu_ring_wait_on(struct pviommu_ring *ring, u32 target,
				struct pviommu_patience *patience)
{
	bool patient = pviommu_ring_patient(ring, patience);

	if (pviommu_ring_reached(ring, target))
		return 0;
	if (!patient)
		pviommu_ring_give_up(ring);
	return pviommu_given_up(ring->pv) ? -EIO : -EAGAIN;
}

/* Polls for as long as that usually helps; returns whether it did. */
static bool pviommu_ring_spin(struct pviommu_ring *ring, u32 target)
{
	u32 usual = READ_ONCE(ring->usual), rounds, bound;

	bound = clamp_t(u32, PVIOMMU_USUAL_TIMES * usual, PVIOMMU_LEAST_ROUNDS,
			PVIOMMU_MOST_ROUNDS);
	for (rounds = 0; rounds < bound; rounds++) {
		if (pviommu_ring_reached(ring, target))
			break;
		cpu_relax();
	}
	/* polling in vain makes the next polling shorter */
	usual -= usual >> PVIOMMU_USUAL_SHIFT;
	if (rounds < bound)
		usual += rounds >> PVIOMMU_USUAL_SHIFT;
	WRITE_ONCE(ring->usual, usual);
	return rounds < bound;
}

/* After a wait that yielded. */
static void pviommu_ring_gave_way(struct pviommu_ring *ring, struct pviommu_patience *patience)
{
	u32 usual = READ_ONCE(ring->usual);

	if (patience->ran < PVIOMMU_SHORT_NS)
		WRITE_ONCE(ring->usual, min(2 * usual + PVIOMMU_LEAST_ROUNDS,
					    PVIOMMU_MOST_ROUNDS / PVIOMMU_USUAL_TIMES));
}

/* For waiters that may not sleep. The delay waits as cheaply as the processor can (TPAUSE). */
static int pviommu_ring_poll(struct pviommu_ring *ring, u32 target)
{
	struct pviommu_patience patience = {};
	int ret;

	if (likely(pviommu_ring_spin(ring, target)))
		return 0;
	while ((ret = pviommu_ring_wait_on(ring, target, &patience)) == -EAGAIN)
		udelay(1);
	pviommu_ring_gave_way(ring, &patience);
	return ret;
}

static int pviommu_ring_sleep(struct pviommu_ring *ring, u32 target)
{
	struct pviommu_patience patience = {};
	int ret;

	mutex_lock(&ring->sleeper);
	WRITE_ONCE(ring->guest->completion_event, cpu_to_le32(target - 1));
	/* The device writes completed, then reads the event index. */
	mb();
	while ((ret = pviommu_ring_wait_on(ring, target, &patience)) == -EAGAIN)
		wait_event_timeout(ring->wait, pviommu_ring_reached(ring, target) ||
				   pviommu_given_up(ring->pv),
				   msecs_to_jiffies(PVIOMMU_LOOK_AGAIN_MS));
	mutex_unlock(&ring->sleeper);
	pviommu_ring_gave_way(ring, &patience);
	return ret;
}

/* Waits until all slots before @target are completed: 0, or -EIO without a device. */
static int pviommu_ring_wait(struct pviommu_ring *ring, u32 target, enum pviommu_wait wait)
{
	unsigned long flags;
	bool waits;

	spin_lock_irqsave(&ring->lock, flags);
	waits = pviommu_ring_await(ring, target, wait != PVIOMMU_WAIT_SLEEP);
	spin_unlock_irqrestore(&ring->lock, flags);
	if (!waits)
		return 0;
	if (pviommu_given_up(ring->pv))
		return -EIO;
	if (wait == PVIOMMU_WAIT_BUSY)
		return pviommu_ring_poll(ring, target);
	if (wait == PVIOMMU_WAIT_YIELD && pviommu_ring_spin(ring, target))
		return 0;
	return pviommu_ring_sleep(ring, target);
}

/* Waits for room, with the lock released meanwhile: 0, or -EIO without a device. */
int pviommu_ring_make_room(struct pviommu_ring *ring, unsigned long *flags)
{
	u32 target;

	for (;;) {
		if (pviommu_given_up(ring->pv))
			return -EIO;
		if (pviommu_ring_has_room(ring))
			return 0;
		if (ring->producer - ring->completed > ring->entries) {
			dev_err(pviommu_dev(ring->pv), "ring %u: impossible index %u completed of %u\n",
				(unsigned int)(ring - ring->pv->rings), ring->completed,
				ring->producer);
			pviommu_give_up(ring->pv);
			return -EIO;
		}
		target = ring->producer - ring->entries + 1;
		pviommu_ring_await(ring, target, true);
		spin_unlock_irqrestore(&ring->lock, *flags);
		pviommu_ring_poll(ring, target);
		spin_lock_irqsave(&ring->lock, *flags);
	}
}

/* Sends a command whose outcome pviommu_ring_take() returns: 0, or -EIO without a device. */
int pviommu_ring_send(struct pviommu_ring *ring, struct pviommu_answer *answer)
{
	unsigned long flags;
	int ret;

	ret = pviommu_ring_begin(ring, &flags);
	if (likely(!ret))
		pviommu_ring_put(ring, answer);
	pviommu_ring_end(ring, flags);
	return ret;
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
	unsigned long flags;
	int ret;

	ret = pviommu_ring_wait(ring, answer->index + 1, wait);
	/* even without an outcome: the ring must forget where to copy it */
	spin_lock_irqsave(&ring->lock, flags);
	if (!answer->taken)
		pviommu_ring_hand_over(ring, answer);
	spin_unlock_irqrestore(&ring->lock, flags);
	/* a reset zeroes slots and indices, which would look like success */
	if (ret || pviommu_given_up(ring->pv))
		return -EIO;
	ret = (s32)le32_to_cpu(answer->command.slot.result);
	return ret <= 0 && ret >= -MAX_ERRNO ? ret : -EIO;
}

/*
 * Waits until everything that was sent before this call is completed. Returns at once without a
 * device.
 */
void pviommu_ring_sync(struct pviommu_ring *ring)
{
	unsigned long flags;
	bool waits;
	u32 target;

	spin_lock_irqsave(&ring->lock, flags);
	target = ring->producer;
	waits = !pviommu_given_up(ring->pv) && pviommu_ring_await(ring, target, true);
	spin_unlock_irqrestore(&ring->lock, flags);
	if (waits)
		pviommu_ring_poll(ring, target);
}

/* Slots that the device has not completed yet. */
u32 pviommu_ring_in_flight(struct pviommu_ring *ring)
{
	return READ_ONCE(ring->producer) - pviommu_ring_completed(ring);
}

/*
 * Sends a command that nobody waits for, and rings if necessary: 0, or -EIO when the device is
 * given up. The command gets the sequence that an event would name.
 */
static int pviommu_ring_submit_posted(struct pviommu_ring *ring, struct pviommu_command *command)
{
	unsigned long flags;
	int ret;

	ret = pviommu_ring_begin(ring, &flags);
	if (likely(!ret)) {
		command->slot.sequence = cpu_to_le32(ring->producer + 1);
		*pviommu_ring_next(ring) = *command;
		pviommu_ring_post(ring);
		pviommu_ring_look(ring);
	}
	pviommu_ring_end(ring, flags);
	return ret;
}

/**
 * pviommu_submit - sends a command to the device, through ring 0
 * @pv: the PV-IOMMU
 * @command: slot to send; sequence, result and payload are filled in
 * @wait: how to wait for the result; the doorbell is rung if necessary for a posted command
 *	too
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
		return pviommu_ring_submit_posted(ring, command);
	answer.command = *command;
	ret = pviommu_ring_send(ring, &answer) ?: pviommu_ring_take(ring, &answer, wait);
	*command = answer.command;
	return ret;
}
