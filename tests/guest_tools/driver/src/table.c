// SPDX-License-Identifier: MIT
/* The driver's table as a library: what a test in another language calls. */
#include "kernel.h"

#include "pviommu_table.c"

static atomic_t pages;

struct pviommu_table *table_new(unsigned int aperture_bits)
{
	struct pviommu_table *table = calloc(1, sizeof(*table));

	if (pviommu_table_init(table, aperture_bits, &pages)) {
		free(table);
		return NULL;
	}
	return table;
}

/* Pages of tables that are left, of all tables. */
int table_delete(struct pviommu_table *table)
{
	pviommu_table_free(table);
	free(table);
	return atomic_read(&pages);
}

int table_nr(struct pviommu_table *table)
{
	return atomic_read(&table->nr);
}

/* Frames of @nr pages from @dfn, each with bit 63, or 0 where none is found. */
void table_read(struct pviommu_table *table, u64 dfn, u64 nr, u64 *frames)
{
	u64 gfn;

	for (; nr; nr--, dfn++, frames++)
		*frames = pviommu_table_lookup(table, dfn, &gfn) ? gfn | PVIOMMU_ENTRY_MAPPED : 0;
}
