// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: what a domain sends to the ring of its context: maps, unmaps, reserves, and
 * the wait for them.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include "pviommu.h"
#include "pviommu_ring.h"

/**
 * pviommu_ring_post_map - sends a map that nobody waits for
 * @own: the domain
 * @dfn: first page
 * @gfn: first frame
 * @nr_pages: how many
 * @flags: PVIOMMU_MAP_*
 *
 * Return: 0; -EIO when the device is given up; -EAGAIN, with nothing sent, when the domain has
 * tables for which the device has reserved no pages.
 */
int pviommu_ring_post_map(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags)
{
	struct pviommu_ring *ring = own->ring;
	unsigned long irq;
	int ret;

	ret = pviommu_ring_begin(ring, &irq);
	/*
	 * Under the lock: a map that needs a table without a reserved page comes after the one that
	 * is posted here, or its table is counted already.
	 */
	if (unlikely(!pviommu_table_covered(&own->table)))
		ret = ret ?: -EAGAIN;
	if (likely(!ret)) {
		/* Filled in place: the device does not read it before it is published. */
		own->paging.pv->profile->map(pviommu_ring_next(ring), own->paging.ctx, dfn, gfn,
					     nr_pages, flags);
		pviommu_ring_post(ring);
	}
	pviommu_ring_end(ring, irq);
	return ret;
}

/**
 * pviommu_ring_post_unmap - sends an unmap that nobody waits for
 * @own: the domain
 * @dfn: first page
 * @nr_pages: how many
 *
 * It is sent even if the device was given up, as long as its ring has room: should the device
 * resume, it drains its rings before any DMA.
 *
 * Return: 0, or -EIO when the device is given up.
 */
int pviommu_ring_post_unmap(struct pviommu_domain *own, u64 dfn, u32 nr_pages)
{
	struct pviommu_ring *ring = own->ring;
	unsigned long irq;
	int ret;

	ret = pviommu_ring_begin(ring, &irq);
	if (likely(!ret) || (!READ_ONCE(own->paging.pv->reset) && pviommu_ring_has_room(ring))) {
		own->paging.pv->profile->unmap(pviommu_ring_next(ring), own->paging.ctx, dfn,
					       nr_pages);
		pviommu_ring_post(ring);
	}
	pviommu_ring_end(ring, irq);
	return ret;
}

/* Sends a map whose outcome pviommu_op_map_wait() returns: 0, or -EIO. */
int pviommu_op_map_send(struct pviommu_domain *own, struct pviommu_answer *answer, u64 dfn, u64 gfn,
			u32 nr_pages, u32 flags)
{
	own->paging.pv->profile->map(&answer->command, own->paging.ctx, dfn, gfn, nr_pages, flags);
	return pviommu_ring_send(own->ring, answer);
}

/* Waits for a map of @nr_pages; @mapped counts those that are mapped, also on error. */
int pviommu_op_map_wait(struct pviommu_domain *own, struct pviommu_answer *answer, u32 nr_pages,
			u32 *mapped, enum pviommu_wait wait)
{
	int ret = pviommu_ring_take(own->ring, answer, wait);

	*mapped = 0;
	/* without an answer the count is unknown; the device is not used any more */
	if (!pviommu_given_up(own->paging.pv))
		*mapped = min(own->paging.pv->profile->mapped(&answer->command), nr_pages);
	/* User space sees the errno of the device, and must not need to know its profile. */
	if (ret == own->paging.pv->profile->not_backed)
		ret = -EFAULT;
	return !ret && *mapped != nr_pages ? -EIO : ret;
}

/* Waits until the device has completed all that was sent for a domain. */
void pviommu_op_sync(struct pviommu_domain *own)
{
	pviommu_ring_sync(own->ring);
}

static void pviommu_reserve_command(struct pviommu_domain *own, struct pviommu_command *command)
{
	pviommu_command_clear(command);
	command->slot.op_class = PVIOMMU_CLASS_VENDOR;
	command->slot.op = PVIOMMU_VENDOR_OP_RESERVE;
	command->op.reserve.ctx_no = cpu_to_le16(own->paging.ctx);
	command->op.reserve.pages = cpu_to_le32(own->asked);
	/* for the device the last one counts */
	own->asked_at = own->ring->producer;
}

/**
 * pviommu_op_reserve_send - asks the device to reserve pages of its pool for all tables of a domain
 * @own: the domain
 * @answer: for pviommu_op_reserve_take()
 * @pages: how many pages that is
 *
 * Return: 0, or -EIO when the device is given up.
 */
int pviommu_op_reserve_send(struct pviommu_domain *own, struct pviommu_answer *answer, u32 *pages)
{
	struct pviommu_ring *ring = own->ring;
	unsigned long irq;
	int ret;

	ret = pviommu_ring_begin(ring, &irq);
	if (likely(!ret)) {
		/*
		 * Under the lock, and never less than another waiter has asked for. A table that is
		 * allocated meanwhile is not covered.
		 */
		WRITE_ONCE(own->asked, max_t(u32, own->asked, atomic_read(&own->table.nr)));
		*pages = own->asked;
		pviommu_reserve_command(own, &answer->command);
		pviommu_ring_put(ring, answer);
	}
	pviommu_ring_end(ring, irq);
	return ret;
}

/**
 * pviommu_op_reserve_take - waits for what pviommu_op_reserve_send() has asked for
 * @own: the domain
 * @answer: what was sent
 * @pages: how many pages it asked for, which are reserved then
 * @wait: how to wait
 *
 * Return: 0, or what the device answered.
 */
int pviommu_op_reserve_take(struct pviommu_domain *own, struct pviommu_answer *answer, u32 pages,
			    enum pviommu_wait wait)
{
	struct pviommu_ring *ring = own->ring;
	unsigned long flags;
	int ret;

	ret = pviommu_ring_take(ring, answer, wait);
	spin_lock_irqsave(&ring->lock, flags);
	/* if another request was sent since, that one counts: the pages may have been given back */
	if (!ret && own->asked_at == answer->index)
		WRITE_ONCE(own->table.credit, max(own->table.credit, pages));
	spin_unlock_irqrestore(&ring->lock, flags);
	return ret;
}

/*
 * Gives back the reserve of a domain, except for the root of its context. Posted, because it cannot
 * fail. Maps that were posted before it are carried out before it, later ones reserve again.
 */
void pviommu_op_unreserve(struct pviommu_domain *own)
{
	struct pviommu_ring *ring = own->ring;
	unsigned long irq;
	int ret;

	if (READ_ONCE(own->asked) <= 1)
		return;
	ret = pviommu_ring_begin(ring, &irq);
	if (!ret && own->asked > 1) {
		WRITE_ONCE(own->asked, 1);
		WRITE_ONCE(own->table.credit, 1);
		pviommu_reserve_command(own, pviommu_ring_next(ring));
		pviommu_ring_post(ring);
	}
	pviommu_ring_end(ring, irq);
}
