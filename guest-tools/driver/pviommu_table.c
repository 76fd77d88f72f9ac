// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the driver's own page table of a domain.
 *
 * The device has the translations; this copy serves iova_to_phys() without a round trip, and shows
 * what an unmap finds and which maps cannot fail. Tables are allocated before the device is asked
 * to map, so that nothing can fail afterwards, and stay until the domain is freed, so that readers
 * need no lock. The IOMMU core never works on one address from two CPUs at a time.
 *
 * An entry is free (0), mapped, or claimed. Claimed pages were reported to the IOMMU core as mapped
 * although the device has not answered yet, has refused them, or was not asked because no context
 * can map them. The core will unmap these too: they count as unmapped then, but the device is not
 * asked.
 *
 * The tables have the structure that the device charges its pool for, so their number is the most
 * that the device can charge.
 *
 * A lowest table (2 MiB) is in one of three states, which are encoded in the pointer to it: empty;
 * one run, of which only the first entry is written, so that a map and an unmap of 2 MiB cost no
 * more than those of a page; or mixed, with all entries written. It becomes mixed when something
 * smaller is written to it, or when a part of the run is removed; that needs no memory.
 *
 * Entries that the state does not use are 0: all of an empty table, all but the first of a run. So
 * a table that becomes mixed has no old entries, and ending that state clears the entries. Only a
 * caller that owns all 2 MiB does that; others, which may work on other addresses of the same table
 * at the same time, can only make it mixed.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/gfp.h>
#include <linux/minmax.h>
#include <linux/string.h>

#include "pviommu_abi.h"
#include "pviommu_table.h"

#define PVIOMMU_LEVEL_BITS		9
#define PVIOMMU_TABLE_ENTRIES	BIT(PVIOMMU_LEVEL_BITS)
/* the device's tables have at least this many levels, however small the aperture */
#define PVIOMMU_LEAST_LEVELS		3U

/* bits of a pointer to a lowest table; with neither the table is empty */
#define PVIOMMU_TABLE_RUN		BIT_ULL(0)
#define PVIOMMU_TABLE_MIXED		BIT_ULL(1)
#define PVIOMMU_TABLE_STATE		(PVIOMMU_TABLE_RUN | PVIOMMU_TABLE_MIXED)

static u64 *pviommu_table_of(u64 slot)
{
	return (u64 *)(uintptr_t)(slot & ~PVIOMMU_TABLE_STATE);
}

static unsigned int pviommu_table_index(u64 dfn, unsigned int level)
{
	return (dfn >> (PVIOMMU_LEVEL_BITS * level)) & (PVIOMMU_TABLE_ENTRIES - 1);
}

static u64 *pviommu_table_page(struct pviommu_table *table, gfp_t gfp)
{
	u64 *page = (u64 *)get_zeroed_page(gfp);

	if (page) {
		atomic_inc(&table->nr);
		atomic_inc(table->pages);
	}
	return page;
}

static void pviommu_table_drop(struct pviommu_table *table, u64 *page)
{
	free_page((unsigned long)page);
	atomic_dec(&table->nr);
	atomic_dec(table->pages);
}

int pviommu_table_init(struct pviommu_table *table, unsigned int aperture_bits, atomic_t *pages)
{
	/* an aperture of one page or less was refused earlier */
	table->levels = max(DIV_ROUND_UP(aperture_bits - PVIOMMU_PAGE_SHIFT, PVIOMMU_LEVEL_BITS),
			    PVIOMMU_LEAST_LEVELS);
	table->pages = pages;
	spin_lock_init(&table->lock);
	/* the root, which is charged when the context is allocated */
	table->credit = 1;
	table->root = pviommu_table_page(table, GFP_KERNEL);
	return table->root ? 0 : -ENOMEM;
}

static void pviommu_table_free_level(struct pviommu_table *table, u64 *page, unsigned int level)
{
	unsigned int i;

	for (i = 0; level && i < PVIOMMU_TABLE_ENTRIES; i++)
		if (page[i])
			pviommu_table_free_level(table, pviommu_table_of(page[i]), level - 1);
	pviommu_table_drop(table, page);
}

void pviommu_table_free(struct pviommu_table *table)
{
	if (table->root)
		pviommu_table_free_level(table, table->root, table->levels - 1);
	table->root = NULL;
}

/* The pointer to the lowest table of @dfn, or NULL when there is no such table. */
static u64 *pviommu_table_slot(struct pviommu_table *table, u64 dfn)
{
	u64 *page = table->root, *slot;
	unsigned int level;

	if (dfn >> (PVIOMMU_LEVEL_BITS * table->levels))
		return NULL;
	for (level = table->levels - 1;; level--) {
		slot = &page[pviommu_table_index(dfn, level)];
		page = pviommu_table_of(READ_ONCE(*slot));
		if (!page)
			return NULL;
		if (level == 1)
			return slot;
	}
}

static int pviommu_table_grow(struct pviommu_table *table, u64 dfn, gfp_t gfp)
{
	u64 *page = table->root, *next, *entry;
	unsigned int level;

	for (level = table->levels - 1; level; level--) {
		entry = &page[pviommu_table_index(dfn, level)];
		next = pviommu_table_of(READ_ONCE(*entry));
		if (!next) {
			next = pviommu_table_page(table, gfp);
			if (!next)
				return -ENOMEM;
			/* Another address below the same entry may be mapped at the same time. */
			if (cmpxchg(entry, 0ULL, (u64)(uintptr_t)next)) {
				pviommu_table_drop(table, next);
				next = pviommu_table_of(READ_ONCE(*entry));
			}
		}
		page = next;
	}
	return 0;
}

static bool pviommu_table_holds(struct pviommu_table *table, u64 dfn, u64 nr_pages)
{
	u64 last = dfn + nr_pages - 1;

	return nr_pages && last >= dfn && !(last >> (PVIOMMU_LEVEL_BITS * table->levels));
}

/* As pviommu_table_slot(), but the table is allocated if necessary; NULL without memory. */
static u64 *pviommu_table_make(struct pviommu_table *table, u64 dfn, gfp_t gfp)
{
	u64 *slot = pviommu_table_slot(table, dfn);

	if (likely(slot))
		return slot;
	return pviommu_table_grow(table, dfn, gfp) ? NULL : pviommu_table_slot(table, dfn);
}

/* Allocates the tables for @nr_pages pages from @dfn. */
int pviommu_table_prepare(struct pviommu_table *table, u64 dfn, u64 nr_pages, gfp_t gfp)
{
	u64 last = dfn + nr_pages - 1, at;
	int ret;

	if (!pviommu_table_holds(table, dfn, nr_pages))
		return -ERANGE;
	for (at = round_down(dfn, PVIOMMU_TABLE_ENTRIES); at <= last; at += PVIOMMU_TABLE_ENTRIES) {
		ret = pviommu_table_grow(table, at, gfp);
		if (ret)
			return ret;
	}
	return 0;
}

/* How many of @nr_pages pages from @dfn are in the lowest table of @dfn. */
static u64 pviommu_table_piece(u64 dfn, u64 nr_pages)
{
	return min(nr_pages, PVIOMMU_TABLE_ENTRIES - pviommu_table_index(dfn, 0));
}

/*
 * From empty or one run to mixed. Two callers may do this to one table, for different addresses. An
 * empty one has no entries to write: see above.
 */
static void pviommu_table_mix(struct pviommu_table *table, u64 *slot)
{
	unsigned long flags;
	u64 *page, value;
	unsigned int i;

	spin_lock_irqsave(&table->lock, flags);
	value = READ_ONCE(*slot);
	page = pviommu_table_of(value);
	if (value & PVIOMMU_TABLE_RUN)
		for (i = 1; i < PVIOMMU_TABLE_ENTRIES; i++)
			WRITE_ONCE(page[i], page[0] + i);
	if (!(value & PVIOMMU_TABLE_MIXED))
		/* The entries are visible before the state. */
		smp_store_release(slot, (u64)(uintptr_t)page | PVIOMMU_TABLE_MIXED);
	/*
	 * Pairs with the lookup: the state is not a run any more before a caller changes its first
	 * entry.
	 */
	smp_wmb();
	spin_unlock_irqrestore(&table->lock, flags);
}

/* The entry of @dfn in a mixed table. */
static u64 *pviommu_table_entry(struct pviommu_table *table, u64 *slot, u64 dfn)
{
	if (unlikely(!(READ_ONCE(*slot) & PVIOMMU_TABLE_MIXED)))
		pviommu_table_mix(table, slot);
	return &pviommu_table_of(READ_ONCE(*slot))[pviommu_table_index(dfn, 0)];
}

/* Makes a whole table one run, or empty when @value is 0. The caller owns all its addresses. */
static void pviommu_table_set_run(u64 *slot, u64 value)
{
	u64 *page = pviommu_table_of(READ_ONCE(*slot));

	if (READ_ONCE(*slot) & PVIOMMU_TABLE_MIXED)
		memset(page, 0, PVIOMMU_TABLE_ENTRIES * sizeof(*page));
	WRITE_ONCE(page[0], value);
	/* The entry is visible before the state. */
	smp_store_release(slot, (u64)(uintptr_t)page | (value ? PVIOMMU_TABLE_RUN : 0));
}

/* Writes entries of one table; returns how many, less than @nr_pages when one is not free. */
static u64 pviommu_table_fill_one(struct pviommu_table *table, u64 *slot, u64 dfn, u64 nr_pages,
				  u64 value)
{
	u64 state = READ_ONCE(*slot) & PVIOMMU_TABLE_STATE, done;
	u64 *entry;

	if (state == PVIOMMU_TABLE_RUN)
		return 0;
	if (nr_pages == PVIOMMU_TABLE_ENTRIES && !state) {
		pviommu_table_set_run(slot, value);
		return nr_pages;
	}
	entry = pviommu_table_entry(table, slot, dfn);
	for (done = 0; done < nr_pages && !READ_ONCE(entry[done]); done++)
		WRITE_ONCE(entry[done], value + done);
	return done;
}

/**
 * pviommu_table_fill - writes entries of free pages, and allocates their tables
 * @table: the table
 * @dfn: first page
 * @nr_pages: how many
 * @value: the first entry, PVIOMMU_ENTRY_* and guest frame; the next have the next frames
 * @gfp: for the tables
 *
 * Return: 0; -ERANGE, -ENOMEM, or -EAGAIN when a page is not free. Then no entry has changed.
 */
int pviommu_table_fill(struct pviommu_table *table, u64 dfn, u64 nr_pages, u64 value, gfp_t gfp)
{
	u64 done = 0, piece, filled, *slot;
	int ret = 0;

	if (!pviommu_table_holds(table, dfn, nr_pages))
		return -ERANGE;
	while (done < nr_pages && !ret) {
		slot = pviommu_table_make(table, dfn + done, gfp);
		if (!slot) {
			ret = -ENOMEM;
			break;
		}
		piece = pviommu_table_piece(dfn + done, nr_pages - done);
		filled = pviommu_table_fill_one(table, slot, dfn + done, piece, value + done);
		done += filled;
		if (filled != piece)
			ret = -EAGAIN;
	}
	if (unlikely(ret))
		pviommu_table_clear(table, dfn, done);
	return ret;
}

/* Writes @nr_pages entries from @dfn, whatever was there. Their tables exist. */
void pviommu_table_set(struct pviommu_table *table, u64 dfn, u64 nr_pages, u64 value)
{
	u64 *slot, *entry, piece, i;

	for (; nr_pages; nr_pages -= piece, dfn += piece, value += piece) {
		slot = pviommu_table_slot(table, dfn);
		piece = pviommu_table_piece(dfn, nr_pages);
		if (piece == PVIOMMU_TABLE_ENTRIES) {
			pviommu_table_set_run(slot, value);
			continue;
		}
		entry = pviommu_table_entry(table, slot, dfn);
		for (i = 0; i < piece; i++)
			WRITE_ONCE(entry[i], value + i);
	}
}

/* Clears @nr_pages entries from @dfn, all of which have tables. */
void pviommu_table_clear(struct pviommu_table *table, u64 dfn, u64 nr_pages)
{
	u64 *slot, *entry, piece, i;

	for (; nr_pages; nr_pages -= piece, dfn += piece) {
		slot = pviommu_table_slot(table, dfn);
		piece = pviommu_table_piece(dfn, nr_pages);
		if (piece == PVIOMMU_TABLE_ENTRIES) {
			pviommu_table_set_run(slot, 0);
			continue;
		}
		entry = pviommu_table_entry(table, slot, dfn);
		for (i = 0; i < piece; i++)
			WRITE_ONCE(entry[i], 0);
	}
}

/*
 * Clears entries of @kind in one table, up to the first of another kind; 0: the kind of the first.
 */
static u64 pviommu_table_clear_one(struct pviommu_table *table, u64 *slot, u64 dfn, u64 nr_pages,
				   u64 *kind)
{
	u64 state = READ_ONCE(*slot) & PVIOMMU_TABLE_STATE, found, run;
	u64 *entry;

	if (!state)
		return 0;
	if (state == PVIOMMU_TABLE_RUN && nr_pages == PVIOMMU_TABLE_ENTRIES) {
		found = READ_ONCE(pviommu_table_of(READ_ONCE(*slot))[0]) & PVIOMMU_ENTRY_KIND;
		*kind = *kind ?: found;
		if (found != *kind)
			return 0;
		pviommu_table_set_run(slot, 0);
		return nr_pages;
	}
	entry = pviommu_table_entry(table, slot, dfn);
	*kind = *kind ?: READ_ONCE(entry[0]) & PVIOMMU_ENTRY_KIND;
	for (run = 0; run < nr_pages; run++) {
		found = READ_ONCE(entry[run]) & PVIOMMU_ENTRY_KIND;
		if (!found || found != *kind)
			break;
		WRITE_ONCE(entry[run], 0);
	}
	return run;
}

/**
 * pviommu_table_clear_run - clears entries up to the first one of another kind
 * @table: the table
 * @dfn: first page
 * @nr_pages: how many at most
 * @kind: PVIOMMU_ENTRY_* of the entries that were cleared, 0 when @dfn is free
 *
 * Return: how many, 0 when @dfn is free.
 */
u64 pviommu_table_clear_run(struct pviommu_table *table, u64 dfn, u64 nr_pages, u64 *kind)
{
	u64 run = 0, piece, cleared, *slot;

	*kind = 0;
	while (run < nr_pages) {
		slot = pviommu_table_slot(table, dfn + run);
		if (!slot)
			break;
		piece = pviommu_table_piece(dfn + run, nr_pages - run);
		cleared = pviommu_table_clear_one(table, slot, dfn + run, piece, kind);
		run += cleared;
		if (cleared != piece)
			break;
	}
	return run;
}

/* The frame that was reported to the core for @dfn: claimed pages are found as well. */
bool pviommu_table_lookup(struct pviommu_table *table, u64 dfn, u64 *gfn)
{
	u64 *slot = pviommu_table_slot(table, dfn);
	u64 state, value;

	*gfn = 0;
	if (!slot)
		return false;
	do {
		/* Pairs with the releases above: the entries that the state uses are visible. */
		state = smp_load_acquire(slot);
		if (state & PVIOMMU_TABLE_RUN)
			value = READ_ONCE(pviommu_table_of(state)[0]) + pviommu_table_index(dfn, 0);
		else if (state & PVIOMMU_TABLE_MIXED)
			value = READ_ONCE(pviommu_table_of(state)[pviommu_table_index(dfn, 0)]);
		else
			value = 0;
		/* A part of the run may have been removed meanwhile. */
		smp_rmb();
	} while (READ_ONCE(*slot) != state);
	*gfn = value & ~PVIOMMU_ENTRY_KIND;
	return value & PVIOMMU_ENTRY_KIND;
}
