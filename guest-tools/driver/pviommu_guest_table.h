/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Paravirtual IOMMU: a table of the guest that the device walks. It needs nothing else of the
 * driver, so that it can be tested alone.
 */
#ifndef _PVIOMMU_GUEST_TABLE_H
#define _PVIOMMU_GUEST_TABLE_H

#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/spinlock.h>
#include <linux/types.h>

/* VT-d's second stage: sections 3.7 and 9.8 of its architecture specification */
#define PVIOMMU_SS_READ		BIT_ULL(0)
#define PVIOMMU_SS_WRITE		BIT_ULL(1)
#define PVIOMMU_SS_LARGE		BIT_ULL(7)	/* a leaf above the lowest level */
#define PVIOMMU_SS_ACCESSED		BIT_ULL(8)
#define PVIOMMU_SS_DIRTY_BIT		9
#define PVIOMMU_SS_DIRTY		BIT_ULL(PVIOMMU_SS_DIRTY_BIT)
#define PVIOMMU_SS_ADDRESS		GENMASK_ULL(51, 12)

#define PVIOMMU_SS_GRANULE_SHIFT	12
#define PVIOMMU_SS_LEVEL_BITS		9
#define PVIOMMU_SS_ENTRIES		BIT(PVIOMMU_SS_LEVEL_BITS)
#define PVIOMMU_SS_LEVELS		4U
#define PVIOMMU_SS_ADDRESS_BITS	48

/**
 * struct pviommu_guest_table - radix table of a domain that the device walks
 * @root: the table of the highest level
 * @pages: counts the pages of all tables of the PV-IOMMU
 * @lock: taken to look at tables of addresses that somebody else owns, and to remove such a table
 * @quiesce: returns true once no walk goes on that may have read an entry as it was before the
 *	call, false if one may go on for ever
 */
struct pviommu_guest_table {
	u64 *root;
	atomic_t *pages;
	spinlock_t lock;	/* see above */
	bool (*quiesce)(struct pviommu_guest_table *table);
};

/* Whether a translation was used to write, as pviommu_guest_table_dirty() reports it. */
typedef void (*pviommu_dirty_found)(void *data, u64 iova, u64 size);

/* The address bits that an entry of @level translates: 12, 21, 30, 39. */
static inline unsigned int pviommu_ss_shift(unsigned int level)
{
	return PVIOMMU_SS_GRANULE_SHIFT + PVIOMMU_SS_LEVEL_BITS * level;
}

int pviommu_guest_table_init(struct pviommu_guest_table *table, atomic_t *pages,
			     bool (*quiesce)(struct pviommu_guest_table *table));
void pviommu_guest_table_free(struct pviommu_guest_table *table);
int pviommu_guest_table_map(struct pviommu_guest_table *table, u64 iova, u64 paddr, u64 size,
			    unsigned int level, u64 access, gfp_t gfp, u64 *mapped);
u64 pviommu_guest_table_unmap(struct pviommu_guest_table *table, u64 iova, u64 size);
bool pviommu_guest_table_lookup(struct pviommu_guest_table *table, u64 iova, u64 *paddr);
u64 pviommu_guest_table_count(struct pviommu_guest_table *table, u64 dfn, u64 last);
void pviommu_guest_table_dirty(struct pviommu_guest_table *table, u64 iova, u64 size, bool clear,
			       pviommu_dirty_found found, void *data);

#endif /* _PVIOMMU_GUEST_TABLE_H */
