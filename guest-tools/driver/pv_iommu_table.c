// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the driver's own table of a domain.
 *
 * The device keeps the translations; this copy answers iova_to_phys() without a round trip, tells
 * unmap what is there, and tells which maps cannot fail. Tables are made before the device is asked
 * to map, so that nothing can fail afterwards, and stay until the domain is freed, so that readers
 * need no lock. The IOMMU core never works on one address from two sides at a time.
 *
 * An entry is free (0), mapped, or claimed: pages that map reported to the IOMMU core although the
 * device has not answered yet, or has refused them. The core will unmap those as well, so they
 * count as unmapped then, but the device is not asked.
 *
 * The shape is the one that the device charges its pool for, so the number of tables here is what
 * its tables can need at most.
 */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include <linux/gfp.h>

#include "pv_iommu.h"

#define PV_LEVEL_BITS		9
#define PV_TABLE_ENTRIES	BIT(PV_LEVEL_BITS)
/* the device's tables have as many levels at least, however small the aperture */
#define PV_LEAST_LEVELS		3U

static unsigned int pv_table_index(u64 dfn, unsigned int level)
{
	return (dfn >> (PV_LEVEL_BITS * level)) & (PV_TABLE_ENTRIES - 1);
}

static u64 *pv_table_page(struct pv_table *table, gfp_t gfp)
{
	u64 *page = (u64 *)get_zeroed_page(gfp);

	if (page) {
		atomic_inc(&table->nr);
		atomic_inc(table->pages);
	}
	return page;
}

static void pv_table_drop(struct pv_table *table, u64 *page)
{
	free_page((unsigned long)page);
	atomic_dec(&table->nr);
	atomic_dec(table->pages);
}

int pv_table_init(struct pv_table *table, unsigned int aperture_bits, atomic_t *pages)
{
	/* apertures of a page or less were refused */
	table->levels = max(DIV_ROUND_UP(aperture_bits - PVIOMMU_PAGE_SHIFT, PV_LEVEL_BITS),
			    PV_LEAST_LEVELS);
	table->pages = pages;
	/* the root, which a context is charged when it is allocated */
	table->credit = 1;
	table->root = pv_table_page(table, GFP_KERNEL);
	return table->root ? 0 : -ENOMEM;
}

static void pv_table_free_level(struct pv_table *table, u64 *page, unsigned int level)
{
	unsigned int i;

	for (i = 0; level && i < PV_TABLE_ENTRIES; i++)
		if (page[i])
			pv_table_free_level(table, (u64 *)(uintptr_t)page[i], level - 1);
	pv_table_drop(table, page);
}

void pv_table_free(struct pv_table *table)
{
	if (table->root)
		pv_table_free_level(table, table->root, table->levels - 1);
	table->root = NULL;
}

/* The entry of @dfn in a table of the lowest level, or NULL when there is no such table. */
static u64 *pv_table_entry(struct pv_table *table, u64 dfn)
{
	u64 *page = table->root;
	unsigned int level;

	if (dfn >> (PV_LEVEL_BITS * table->levels))
		return NULL;
	for (level = table->levels - 1; level; level--) {
		page = (u64 *)(uintptr_t)READ_ONCE(page[pv_table_index(dfn, level)]);
		if (!page)
			return NULL;
	}
	return &page[pv_table_index(dfn, 0)];
}

static int pv_table_grow(struct pv_table *table, u64 dfn, gfp_t gfp)
{
	u64 *page = table->root, *next, *entry;
	unsigned int level;

	for (level = table->levels - 1; level; level--) {
		entry = &page[pv_table_index(dfn, level)];
		next = (u64 *)(uintptr_t)READ_ONCE(*entry);
		if (!next) {
			next = pv_table_page(table, gfp);
			if (!next)
				return -ENOMEM;
			/* Another address below the same entry may be mapped right now. */
			if (cmpxchg(entry, 0ULL, (u64)(uintptr_t)next)) {
				pv_table_drop(table, next);
				next = (u64 *)(uintptr_t)READ_ONCE(*entry);
			}
		}
		page = next;
	}
	return 0;
}

static bool pv_table_holds(struct pv_table *table, u64 dfn, u64 nr_pages)
{
	u64 last = dfn + nr_pages - 1;

	return nr_pages && last >= dfn && !(last >> (PV_LEVEL_BITS * table->levels));
}

/* The entry of @dfn, whose table is made if need be, or NULL. */
static u64 *pv_table_make(struct pv_table *table, u64 dfn, gfp_t gfp)
{
	u64 *entry = pv_table_entry(table, dfn);

	if (likely(entry))
		return entry;
	return pv_table_grow(table, dfn, gfp) ? NULL : pv_table_entry(table, dfn);
}

/* Makes the tables for @nr_pages pages from @dfn. */
int pv_table_prepare(struct pv_table *table, u64 dfn, u64 nr_pages, gfp_t gfp)
{
	u64 last = dfn + nr_pages - 1, at;
	int ret;

	if (!pv_table_holds(table, dfn, nr_pages))
		return -ERANGE;
	for (at = round_down(dfn, PV_TABLE_ENTRIES); at <= last; at += PV_TABLE_ENTRIES) {
		ret = pv_table_grow(table, at, gfp);
		if (ret)
			return ret;
	}
	return 0;
}

/**
 * pv_table_fill - makes entries of free pages, and the tables for them
 * @table: the table
 * @dfn: first page
 * @nr_pages: how many
 * @value: the first entry, PV_ENTRY_* and guest frame; the next ones have the next guest frames
 * @gfp: for the tables
 *
 * Return: 0; -ERANGE, -ENOMEM, or -EAGAIN when a page is not free. Then no entry has changed.
 */
int pv_table_fill(struct pv_table *table, u64 dfn, u64 nr_pages, u64 value, gfp_t gfp)
{
	u64 *entry = NULL;
	int ret = -EAGAIN;
	u64 done;

	if (!pv_table_holds(table, dfn, nr_pages))
		return -ERANGE;
	for (done = 0; done < nr_pages; done++, entry++) {
		if (!entry || !pv_table_index(dfn + done, 0))
			entry = pv_table_make(table, dfn + done, gfp);
		if (!entry) {
			ret = -ENOMEM;
			break;
		}
		if (READ_ONCE(*entry))
			break;
		WRITE_ONCE(*entry, value + done);
	}
	if (likely(done == nr_pages))
		return 0;
	pv_table_clear(table, dfn, done);
	return ret;
}

/* Notes @nr_pages pages from @dfn, whatever was there. The tables were prepared. */
void pv_table_set(struct pv_table *table, u64 dfn, u64 nr_pages, u64 value)
{
	u64 *entry = NULL;

	for (; nr_pages; nr_pages--, dfn++, value++, entry++) {
		if (!entry || !pv_table_index(dfn, 0))
			entry = pv_table_entry(table, dfn);
		WRITE_ONCE(*entry, value);
	}
}

/* Forgets @nr_pages pages from @dfn, all of which have tables. */
void pv_table_clear(struct pv_table *table, u64 dfn, u64 nr_pages)
{
	u64 *entry = NULL;

	for (; nr_pages; nr_pages--, dfn++, entry++) {
		if (!entry || !pv_table_index(dfn, 0))
			entry = pv_table_entry(table, dfn);
		WRITE_ONCE(*entry, 0);
	}
}

/**
 * pv_table_clear_run - forgets pages up to the first one that is of another kind
 * @table: the table
 * @dfn: first page
 * @nr_pages: how many at most
 * @kind: PV_ENTRY_* of the pages that were forgotten
 *
 * Return: how many, 0 when @dfn is free.
 */
u64 pv_table_clear_run(struct pv_table *table, u64 dfn, u64 nr_pages, u64 *kind)
{
	u64 *entry = NULL;
	u64 run, found;

	*kind = 0;
	for (run = 0; run < nr_pages; run++, entry++) {
		if (!entry || !pv_table_index(dfn + run, 0))
			entry = pv_table_entry(table, dfn + run);
		found = entry ? READ_ONCE(*entry) & PV_ENTRY_KIND : 0;
		if (!run)
			*kind = found;
		if (!found || found != *kind)
			break;
		WRITE_ONCE(*entry, 0);
	}
	return run;
}

/* The frame that @dfn leads to as far as the core was told: claimed pages are found as well. */
bool pv_table_lookup(struct pv_table *table, u64 dfn, u64 *gfn)
{
	u64 *entry = pv_table_entry(table, dfn);
	u64 value = entry ? READ_ONCE(*entry) : 0;

	*gfn = value & ~PV_ENTRY_KIND;
	return value & PV_ENTRY_KIND;
}
