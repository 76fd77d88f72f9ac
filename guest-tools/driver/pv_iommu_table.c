// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the driver's own table of a domain.
 *
 * The device keeps the translations; this copy answers iova_to_phys() without a round trip and
 * tells unmap what is there. Tables are made before the device is asked to map, so that nothing can
 * fail afterwards, and stay until the domain is freed, so that readers need no lock. The IOMMU core
 * never works on one address from two sides at a time.
 */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include <linux/gfp.h>

#include "pv_iommu.h"

#define PV_LEVEL_BITS	9
#define PV_TABLE_ENTRIES	BIT(PV_LEVEL_BITS)
#define PV_ENTRY_PRESENT	BIT_ULL(63)

static unsigned int pv_table_index(u64 dfn, unsigned int level)
{
	return (dfn >> (PV_LEVEL_BITS * level)) & (PV_TABLE_ENTRIES - 1);
}

static u64 *pv_table_page(struct pv_table *table, gfp_t gfp)
{
	u64 *page = (u64 *)get_zeroed_page(gfp);

	if (page)
		atomic_inc(table->pages);
	return page;
}

static void pv_table_drop(struct pv_table *table, u64 *page)
{
	free_page((unsigned long)page);
	atomic_dec(table->pages);
}

int pv_table_init(struct pv_table *table, unsigned int aperture_bits, atomic_t *pages)
{
	/* apertures of a page or less were refused */
	table->levels = DIV_ROUND_UP(aperture_bits - PVIOMMU_PAGE_SHIFT, PV_LEVEL_BITS);
	table->pages = pages;
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

/* Makes the tables for @nr_pages pages from @dfn. */
int pv_table_prepare(struct pv_table *table, u64 dfn, u64 nr_pages, gfp_t gfp)
{
	u64 last = dfn + nr_pages - 1, at;
	int ret;

	if (!nr_pages || last < dfn || last >> (PV_LEVEL_BITS * table->levels))
		return -ERANGE;
	for (at = round_down(dfn, PV_TABLE_ENTRIES); at <= last; at += PV_TABLE_ENTRIES) {
		ret = pv_table_grow(table, at, gfp);
		if (ret)
			return ret;
	}
	return 0;
}

/* Notes that @dfn and on lead to @gfn and on. The tables were prepared. */
void pv_table_set(struct pv_table *table, u64 dfn, u64 gfn, u64 nr_pages)
{
	u64 *entry = NULL;

	for (; nr_pages; nr_pages--, dfn++, gfn++, entry++) {
		if (!entry || !pv_table_index(dfn, 0))
			entry = pv_table_entry(table, dfn);
		WRITE_ONCE(*entry, PV_ENTRY_PRESENT | gfn);
	}
}

/* Forgets @nr_pages pages from @dfn, all of which are noted. */
void pv_table_clear(struct pv_table *table, u64 dfn, u64 nr_pages)
{
	u64 *entry = NULL;

	for (; nr_pages; nr_pages--, dfn++, entry++) {
		if (!entry || !pv_table_index(dfn, 0))
			entry = pv_table_entry(table, dfn);
		WRITE_ONCE(*entry, 0);
	}
}

bool pv_table_lookup(struct pv_table *table, u64 dfn, u64 *gfn)
{
	u64 *entry = pv_table_entry(table, dfn);
	u64 value = entry ? READ_ONCE(*entry) : 0;

	*gfn = value & ~PV_ENTRY_PRESENT;
	return value & PV_ENTRY_PRESENT;
}

/* How many pages from @dfn on are noted without a hole, at most @nr_pages. */
u64 pv_table_run(struct pv_table *table, u64 dfn, u64 nr_pages)
{
	u64 *entry = NULL;
	u64 run;

	for (run = 0; run < nr_pages; run++, dfn++, entry++) {
		if (!entry || !pv_table_index(dfn, 0))
			entry = pv_table_entry(table, dfn);
		if (!entry || !(READ_ONCE(*entry) & PV_ENTRY_PRESENT))
			break;
	}
	return run;
}
