// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: maps that may fail, in domains that do not belong to the DMA API (VFIO,
 * iommufd).
 *
 * Their users want the exact error of the map that failed. So map_pages() sends the command and
 * remembers it, and iotlb_sync_map(), which the core calls once after all map_pages() of an
 * iommu_map() or iommu_map_sg(), waits for the outcomes.
 *
 * What the core relies on, and how the driver provides it:
 *
 * - It will unmap exactly what map_pages() reported, from the first page on and until an
 *   unmap_pages() returns 0, in pieces that follow size and alignment of the rest, not the maps.
 *   When a later map_pages() of the same call fails, it does so without iotlb_sync_map(); when
 *   iotlb_sync_map() fails, it unmaps the whole range of that call.
 * - So a page that was reported is an entry of the table from then on: first claimed, mapped once
 *   the device has mapped it, and still claimed if the device has refused it. unmap_pages() counts
 *   both kinds and sends unmaps for the mapped ones only. So a refused page in the middle does not
 *   end the core's unmap early, and the device is not asked to unmap a page that it does not have.
 * - unmap_pages() first waits for the outcomes of all commands that overlap its range, because a
 *   claimed page may turn out to be mapped.
 * - The core never works on one address from two CPUs, so an outcome is taken by one caller only;
 *   other addresses of the domain may be mapped at the same time, hence the lock.
 * - When there is no place to remember another map, the outcome of the oldest is taken, while the
 *   others stay outstanding. It has to be one of the same task, whose addresses no other task works
 *   on. If it has failed it keeps its place, with the error, for the iotlb_sync_map() or
 *   unmap_pages() that follows.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/sched.h>

#include "pviommu.h"

/* A free place to remember a map in, or NULL. */
static struct pviommu_pending *pviommu_pending_get(struct pviommu_domain *own)
{
	struct pviommu_pending *found = NULL;
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&own->lock, flags);
	for (i = 0; i < PVIOMMU_PENDING_MAPS && !found; i++)
		if (own->pending[i].state == PVIOMMU_PENDING_FREE)
			found = &own->pending[i];
	if (found) {
		/* the caller sends it; until then nothing looks for it */
		found->state = PVIOMMU_PENDING_TAKING;
		WRITE_ONCE(own->nr_pending, own->nr_pending + 1);
	}
	spin_unlock_irqrestore(&own->lock, flags);
	return found;
}

static void pviommu_pending_put(struct pviommu_domain *own, struct pviommu_pending *map, int state)
{
	unsigned long flags;

	spin_lock_irqsave(&own->lock, flags);
	map->state = state;
	if (state == PVIOMMU_PENDING_FREE)
		WRITE_ONCE(own->nr_pending, own->nr_pending - 1);
	spin_unlock_irqrestore(&own->lock, flags);
}

static bool pviommu_pending_touches(const struct pviommu_pending *map, u64 dfn, u64 last)
{
	return map->dfn <= last && map->dfn + map->nr_pages - 1 >= dfn;
}

/*
 * The oldest map that was sent for pages from @dfn to @last and whose outcome was not taken yet, or
 * NULL. With @owner only maps of that task that have not failed.
 */
static struct pviommu_pending *pviommu_pending_next(struct pviommu_domain *own, u64 dfn, u64 last,
						    const struct task_struct *owner)
{
	struct pviommu_pending *found = NULL, *map;
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&own->lock, flags);
	for (i = 0; i < PVIOMMU_PENDING_MAPS; i++) {
		map = &own->pending[i];
		if (map->state != PVIOMMU_PENDING_SENT &&
		    (owner || map->state != PVIOMMU_PENDING_FAILED))
			continue;
		if ((owner && map->owner != owner) || !pviommu_pending_touches(map, dfn, last))
			continue;
		/* the oldest one, so that the first error is that of the first map that failed */
		if (!found || (s32)(map->answer.index - found->answer.index) < 0)
			found = map;
	}
	if (found)
		found->state = PVIOMMU_PENDING_TAKING;
	spin_unlock_irqrestore(&own->lock, flags);
	return found;
}

/* Waits for a map; returns 0 or its error, which is remembered. */
static int pviommu_pending_take(struct pviommu_domain *own, struct pviommu_pending *map)
{
	u32 mapped;

	if (map->error == -EINPROGRESS) {
		map->error = pviommu_op_map_wait(own, &map->answer, map->nr_pages, &mapped,
						 PVIOMMU_WAIT_BUSY);
		pviommu_table_set(&own->table, map->dfn, mapped, PVIOMMU_ENTRY_MAPPED | map->gfn);
	}
	return map->error;
}

/* Makes a place free by taking the outcome of its map; NULL when this task has none. */
static struct pviommu_pending *pviommu_pending_make_room(struct pviommu_domain *own)
{
	struct pviommu_pending *map;

	while ((map = pviommu_pending_next(own, 0, U64_MAX, current))) {
		if (!pviommu_pending_take(own, map))
			return map;
		pviommu_pending_put(own, map, PVIOMMU_PENDING_FAILED);
	}
	return NULL;
}

/**
 * pviommu_pending_map - sends a map and remembers it
 * @own: the domain
 * @dfn: first page
 * @gfn: first frame
 * @nr_pages: how many, no more than the device takes at once
 * @flags: PVIOMMU_MAP_*
 * @gfp: for tables
 *
 * Return: 0 when all pages are claimed; -EAGAIN when the caller has to wait for the map instead,
 * because a page is not free, or because all places are used by other tasks or by maps that have
 * failed; -ERANGE, -ENOMEM, -EIO. An error changes nothing.
 */
int pviommu_pending_map(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
			gfp_t gfp)
{
	struct pviommu_pending *map = pviommu_pending_get(own) ?: pviommu_pending_make_room(own);
	int ret;

	if (!map)
		return -EAGAIN;
	ret = pviommu_table_fill(&own->table, dfn, nr_pages, PVIOMMU_ENTRY_CLAIMED | gfn, gfp);
	if (ret)
		goto err_put;
	map->dfn = dfn;
	map->gfn = gfn;
	map->nr_pages = nr_pages;
	map->owner = current;
	/* until the outcome is taken */
	map->error = -EINPROGRESS;
	ret = pviommu_op_map_send(own, &map->answer, dfn, gfn, nr_pages, flags);
	if (ret)
		goto err_clear;
	pviommu_pending_put(own, map, PVIOMMU_PENDING_SENT);
	return 0;

err_clear:
	pviommu_table_clear(&own->table, dfn, nr_pages);
err_put:
	pviommu_pending_put(own, map, PVIOMMU_PENDING_FREE);
	return ret;
}

/**
 * pviommu_pending_collect - takes the outcomes of remembered maps
 * @own: the domain
 * @dfn: first page
 * @nr_pages: how many, not 0
 *
 * Return: the error of the first map among those pages that failed, or 0.
 */
int pviommu_pending_collect(struct pviommu_domain *own, u64 dfn, u64 nr_pages)
{
	u64 last = dfn + nr_pages - 1;
	struct pviommu_pending *map;
	int ret = 0, error;

	if (likely(!READ_ONCE(own->nr_pending)))
		return 0;
	while ((map = pviommu_pending_next(own, dfn, last, NULL))) {
		error = pviommu_pending_take(own, map);
		pviommu_pending_put(own, map, PVIOMMU_PENDING_FREE);
		ret = ret ?: error;
	}
	return ret;
}
