/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Paravirtual IOMMU: putting slots into a command ring.
 *
 * pviommu_ring_begin() takes the ring's lock, the caller fills the slot pviommu_ring_next() in
 * place, and pviommu_ring_end() publishes it. These are inline, because a map and an unmap are
 * short.
 */
#ifndef _PVIOMMU_RING_H
#define _PVIOMMU_RING_H

#include <asm/barrier.h>

#include "pviommu.h"

/* pviommu_ring.c */
int pviommu_ring_make_room(struct pviommu_ring *ring, unsigned long *flags);
void pviommu_ring_hand_over(struct pviommu_ring *ring, struct pviommu_answer *answer);
void pviommu_ring_look(struct pviommu_ring *ring);

static inline u32 pviommu_ring_completed(struct pviommu_ring *ring)
{
	/* Pairs with the device, which writes a slot before it moves the index past it. */
	return le32_to_cpu(virt_load_acquire(&ring->device->completed));
}

static inline u32 pviommu_ring_place(struct pviommu_ring *ring, u32 index)
{
	return index & (ring->entries - 1);
}

/* The slot to be filled next. Under the lock. */
static inline struct pviommu_command *pviommu_ring_next(struct pviommu_ring *ring)
{
	return &ring->slots[pviommu_ring_place(ring, ring->producer)];
}

/*
 * Whether the next slot may be filled. An outcome that was not taken yet is copied to its owner
 * first: this CPU may have interrupted that owner, so it must not be waited for. Under the lock.
 */
static inline bool pviommu_ring_has_room(struct pviommu_ring *ring)
{
	struct pviommu_answer *answer;

	if (ring->producer - ring->completed >= ring->entries) {
		ring->completed = pviommu_ring_completed(ring);
		if (ring->producer - ring->completed >= ring->entries)
			return false;
	}
	answer = ring->answers[pviommu_ring_place(ring, ring->producer)];
	if (unlikely(answer))
		pviommu_ring_hand_over(ring, answer);
	return true;
}

/**
 * pviommu_ring_begin - takes the lock of a ring that has room
 * @ring: the ring
 * @flags: for pviommu_ring_end()
 *
 * Return: 0, or -EIO when the device is given up. The lock is taken in both cases.
 */
static inline int pviommu_ring_begin(struct pviommu_ring *ring, unsigned long *flags)
	__acquires(&ring->lock)
{
	spin_lock_irqsave(&ring->lock, *flags);
	if (likely(!pviommu_given_up(ring->pv) && pviommu_ring_has_room(ring)))
		return 0;
	return pviommu_ring_make_room(ring, flags);
}

/* Publishes the next slot, which is filled except for its sequence. Under the lock. */
static inline void pviommu_ring_publish(struct pviommu_ring *ring)
{
	u32 index = ring->producer;

	pviommu_ring_next(ring)->slot.sequence = cpu_to_le32(index + 1);
	ring->producer = index + 1;
	/* The slot is visible before the index. */
	virt_store_release(&ring->guest->producer, cpu_to_le32(index + 1));
	/* Even if nobody waits, a sleeping device must not fall behind by more than half a ring. */
	if (unlikely(ring->producer - ring->completed >= ring->entries / 2))
		pviommu_ring_look(ring);
}

/* Publishes the next slot as one that nobody waits for. Under the lock. */
static inline void pviommu_ring_post(struct pviommu_ring *ring)
{
	pviommu_ring_next(ring)->slot.flags = cpu_to_le16(PVIOMMU_SLOT_POSTED);
	ring->posted++;
	pviommu_ring_publish(ring);
}

/* Publishes a command whose outcome pviommu_ring_take() returns. Under the lock. */
static inline void pviommu_ring_put(struct pviommu_ring *ring, struct pviommu_answer *answer)
{
	answer->taken = false;
	answer->index = ring->producer;
	ring->answers[pviommu_ring_place(ring, answer->index)] = answer;
	ring->waited++;
	*pviommu_ring_next(ring) = answer->command;
	pviommu_ring_publish(ring);
}

/* Ends what pviommu_ring_begin() began. */
static inline void pviommu_ring_end(struct pviommu_ring *ring, unsigned long flags)
	__releases(&ring->lock)
{
	spin_unlock_irqrestore(&ring->lock, flags);
}

#endif /* _PVIOMMU_RING_H */
