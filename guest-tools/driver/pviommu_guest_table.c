// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: a page table of the guest in the format of VT-d's second stage, which the
 * device walks at the time of the DMA.
 *
 * The device keeps no entry beyond the step of an endpoint in which it has read it. So an entry
 * that becomes present needs nothing but the store. What was removed may be in use until the end of
 * the steps that go on then; waiting for that is left to the caller, who does so once for many
 * entries.
 *
 * An entry is always written by one store of 64 bits, so that a walk sees the old one or the new
 * one. The IOMMU core never works on one address from two CPUs at a time. Tables above the entries
 * of two CPUs are shared: they are put in place by a compare and exchange, and removed only by one
 * that owns all addresses below them. So maps and unmaps take no lock.
 *
 * Who only counts what is mapped owns no addresses, and must not be in a table that is freed: hence
 * a lock, which nobody else takes but who frees one.
 *
 * A table that has become empty stays, because the next map below it is likely to need it. It goes
 * when a large leaf takes its place, once no walk can be in it, or with the domain.
 *
 * If the device tracks what is written, it sets bits of leaves by a compare and exchange at any
 * time. So a leaf is changed by a compare and exchange too, unless it goes altogether. These are
 * sync_*(), since others are not atomic to anybody else in a guest with one CPU.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/minmax.h>

#include <asm/sync_bitops.h>

#include "pviommu_guest_table.h"

static unsigned int pviommu_ss_index(u64 iova, unsigned int level)
{
	return (iova >> pviommu_ss_shift(level)) & (PVIOMMU_SS_ENTRIES - 1);
}

static u64 *pviommu_ss_below(u64 entry)
{
	return phys_to_virt(entry & PVIOMMU_SS_ADDRESS);
}

static bool pviommu_ss_is_leaf(u64 entry, unsigned int level)
{
	return !level || entry & PVIOMMU_SS_LARGE;
}

static u64 *pviommu_ss_page(struct pviommu_guest_table *table, gfp_t gfp)
{
	u64 *page = (u64 *)get_zeroed_page(gfp);

	if (page)
		atomic_inc(table->pages);
	return page;
}

static void pviommu_ss_drop(struct pviommu_guest_table *table, u64 *page)
{
	free_page((unsigned long)page);
	atomic_dec(table->pages);
}

static u64 pviommu_ss_to_table(u64 *page)
{
	return virt_to_phys(page) | PVIOMMU_SS_READ | PVIOMMU_SS_WRITE;
}

/**
 * pviommu_guest_table_init - makes an empty table
 * @table: the table
 * @pages: counts its pages too
 * @quiesce: see struct pviommu_guest_table
 *
 * Return: 0 or -ENOMEM.
 */
int pviommu_guest_table_init(struct pviommu_guest_table *table, atomic_t *pages,
			     bool (*quiesce)(struct pviommu_guest_table *table))
{
	table->pages = pages;
	table->quiesce = quiesce;
	spin_lock_init(&table->lock);
	table->root = pviommu_ss_page(table, GFP_KERNEL_ACCOUNT);
	return table->root ? 0 : -ENOMEM;
}

/* Frees the table @page of @level and those below it. */
static void pviommu_ss_free_level(struct pviommu_guest_table *table, u64 *page, unsigned int level)
{
	unsigned int i;

	for (i = 0; level && i < PVIOMMU_SS_ENTRIES; i++)
		if (page[i] && !pviommu_ss_is_leaf(page[i], level))
			pviommu_ss_free_level(table, pviommu_ss_below(page[i]), level - 1);
	pviommu_ss_drop(table, page);
}

/* Frees all tables. The device does not walk them any more. */
void pviommu_guest_table_free(struct pviommu_guest_table *table)
{
	if (table->root)
		pviommu_ss_free_level(table, table->root, PVIOMMU_SS_LEVELS - 1);
	table->root = NULL;
}

/* Puts a table below a free entry; returns the entry as it is then, 0 without memory. */
static noinline u64 pviommu_ss_grow(struct pviommu_guest_table *table, u64 *entry, gfp_t gfp)
{
	u64 *page = pviommu_ss_page(table, gfp);
	u64 value, old;

	if (!page)
		return 0;
	value = pviommu_ss_to_table(page);
	/* Another address below the same entry may be mapped at the same time. */
	old = cmpxchg(entry, 0ULL, value);
	if (!old)
		return value;
	pviommu_ss_drop(table, page);
	return old;
}

/* The entry of @iova at @level, below tables that are made if necessary; or an ERR_PTR(). */
static u64 *pviommu_ss_make(struct pviommu_guest_table *table, u64 iova, unsigned int level,
			    gfp_t gfp)
{
	u64 *page = table->root, *entry, value;
	unsigned int at;

	for (at = PVIOMMU_SS_LEVELS - 1;; at--) {
		entry = &page[pviommu_ss_index(iova, at)];
		if (at == level)
			return entry;
		value = READ_ONCE(*entry);
		if (unlikely(!value)) {
			value = pviommu_ss_grow(table, entry, gfp);
			if (!value)
				return ERR_PTR(-ENOMEM);
		}
		if (unlikely(value & PVIOMMU_SS_LARGE))
			return ERR_PTR(-EADDRINUSE);
		page = pviommu_ss_below(value);
	}
}

/* Whether there is no leaf in the table @page of @level and in those below it. */
static bool pviommu_ss_is_empty(u64 *page, unsigned int level)
{
	unsigned int i;
	u64 value;

	for (i = 0; i < PVIOMMU_SS_ENTRIES; i++) {
		value = READ_ONCE(page[i]);
		if (value && (pviommu_ss_is_leaf(value, level) ||
			      !pviommu_ss_is_empty(pviommu_ss_below(value), level - 1)))
			return false;
	}
	return true;
}

/*
 * Puts the leaf @value where a table may be that has no leaf. The caller owns all its addresses, so
 * nobody misses the table while no walk finds it any more. If walks may still be in it, it is put
 * back: then it is a table like any other, which goes when this is tried again or with the domain.
 */
static noinline int pviommu_ss_replace(struct pviommu_guest_table *table, u64 *entry,
				       unsigned int level, u64 value)
{
	u64 old = READ_ONCE(*entry);
	unsigned long flags;
	u64 *page;

	if (pviommu_ss_is_leaf(old, level))
		return -EADDRINUSE;
	page = pviommu_ss_below(old);
	if (!pviommu_ss_is_empty(page, level - 1))
		return -EADDRINUSE;
	spin_lock_irqsave(&table->lock, flags);
	WRITE_ONCE(*entry, 0);
	spin_unlock_irqrestore(&table->lock, flags);
	if (!table->quiesce(table)) {
		WRITE_ONCE(*entry, old);
		return -EIO;
	}
	WRITE_ONCE(*entry, value);
	pviommu_ss_free_level(table, page, level - 1);
	return 0;
}

/**
 * pviommu_guest_table_map - writes leaves
 * @table: the table
 * @iova: first device address
 * @paddr: the guest address that it leads to
 * @size: bytes
 * @level: level of the leaves: 0, 1 or 2 for 4 KiB, 2 MiB or 1 GiB, which divide the three above
 * @access: PVIOMMU_SS_READ, PVIOMMU_SS_WRITE or both
 * @gfp: for tables
 * @mapped: the bytes that are mapped are added to it, also on error
 *
 * Return: 0; -EADDRINUSE if something was mapped there; -ENOMEM; -EIO if the device may still be in
 * a table that is in the way.
 */
int pviommu_guest_table_map(struct pviommu_guest_table *table, u64 iova, u64 paddr, u64 size,
			    unsigned int level, u64 access, gfp_t gfp, u64 *mapped)
{
	u64 value = paddr | access | (level ? PVIOMMU_SS_LARGE : 0);
	const u64 step = BIT_ULL(pviommu_ss_shift(level));
	u64 *entry, *end;
	u64 done = 0;
	int ret = 0;

	while (done < size) {
		entry = pviommu_ss_make(table, iova + done, level, gfp);
		if (IS_ERR(entry)) {
			ret = PTR_ERR(entry);
			break;
		}
		end = entry + min(PVIOMMU_SS_ENTRIES - pviommu_ss_index(iova + done, level),
				  (size - done) >> pviommu_ss_shift(level));
		for (; entry < end; entry++, value += step, done += step) {
			if (likely(!READ_ONCE(*entry))) {
				WRITE_ONCE(*entry, value);
				continue;
			}
			ret = pviommu_ss_replace(table, entry, level, value);
			if (ret)
				goto out;
		}
	}
out:
	*mapped += done;
	return ret;
}

/* The leaf of @iova and its level, or NULL. */
static u64 *pviommu_ss_find(struct pviommu_guest_table *table, u64 iova, unsigned int *level,
			    u64 *value)
{
	u64 *page = table->root, *entry;

	for (*level = PVIOMMU_SS_LEVELS - 1;; (*level)--) {
		entry = &page[pviommu_ss_index(iova, *level)];
		*value = READ_ONCE(*entry);
		if (!*value)
			return NULL;
		if (pviommu_ss_is_leaf(*value, *level))
			return entry;
		page = pviommu_ss_below(*value);
	}
}

/*
 * Puts a table of smaller leaves in the place of a leaf: they lead to the same addresses, and what
 * was written through the leaf is written for each of them.
 */
static noinline int pviommu_ss_split(struct pviommu_guest_table *table, u64 *entry,
				     unsigned int level)
{
	const u64 step = BIT_ULL(pviommu_ss_shift(level - 1));
	u64 *page = pviommu_ss_page(table, GFP_ATOMIC);
	u64 value = READ_ONCE(*entry), old, first;
	unsigned int i;

	if (!page)
		return -ENOMEM;
	do {
		old = value;
		first = level > 1 ? old : old & ~PVIOMMU_SS_LARGE;
		for (i = 0; i < PVIOMMU_SS_ENTRIES; i++)
			page[i] = first + i * step;
		value = sync_cmpxchg(entry, old, pviommu_ss_to_table(page));
	} while (value != old);
	return 0;
}

/* Clears leaves of one table, as many as there are in a row and @most at most. */
static u64 pviommu_ss_clear(u64 *entry, unsigned int level, u64 most)
{
	u64 nr, value;

	for (nr = 0; nr < most; nr++) {
		value = READ_ONCE(entry[nr]);
		if (!value || !pviommu_ss_is_leaf(value, level))
			break;
		WRITE_ONCE(entry[nr], 0);
	}
	return nr;
}

/**
 * pviommu_guest_table_unmap - clears leaves up to the first address that has none
 * @table: the table
 * @iova: first device address, a multiple of 4 KiB
 * @size: bytes at most, a multiple of 4 KiB
 *
 * A leaf that reaches beyond the range is split. Without memory for that it stays.
 *
 * Return: how many bytes. A walk that goes on may still use them.
 */
u64 pviommu_guest_table_unmap(struct pviommu_guest_table *table, u64 iova, u64 size)
{
	u64 done = 0, step, value, most, *entry;
	unsigned int level, shift;

	while (done < size) {
		entry = pviommu_ss_find(table, iova + done, &level, &value);
		if (!entry)
			break;
		shift = pviommu_ss_shift(level);
		step = BIT_ULL(shift);
		if (unlikely((iova + done) & (step - 1) || size - done < step)) {
			if (pviommu_ss_split(table, entry, level))
				break;
			continue;
		}
		most = min(PVIOMMU_SS_ENTRIES - pviommu_ss_index(iova + done, level),
			   (size - done) >> shift);
		done += pviommu_ss_clear(entry, level, most) << shift;
	}
	return done;
}

/* Where @iova leads to; false when it is not mapped. */
bool pviommu_guest_table_lookup(struct pviommu_guest_table *table, u64 iova, u64 *paddr)
{
	unsigned int level;
	u64 value, inside;

	*paddr = 0;
	if (!pviommu_ss_find(table, iova, &level, &value))
		return false;
	inside = BIT_ULL(pviommu_ss_shift(level)) - 1;
	*paddr = (value & PVIOMMU_SS_ADDRESS & ~inside) | (iova & inside);
	return true;
}

/* Pages from @iova to @last that are mapped. */
static u64 pviommu_ss_count(struct pviommu_guest_table *table, u64 iova, u64 last)
{
	u64 at = iova, count = 0, value, end, *entry;
	unsigned int level;

	while (at <= last) {
		entry = pviommu_ss_find(table, at, &level, &value);
		end = at | (BIT_ULL(pviommu_ss_shift(level)) - 1);
		if (entry)
			count += (min(end, last) - at + 1) >> PVIOMMU_SS_GRANULE_SHIFT;
		at = end + 1;
	}
	return count;
}

/**
 * pviommu_guest_table_count - counts what is mapped
 * @table: the table
 * @dfn: first page of 4 KiB
 * @last: the last one
 *
 * Others may map and unmap meanwhile.
 *
 * Return: pages of 4 KiB.
 */
u64 pviommu_guest_table_count(struct pviommu_guest_table *table, u64 dfn, u64 last)
{
	const unsigned int top = PVIOMMU_SS_LEVELS - 1;
	u64 at = dfn << PVIOMMU_SS_GRANULE_SHIFT, count = 0, end;
	unsigned long flags;
	bool is_there;

	last = last << PVIOMMU_SS_GRANULE_SHIFT | (BIT_ULL(PVIOMMU_SS_GRANULE_SHIFT) - 1);

	/* piece by piece: this may take long */
	while (at <= last) {
		spin_lock_irqsave(&table->lock, flags);
		is_there = READ_ONCE(table->root[pviommu_ss_index(at, top)]);
		end = at | (BIT_ULL(pviommu_ss_shift(is_there ? top - 1 : top)) - 1);
		count += pviommu_ss_count(table, at, min(end, last));
		spin_unlock_irqrestore(&table->lock, flags);
		at = end + 1;
	}
	return count;
}

/**
 * pviommu_guest_table_dirty - reports the leaves that were written through
 * @table: the table, whose device tracks that
 * @iova: first device address
 * @size: bytes
 * @clear: whether to forget it; a walk that goes on may still write without its being tracked anew
 * @found: called for each, with those of its addresses that are in the range
 * @data: for @found
 *
 * Of a leaf that reaches beyond the range nothing is forgotten: who asks for the rest must learn of
 * it as well.
 */
void pviommu_guest_table_dirty(struct pviommu_guest_table *table, u64 iova, u64 size, bool clear,
			       pviommu_dirty_found found, void *data)
{
	u64 at = iova, last = iova + size - 1, value, inside, end, *entry;
	unsigned int level;

	while (at <= last) {
		entry = pviommu_ss_find(table, at, &level, &value);
		inside = BIT_ULL(pviommu_ss_shift(level)) - 1;
		end = at | inside;
		if (entry && value & PVIOMMU_SS_DIRTY) {
			if (clear && !(at & inside) && end <= last)
				sync_clear_bit(PVIOMMU_SS_DIRTY_BIT, (unsigned long *)entry);
			found(data, at, min(end, last) - at + 1);
		}
		at = end + 1;
	}
}
