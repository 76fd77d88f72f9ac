// SPDX-License-Identifier: MIT
/*
 * The table that the device walks as a library: what a test in another language calls, and a walk
 * as the specification of the format has it, by which the test looks at the result.
 */
#include "kernel.h"

#include "pviommu_guest_table.c"

static atomic_t pages;
static int quiesced;
static bool lost;

static bool quiesce(struct pviommu_guest_table *table)
{
	(void)table;
	quiesced++;
	return !lost;
}

/* Whether walks never seem to end. */
void table_lose(bool is_lost)
{
	lost = is_lost;
}

/* How often the table has waited for walks since the last call. */
int table_quiesced(void)
{
	int count = quiesced;

	quiesced = 0;
	return count;
}

struct pviommu_guest_table *table_new(void)
{
	struct pviommu_guest_table *table = calloc(1, sizeof(*table));

	if (pviommu_guest_table_init(table, &pages, quiesce)) {
		free(table);
		return NULL;
	}
	return table;
}

/* Pages of tables that are left, of all tables. */
int table_delete(struct pviommu_guest_table *table)
{
	pviommu_guest_table_free(table);
	free(table);
	return atomic_read(&pages);
}

int table_nr(void)
{
	return atomic_read(&pages);
}

/*
 * The leaf of @iova and the number of address bits that it translates, 0 if there is none. Written
 * from the specification, and with nothing of the code under test but the root: section 3.7 for the
 * walk, 9.8 for the entries.
 */
u64 *table_walk(struct pviommu_guest_table *table, u64 iova, unsigned int *bits)
{
	u64 *entry = &table->root[iova >> 39 & 511];

	*bits = 0;
	if (!(*entry & 3))
		return NULL;
	for (unsigned int shift = 30;; shift -= 9) {
		entry = (u64 *)(uintptr_t)(*entry & 0xffffffffff000) + (iova >> shift & 511);
		if (!(*entry & 3))
			return NULL;
		if (shift == 12 || *entry & 1 << 7) {
			*bits = shift;
			return entry;
		}
	}
}

/* The address and the low bits of @nr pages from @iova, 0 where nothing is mapped. */
void table_read(struct pviommu_guest_table *table, u64 iova, u64 nr, u64 *found)
{
	unsigned int bits;

	for (; nr; nr--, iova += 4096, found++) {
		u64 *entry = table_walk(table, iova, &bits);

		*found = 0;
		if (entry)
			*found = ((*entry & 0xffffffffff000) | (iova & ((1ULL << bits) - 1))) |
				 (*entry & 0x303);
	}
}

/* As the device does for a write: 0, or -1 when nothing is mapped. */
int table_write(struct pviommu_guest_table *table, u64 iova)
{
	unsigned int bits;
	u64 *entry = table_walk(table, iova, &bits);

	if (!entry)
		return -1;
	__atomic_fetch_or(entry, 0x300, __ATOMIC_RELAXED);
	return 0;
}

struct dirty {
	u64 *ranges;
	unsigned int nr, room;
};

static void note(void *data, u64 iova, u64 size)
{
	struct dirty *dirty = data;

	if (dirty->nr < dirty->room) {
		dirty->ranges[2 * dirty->nr] = iova;
		dirty->ranges[2 * dirty->nr + 1] = size;
	}
	dirty->nr++;
}

/* Address and size of each leaf, or part of one, that is dirty; returns how many. */
unsigned int table_dirty(struct pviommu_guest_table *table, u64 iova, u64 size, bool clear,
			 u64 *ranges, unsigned int room)
{
	struct dirty dirty = { .ranges = ranges, .room = room };

	pviommu_guest_table_dirty(table, iova, size, clear, note, &dirty);
	return dirty.nr;
}
