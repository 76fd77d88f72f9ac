// SPDX-License-Identifier: MIT
/*
 * The page table of one context: engine/table.py in C, which has the reasons.
 *
 * An entry is 0, a leaf (gfn << 4 | CLONE | START | access) or a lower table (its address with PV_TABLE).
 */

#include <stdlib.h>
#include <string.h>

#include "core.h"

/* Spare nodes kept for the next map: 1 MiB. */
#define SPARES 256

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static int is_table(uint64_t entry)
{
	return (entry & PV_TABLE) != 0;
}

static int is_leaf(uint64_t entry)
{
	return entry && !is_table(entry);
}

static struct pv_node *node_of(uint64_t entry)
{
	return (struct pv_node *)(uintptr_t)(entry & ~PV_TABLE);
}

static uint64_t entry_of(const struct pv_node *node)
{
	return (uint64_t)(uintptr_t)node | PV_TABLE;
}

static uint32_t index_of(uint64_t dfn, uint32_t shift)
{
	return dfn >> shift & (PV_ENTRIES - 1);
}

/* Pool pages that a leaf is charged for, by the shift of its level. */
static int64_t leaf_charge(uint32_t shift)
{
	return shift == 0 ? 0 : shift == PV_LEVEL_BITS ? 1 : 1 + PV_ENTRIES;
}

static struct pv_node *node_new(struct pv_pool *pool)
{
	struct pv_node *node = pool->spare;

	if (!node) {
		node = calloc(1, sizeof(*node));
		if (!node)
			pool->out_of_memory = 1;
		return node;
	}
	pool->spare = (struct pv_node *)(uintptr_t)node->entries[0];
	pool->spares--;
	node->entries[0] = 0;
	return node;
}

/* Give back a node whose entries are all 0. */
static void node_drop(struct pv_pool *pool, struct pv_node *node)
{
	if (pool->spares >= SPARES) {
		free(node);
		return;
	}
	node->entries[0] = (uint64_t)(uintptr_t)pool->spare;
	pool->spare = node;
	pool->spares++;
}

static void node_free(struct pv_node *node, uint32_t shift)
{
	for (uint32_t i = 0; shift && i < PV_ENTRIES; i++)
		if (is_table(node->entries[i]))
			node_free(node_of(node->entries[i]), shift - PV_LEVEL_BITS);
	free(node);
}

PV_EXPORT void pv_pool_destroy(struct pv_pool *pool)
{
	while (pool->spare) {
		struct pv_node *node = pool->spare;

		pool->spare = (struct pv_node *)(uintptr_t)node->entries[0];
		free(node);
	}
	pool->spares = 0;
}

static int64_t held(const struct pv_table *table)
{
	return table->reserve > table->charged ? table->reserve : table->charged;
}

static int64_t free_pages(const struct pv_table *table)
{
	return table->pool->free + held(table) - table->charged;
}

static void charge(struct pv_table *table, int64_t pages)
{
	int64_t before = held(table);

	table->charged += pages;
	table->pool->free += before - held(table);
}

/* Prepare a zeroed table; 0, or -1 without memory. The caller has taken the root's page from the pool. */
PV_EXPORT int pv_table_init(struct pv_table *table, struct pv_pool *pool, uint64_t limit, uint32_t levels)
{
	table->root = node_new(pool);
	if (!table->root)
		return -1;
	table->pool = pool;
	table->limit = limit;
	table->charged = 1;
	table->top = PV_LEVEL_BITS * (levels - 1);
	return 0;
}

/* Free the nodes; the pool is not changed. */
PV_EXPORT void pv_table_destroy(struct pv_table *table)
{
	if (table->root)
		node_free(table->root, (uint32_t)table->top);
	table->root = NULL;
	table->limit = 0;
}

/* Reserve at least `pages` from now on; 0, or -1 and no change when the pool is exhausted. */
PV_EXPORT int pv_table_reserve(struct pv_table *table, int64_t pages)
{
	int64_t more = (pages > table->charged ? pages : table->charged) - held(table);

	if (more > table->pool->free)
		return -1;
	table->pool->free -= more;
	table->reserve = pages;
	return 0;
}

PV_EXPORT void pv_table_release(struct pv_table *table)
{
	pv_table_reserve(table, 0);
	charge(table, -table->charged);
}

/* The table whose entry holds the leaf of `dfn` or nothing; `*shift`: of its level. */
static struct pv_node *reach(const struct pv_table *table, uint64_t dfn, uint32_t *shift)
{
	struct pv_node *node = table->root;
	uint32_t level = (uint32_t)table->top;

	while (level) {
		uint64_t entry = node->entries[index_of(dfn, level)];

		if (!is_table(entry))
			break;
		node = node_of(entry);
		level -= PV_LEVEL_BITS;
	}
	*shift = level;
	return node;
}

struct pv_leaf pv_leaf_at(const struct pv_table *table, uint64_t dfn)
{
	struct pv_leaf found = { 0, 0, 0, 0 };
	uint32_t shift;
	uint64_t entry;

	if (dfn >= table->limit)
		return found;
	entry = reach(table, dfn, &shift)->entries[index_of(dfn, shift)];
	if (!entry)
		return found;
	found.offset = dfn & ((1ull << shift) - 1);
	found.gfn = (entry >> PV_GFN_SHIFT) + found.offset;
	found.pages = (1ull << shift) - found.offset;
	found.flags = entry & (PV_KIND | PV_START);
	return found;
}

/* How many leaves of a level above the lowest a map may store from here on, limited by alignment and pool. */
static uint64_t large_leaves(const struct pv_table *table, uint64_t position, uint64_t gfn, uint64_t end, uint32_t shift)
{
	if (shift > 2 * PV_LEVEL_BITS || (position | gfn) & ((1ull << shift) - 1))
		return 0;
	return min64((end - position) >> shift, (uint64_t)(free_pages(table) / leaf_charge(shift)));
}

/* Store up to `count` leaves of adjacent frames from `index` on, as far as entries are empty; the first one is. */
static uint64_t store(uint64_t *entries, uint32_t index, uint64_t count, uint64_t leaf, uint32_t shift)
{
	uint64_t step = 1ull << (PV_GFN_SHIFT + shift), done = 0;

	count = min64(count, PV_ENTRIES - index);
	do {
		entries[index + done++] = leaf;
		leaf = (leaf & ~PV_START) + step;
	} while (done < count && !entries[index + done]);
	return done;
}

/* Map pages from `dfn` on, until one is mapped already or the pool is exhausted; returns how many. */
PV_EXPORT uint64_t pv_table_map(struct pv_table *table, uint64_t dfn, uint64_t gfn, uint64_t nr, uint64_t kind,
				uint32_t starts)
{
	uint64_t position = dfn, end = dfn + nr, flags = starts ? PV_START | kind : kind;

	while (position < end) {
		uint32_t shift, index;
		struct pv_node *node = reach(table, position, &shift), *lower;
		uint64_t count;

		index = index_of(position, shift);
		if (node->entries[index])
			break;
		count = shift ? large_leaves(table, position, gfn, end, shift) : end - position;
		if (!count) {
			/* All tables below are missing too: allocate all of them or none. */
			if (free_pages(table) < (int64_t)(shift / PV_LEVEL_BITS))
				break;
			lower = node_new(table->pool);
			if (!lower)
				break;
			charge(table, 1);
			node->entries[index] = entry_of(lower);
			node->live++;
			continue;
		}
		count = store(node->entries, index, count, gfn << PV_GFN_SHIFT | flags, shift);
		charge(table, (int64_t)count * leaf_charge(shift));
		node->live += count;
		flags = kind;
		position += count << shift;
		gfn += count << shift;
	}
	table->mapped += position - dfn;
	return position - dfn;
}

/* Whether the page before `dfn` is mapped to the frame before `gfn`, and of the same kind. */
PV_EXPORT int pv_table_joins(const struct pv_table *table, uint64_t dfn, uint64_t gfn, uint64_t kind)
{
	struct pv_leaf leaf;

	if (!dfn || !gfn)
		return 0;
	leaf = pv_leaf_at(table, dfn - 1);
	return leaf.pages && leaf.gfn == gfn - 1 && (leaf.flags & PV_KIND) == kind;
}

/* Replace a leaf by a table of the next smaller ones; -1 without memory. */
static int split(struct pv_pool *pool, struct pv_node *node, uint32_t index, uint32_t shift)
{
	uint64_t leaf = node->entries[index], step = 1ull << (PV_GFN_SHIFT + shift - PV_LEVEL_BITS);
	struct pv_node *lower = node_new(pool);

	if (!lower)
		return -1;
	for (uint32_t i = 0; i < PV_ENTRIES; i++)
		lower->entries[i] = (leaf & ~PV_START) + i * step;
	lower->entries[0] = leaf;
	lower->live = PV_ENTRIES;
	node->entries[index] = entry_of(lower);
	return 0;
}

/* Free the empty tables on the path to `dfn`, from the bottom up. */
static void prune(struct pv_table *table, uint64_t dfn)
{
	struct pv_node *path[8], *node = table->root;
	uint32_t indices[8], depth = 0;

	for (uint32_t shift = (uint32_t)table->top; shift; shift -= PV_LEVEL_BITS) {
		uint32_t index = index_of(dfn, shift);

		if (!is_table(node->entries[index]))
			break;
		path[depth] = node;
		indices[depth++] = index;
		node = node_of(node->entries[index]);
	}
	while (depth && !node->live) {
		node_drop(table->pool, node);
		node = path[--depth];
		node->entries[indices[depth]] = 0;
		node->live--;
		charge(table, -1);
	}
}

/* The rest of a cut map call, from `dfn` on, counts as its own map call. */
static void begin_call(struct pv_table *table, uint64_t dfn)
{
	struct pv_node *node;
	uint32_t shift;
	uint64_t *entry;

	if (dfn >= table->limit)
		return;
	node = reach(table, dfn, &shift);
	entry = &node->entries[index_of(dfn, shift)];
	if (*entry && !(dfn & ((1ull << shift) - 1)))
		*entry |= PV_START;
}

/* Empty up to `count` entries from `index` on, as far as they hold leaves; the first one does. */
static uint64_t clear(uint64_t *entries, uint32_t index, uint64_t count)
{
	uint64_t done = 0;

	count = min64(count, PV_ENTRIES - index);
	do
		entries[index + done++] = 0;
	while (done < count && is_leaf(entries[index + done]));
	return done;
}

/*
 * Unmap pages from `dfn` on; without `past_holes` it ends at the first one that is not mapped. Ends with out_of_memory
 * of the pool set if a split needed memory that the process did not have. Returns how many.
 */
PV_EXPORT uint64_t pv_table_unmap(struct pv_table *table, uint64_t dfn, uint64_t nr, uint32_t past_holes)
{
	uint64_t position = dfn, end = dfn + nr, before = table->mapped;

	while (position < end) {
		uint32_t shift, index;
		struct pv_node *node = reach(table, position, &shift);
		uint64_t unit = 1ull << shift, count;

		index = index_of(position, shift);
		if (!node->entries[index]) {
			if (!past_holes)
				break;
			position = (position | (unit - 1)) + 1;
		} else if (shift && (position & (unit - 1) || end - position < unit)) {
			if (split(table->pool, node, index, shift))
				break;
		} else {
			count = clear(node->entries, index, (end - position) >> shift);
			node->live -= count;
			table->mapped -= count << shift;
			charge(table, -(int64_t)count * leaf_charge(shift));
			if (!node->live)
				prune(table, position);
			position += count << shift;
		}
	}
	if (table->mapped != before)
		begin_call(table, position);
	return before - table->mapped;
}
