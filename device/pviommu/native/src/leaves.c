// SPDX-License-Identifier: MIT
/* Queries of a page table, as in engine/table.py. */

#include "core.h"

/* One leaf, clipped to the range asked for. */
struct row {
	uint64_t dfn;
	uint64_t gfn;
	uint64_t pages;
	uint64_t kind;
	uint64_t starts;
};

/* Unmapped pages from `dfn` on, to the end of the entry that would map it; 0 when it is mapped. */
static uint64_t hole_at(const struct pv_table *table, uint64_t dfn)
{
	const struct pv_node *node = table->root;
	uint32_t shift = (uint32_t)table->top;
	uint64_t entry;

	for (;;) {
		entry = node->entries[dfn >> shift & (PV_ENTRIES - 1)];
		if (!(entry & PV_TABLE))
			break;
		node = (const struct pv_node *)(uintptr_t)(entry & ~PV_TABLE);
		shift -= PV_LEVEL_BITS;
	}
	return entry ? 0 : (1ull << shift) - (dfn & ((1ull << shift) - 1));
}

/* The next leaf at or after `*position` and before `end`; 0 when there is none. Moves `*position` past it. */
static int next_leaf(const struct pv_table *table, uint64_t *position, uint64_t end, struct row *row)
{
	while (*position < end) {
		struct pv_leaf leaf = pv_leaf_at(table, *position);

		if (!leaf.pages) {
			*position += hole_at(table, *position);
			continue;
		}
		row->dfn = *position;
		row->gfn = leaf.gfn;
		row->pages = leaf.pages < end - *position ? leaf.pages : end - *position;
		row->kind = leaf.flags & PV_KIND;
		row->starts = (leaf.flags & PV_START) && !leaf.offset;
		*position += row->pages;
		return 1;
	}
	return 0;
}

/* Up to `room` leaves of a range in `rows`; returns how many and moves `*position` to where to continue. */
PV_EXPORT uint64_t pv_table_leaves(const struct pv_table *table, uint64_t *position, uint64_t end, struct row *rows,
				   uint64_t room)
{
	uint64_t count = 0;

	if (end > table->limit)
		end = table->limit;
	while (count < room && next_leaf(table, position, end, &rows[count]))
		count++;
	return count;
}

/* The last DFN of a range at which a map call begins, in `*last`; 0 when none does. */
PV_EXPORT int pv_table_last_start(const struct pv_table *table, uint64_t dfn, uint64_t end, uint64_t *last)
{
	struct row row;
	int found = 0;

	if (end > table->limit)
		end = table->limit;
	while (next_leaf(table, &dfn, end, &row)) {
		if (row.starts) {
			*last = row.dfn;
			found = 1;
		}
	}
	return found;
}

/* The mapped run at `dfn`: adjacent frames, one access, at most `nr` pages. `run`: gfn, pages, access; 0: nothing. */
PV_EXPORT int pv_table_run(const struct pv_table *table, uint64_t dfn, uint64_t nr, uint64_t *run)
{
	uint64_t position = dfn, end = dfn + nr;
	struct row row;

	if (end > table->limit)
		end = table->limit;
	if (dfn >= end || !pv_leaf_at(table, dfn).pages || !next_leaf(table, &position, end, &row))
		return 0;
	run[0] = row.gfn;
	run[1] = row.pages;
	run[2] = row.kind & PV_ACCESS;
	while (next_leaf(table, &position, end, &row)) {
		if (row.dfn != dfn + run[1] || row.gfn != run[0] + run[1] || (row.kind & PV_ACCESS) != run[2])
			break;
		run[1] += row.pages;
	}
	return 1;
}

/* The leaf that covers `dfn`: gfn, flags (START too), offset inside the leaf in `leaf`; 0 when there is none. */
PV_EXPORT int pv_table_leaf(const struct pv_table *table, uint64_t dfn, uint64_t *leaf)
{
	struct pv_leaf found = pv_leaf_at(table, dfn);

	leaf[0] = found.gfn;
	leaf[1] = found.flags;
	leaf[2] = found.offset;
	return found.pages != 0;
}
