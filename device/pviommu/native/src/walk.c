// SPDX-License-Identifier: MIT
/* Walks of one or two stages of tables in guest memory: engine/walk.py. */

#include <string.h>

#include "walk.h"

/* Where the descriptors of a walk lie, and what is to be told of it. */
struct reader {
	const struct pv_walker *walker;
	const struct pv_stage *below;	/* translates the addresses of tables; NULL: nothing does */
	struct pv_walk_report *report;
};

static uint32_t by_stage(const struct reader *reader, const struct pv_stage *stage, uint64_t address, uint32_t access,
			 struct pv_translation *found, struct pv_fault *fault);

static int fits(struct pv_pattern pattern, uint64_t descriptor)
{
	return (descriptor & pattern.mask) == pattern.value;
}

static uint32_t granted(struct pv_pattern read, struct pv_pattern write, uint64_t descriptor)
{
	return (fits(read, descriptor) ? PV_READ : 0) | (fits(write, descriptor) ? PV_WRITE : 0);
}

static uint32_t failed(struct pv_fault *fault, uint32_t kind, int32_t level, uint64_t place)
{
	*fault = (struct pv_fault){ place, kind, level };
	return kind;
}

static int is_input(const struct pv_tables *tables, uint64_t address)
{
	uint64_t above;

	if (!tables->is_signed)
		return !(address >> tables->input_bits);
	above = address >> (tables->input_bits - 1);
	return !above || above == UINT64_MAX >> (tables->input_bits - 1);
}

/* ---- descriptors ---- */

/*
 * Where `size` bytes at an address, all in one page, are in this process, for this access. NULL if there is no memory, or if
 * the context refuses them, which *refusal says then.
 */
uint8_t *pv_place_at(const struct pv_place *place, uint64_t address, uint64_t size, uint64_t access, uint32_t *refusal)
{
	enum pv_refusal why;
	uint64_t gfn, allowed;

	*refusal = 0;
	if (place->end < size || address > place->end - size)
		return NULL;
	if (!place->core)
		return pv_memory_at(place->memory, address, size);
	if (!pv_pages_at(place->core, place->ctx, address >> PV_PAGE_SHIFT, &gfn, &allowed, &why)) {
		*refusal = why;
		return NULL;
	}
	if (access & ~allowed) {
		*refusal = PV_NO_PERMISSION;
		return NULL;
	}
	return pv_memory_at(place->memory, gfn << PV_PAGE_SHIFT | (address & PV_PAGE_MASK), size);
}

/* The word of the descriptor at `place` in this process, for this access; NULL if it is refused. */
static uint64_t *word_at(const struct reader *reader, uint64_t place, uint32_t access)
{
	const struct pv_walker *walker = reader->walker;

	if (reader->below) {
		struct reader direct = { walker, NULL, reader->report };
		struct pv_translation found;

		if (by_stage(&direct, reader->below, place, access, &found, &reader->report->second))
			return NULL;
		place = found.output;
	}
	reader->report->refused_at = place;
	return (uint64_t *)pv_place_at(&walker->place, place, sizeof(uint64_t), access, &reader->report->refusal);
}

static int read_descriptor(const struct reader *reader, uint64_t place, uint64_t *found)
{
	const uint64_t *word = word_at(reader, place, PV_READ);

	if (!word)
		return 0;
	if (pv_memory_may_vanish(reader->walker->place.memory))
		return pv_try_load(word, found);
	*found = __atomic_load_n(word, __ATOMIC_ACQUIRE);
	return 1;
}

/* Replace a descriptor if it is still *found, which becomes what was there. */
static int update_descriptor(const struct reader *reader, uint64_t place, uint64_t *found, uint64_t after)
{
	uint64_t *word = word_at(reader, place, PV_ACCESS);

	if (!word)
		return 0;
	if (pv_memory_may_vanish(reader->walker->place.memory))
		return pv_try_exchange(word, found, after);
	__atomic_compare_exchange_n(word, found, after, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
	return 1;
}

/* ---- one walk ---- */

/* The address in a descriptor, or why it has none. */
static uint32_t output_of(const struct pv_tables *tables, const struct pv_level *level, uint64_t descriptor,
			  int is_leaf, uint64_t *output)
{
	if (!(descriptor & tables->present))
		return PV_FAULT_NOT_PRESENT;
	if (!is_leaf && !fits(level->table, descriptor))
		return tables->neither;
	if (descriptor & (is_leaf ? level->leaf_reserved : tables->table_reserved))
		return PV_FAULT_MALFORMED;
	*output = descriptor & (is_leaf ? level->leaf_address : tables->table_address);
	*output |= (descriptor & tables->high) << tables->high_shift;
	return *output >> tables->output_bits ? PV_FAULT_OUTPUT : PV_NO_FAULT;
}

/* What a leaf is to become, or why the access is refused. */
static uint32_t judge_leaf(const struct pv_tables *tables, uint32_t updates, uint64_t *descriptor, uint32_t wanted,
			   uint32_t allowed)
{
	if (updates && tables->updates_access)
		*descriptor |= tables->leaf_accessed;
	else if (tables->needs_accessed && !(*descriptor & tables->leaf_accessed))
		return PV_FAULT_ACCESS_FLAG;
	if (wanted & PV_WRITE && updates && tables->updates_dirty && fits(tables->clean, *descriptor))
		*descriptor ^= tables->dirty;
	allowed &= granted(tables->leaf_read, tables->leaf_write, *descriptor);
	return wanted & ~allowed ? PV_FAULT_PERMISSION : PV_NO_FAULT;
}

static void fill_leaf(const struct pv_tables *tables, const struct pv_level *level, uint64_t descriptor,
		      uint64_t output, uint64_t address, uint32_t allowed, struct pv_walked *leaf)
{
	uint32_t joined = level->shift + (descriptor & tables->contiguous ? level->contiguous : 0);

	leaf->access = allowed & granted(tables->leaf_read, tables->leaf_write, descriptor);
	/* Somebody has to come here again before it is written. */
	if (tables->updates_dirty && fits(tables->clean, descriptor))
		leaf->access &= ~(uint32_t)PV_WRITE;
	if (joined > tables->input_bits)
		joined = tables->input_bits;
	leaf->contiguous = joined > level->shift ? joined : level->shift;
	leaf->output = output | (address & ((1ull << level->shift) - 1));
	leaf->shift = level->shift;
	leaf->level = level->number;
	leaf->descriptor = descriptor;
}

static uint32_t walk(const struct reader *reader, const struct pv_tables *tables, uint64_t address, uint32_t wanted,
		     struct pv_walked *leaf, struct pv_fault *fault)
{
	const struct pv_level *level = tables->levels, *end = level + tables->count;
	uint32_t allowed = PV_ACCESS, updates = reader->walker->updates;
	uint64_t table = tables->root;

	if (!is_input(tables, address))
		return failed(fault, PV_FAULT_INPUT, level->number, 0);
	for (; level < end; level++) {
		uint64_t place = table + (address >> level->shift & level->index_mask) * sizeof(uint64_t);
		uint64_t found, judged, output = 0;
		uint32_t kind, attempt = 0;
		int is_leaf;

		if (!read_descriptor(reader, place, &found))
			return failed(fault, PV_FAULT_READ, level->number, place);
		for (;;) {
			uint64_t before = found;

			is_leaf = fits(level->leaf, found);
			kind = output_of(tables, level, found, is_leaf, &output);
			if (kind)
				return failed(fault, kind, level->number, place);
			judged = found;
			if (is_leaf)
				kind = judge_leaf(tables, updates, &judged, wanted, allowed);
			else if (updates && tables->updates_access)
				judged |= tables->table_accessed;
			if (kind)
				return failed(fault, kind, level->number, place);
			if (!updates || judged == before)
				break;
			if (!update_descriptor(reader, place, &found, judged))
				return failed(fault, PV_FAULT_READ, level->number, place);
			if (found == before)
				break;
			if (++attempt == PV_WALK_ATTEMPTS)
				return failed(fault, PV_FAULT_CONTENDED, level->number, place);
		}
		if (is_leaf) {
			fill_leaf(tables, level, judged, output, address, allowed, leaf);
			return PV_NO_FAULT;
		}
		allowed &= granted(tables->table_read, tables->table_write, judged);
		table = output;
	}
	return failed(fault, PV_FAULT_DECLARATION, 0, table);
}

/* ---- stages ---- */

/* What one stage makes of an address: what is remembered, or what a walk finds, which is remembered then. */
static uint32_t by_stage(const struct reader *reader, const struct pv_stage *stage, uint64_t address, uint32_t access,
			 struct pv_translation *found, struct pv_fault *fault)
{
	uint64_t outside = address | stage->base;
	struct pv_walked leaf;
	uint32_t kind;
	int is_known = stage->tlb && pv_tlb_find(stage->tlb, stage->tag, stage->every, outside, access, found);

	if (is_known && !reader->walker->compares)
		return PV_NO_FAULT;
	kind = walk(reader, stage->tables, address, access, &leaf, fault);
	if (is_known) {
		if (kind || leaf.output != found->output || leaf.access != found->access)
			return failed(fault, PV_FAULT_STALE, 0, 0);
		return PV_NO_FAULT;
	}
	if (kind)
		return kind;
	*found = (struct pv_translation){ leaf.output, leaf.shift, leaf.access };
	if (stage->tlb)
		pv_tlb_add(stage->tlb, leaf.descriptor & stage->own ? stage->tag : stage->every, outside, &leaf);
	return PV_NO_FAULT;
}

/* What both stages make of an address; 0, or the report says why there is nothing. */
static int by_stages(const struct pv_walker *walker, uint64_t address, uint32_t access, struct pv_translation *found,
		     struct pv_walk_report *report)
{
	const struct pv_stage *below = walker->second.tables ? &walker->second : NULL;
	struct reader first = { walker, below, report }, second = { walker, NULL, report };
	struct pv_translation then;

	if (walker->first.tables) {
		if (by_stage(&first, &walker->first, address, access, found, &report->first))
			return 0;
	} else {
		if (address >> walker->pass_bits) {
			failed(&report->first, PV_FAULT_INPUT, 0, 0);
			return 0;
		}
		*found = (struct pv_translation){ address, walker->pass_bits, PV_ACCESS };
	}
	if (!below)
		return 1;
	if (by_stage(&second, below, found->output, access, &then, &report->second))
		return 0;
	found->output = then.output;
	found->access &= then.access;
	if (then.shift < found->shift)
		found->shift = then.shift;
	return 1;
}

static void clear(struct pv_walk_report *report)
{
	memset(report, 0, sizeof(*report));
}

/*
 * The leaf of the first stage's tables at an address, whatever is remembered. Returns an enum pv_fault_kind, and sets
 * `report` if that is a fault.
 */
PV_EXPORT uint32_t pv_walker_leaf(const struct pv_walker *walker, uint64_t address, uint32_t access,
				  struct pv_walked *leaf, struct pv_walk_report *report)
{
	struct reader reader = { walker, walker->second.tables ? &walker->second : NULL, report };

	clear(report);
	if (pv_memory_may_vanish(walker->place.memory))
		pv_guard_install();
	return walk(&reader, walker->first.tables, address, access, leaf, &report->first);
}

/*
 * Add the runs that `size` bytes at `output` are in the core's context, and move span->position past them. Returns
 * PV_SPAN_WHOLE, or why not all of them were added.
 */
static enum pv_span_end add_runs(const struct pv_walker *walker, struct pv_span *span, uint64_t *count,
				 uint64_t output, uint64_t size, uint32_t access)
{
	uint64_t last = output + (size - 1);

	for (;;) {
		uint64_t dfn = output >> PV_PAGE_SHIFT, offset = output & PV_PAGE_MASK, gfn = dfn, allowed = PV_ACCESS;
		uint64_t part = size, pages;
		enum pv_refusal refusal;

		if (walker->place.core) {
			pages = pv_pages_at(walker->place.core, walker->place.ctx, dfn, &gfn, &allowed, &refusal);
			if (!pages || access & ~allowed) {
				span->report.refused_at = output;
				span->report.refusal = pages ? PV_NO_PERMISSION : refusal;
				return PV_SPAN_REFUSED;
			}
			if (pages <= (last >> PV_PAGE_SHIFT) - dfn)
				part = (pages << PV_PAGE_SHIFT) - offset;
		}
		if (!pv_add_run(span->runs, count, span->room, gfn << PV_PAGE_SHIFT | offset, part))
			return PV_SPAN_FULL;
		span->position += part;
		if (part == size)
			return PV_SPAN_WHOLE;
		output += part;
		size -= part;
	}
}

/*
 * Where the bytes from `first` to `last` (inclusive) lead: up to span->room runs, adjacent ones joined. Returns how
 * many; span->end says whether that is all, and otherwise span->position which byte comes next, or is refused.
 */
PV_EXPORT uint64_t pv_walker_span(const struct pv_walker *walker, uint64_t first, uint64_t last, uint32_t access,
				  struct pv_span *span)
{
	uint64_t count = 0;

	clear(&span->report);
	span->position = first;
	if (pv_memory_may_vanish(walker->place.memory))
		pv_guard_install();
	for (;;) {
		uint64_t at = span->position, left = last - at, inside;
		struct pv_translation found;

		span->end = PV_SPAN_REFUSED;
		if (!by_stages(walker, at, access, &found, &span->report))
			return count;
		inside = (1ull << found.shift) - 1 - (at & ((1ull << found.shift) - 1));
		span->end = add_runs(walker, span, &count, found.output, (left < inside ? left : inside) + 1, access);
		if (span->end != PV_SPAN_WHOLE || left <= inside)
			return count;
	}
}
