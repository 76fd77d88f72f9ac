/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Paravirtual IOMMU: the driver's own table of a domain. It needs nothing else of the driver, so
 * that it can be tested alone.
 */
#ifndef _PVIOMMU_TABLE_H
#define _PVIOMMU_TABLE_H

#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/spinlock.h>
#include <linux/types.h>

/* kinds of entries; the rest of an entry is the guest frame */
#define PVIOMMU_ENTRY_MAPPED		BIT_ULL(63)
#define PVIOMMU_ENTRY_CLAIMED	BIT_ULL(62)
#define PVIOMMU_ENTRY_KIND		(PVIOMMU_ENTRY_MAPPED | PVIOMMU_ENTRY_CLAIMED)

/**
 * struct pviommu_table - radix table of a domain, from frames of the device to frames of the guest
 * @root: the table of the highest level
 * @levels: levels, 9 bits each
 * @nr: its tables
 * @credit: pages of the device's pool that are reserved for its context
 * @pages: counts the pages of all tables of the PV-IOMMU
 * @lock: taken to change the state of a lowest table, see pviommu_table.c
 */
struct pviommu_table {
	u64 *root;
	unsigned int levels;
	atomic_t nr;
	u32 credit;
	atomic_t *pages;
	spinlock_t lock;	/* see above */
};

/* Whether the device has reserved pages for all tables of the domain. */
static inline bool pviommu_table_covered(const struct pviommu_table *table)
{
	return atomic_read(&table->nr) <= READ_ONCE(table->credit);
}

int pviommu_table_init(struct pviommu_table *table, unsigned int aperture_bits, atomic_t *pages);
void pviommu_table_free(struct pviommu_table *table);
int pviommu_table_prepare(struct pviommu_table *table, u64 dfn, u64 nr_pages, gfp_t gfp);
int pviommu_table_fill(struct pviommu_table *table, u64 dfn, u64 nr_pages, u64 value, gfp_t gfp);
void pviommu_table_set(struct pviommu_table *table, u64 dfn, u64 nr_pages, u64 value);
void pviommu_table_clear(struct pviommu_table *table, u64 dfn, u64 nr_pages);
u64 pviommu_table_clear_run(struct pviommu_table *table, u64 dfn, u64 nr_pages, u64 *kind);
bool pviommu_table_lookup(struct pviommu_table *table, u64 dfn, u64 *gfn);

#endif /* _PVIOMMU_TABLE_H */
