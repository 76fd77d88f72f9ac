// SPDX-License-Identifier: MIT
/* Contexts, maps, unmaps and translation: engine/engine.py in C. */

#include <stdlib.h>

#include "core.h"
#include "walk.h"

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* A core for DFNs below `limit`; NULL without memory. */
PV_EXPORT struct pv_core *pv_core_create(uint64_t limit)
{
	struct pv_core *core = calloc(1, sizeof(*core));

	if (core)
		core->limit = limit;
	return core;
}

static void context_free(struct pv_context *context)
{
	free(context->direct.bounds);
	free(context->closed.bounds);
	free(context);
}

PV_EXPORT void pv_core_destroy(struct pv_core *core)
{
	for (uint32_t ctx = 0; ctx < PV_CONTEXTS; ctx++)
		if (core->contexts[ctx])
			context_free(core->contexts[ctx]);
	free(core->backed.bounds);
	free(core->reserved.bounds);
	free(core);
}

/* Of the frames in [first, end), those within these bounds may be mapped; -1 without memory. */
PV_EXPORT int pv_core_change_backed(struct pv_core *core, uint64_t first, uint64_t end, const uint64_t *bounds,
				    uint64_t count)
{
	return pv_ranges_replace(&core->backed, first, end, bounds, count);
}

/* Replace the regions that no context translates; -1 without memory. */
PV_EXPORT int pv_core_set_reserved(struct pv_core *core, const uint64_t *bounds, uint64_t count)
{
	return pv_ranges_set(&core->reserved, bounds, count);
}

PV_EXPORT void pv_core_hide(struct pv_core *core, uint32_t ctx)
{
	if (ctx < PV_CONTEXTS && core->contexts[ctx]) {
		context_free(core->contexts[ctx]);
		core->contexts[ctx] = NULL;
	}
}

/* A context, new or with new regions; NULL without memory, and then there is none. */
static struct pv_context *shown(struct pv_core *core, uint32_t ctx, const uint64_t *direct, uint64_t directs,
				const uint64_t *closed, uint64_t closeds)
{
	struct pv_context *context;

	if (ctx >= PV_CONTEXTS)
		return NULL;
	context = core->contexts[ctx];
	if (!context)
		context = core->contexts[ctx] = calloc(1, sizeof(*context));
	if (!context)
		return NULL;
	if (pv_ranges_set(&context->direct, direct, directs) || pv_ranges_set(&context->closed, closed, closeds)) {
		pv_core_hide(core, ctx);
		return NULL;
	}
	return context;
}

/* Add a context with this table; -1 without memory, and then it is not added. */
PV_EXPORT int pv_core_show(struct pv_core *core, uint32_t ctx, struct pv_table *table, const uint64_t *direct,
			   uint64_t directs, const uint64_t *closed, uint64_t closeds, uint32_t is_clone)
{
	struct pv_context *context = shown(core, ctx, direct, directs, closed, closeds);

	if (!context)
		return -1;
	context->table = table;
	context->is_clone = is_clone;
	return 0;
}

/* The same with tables that the guest owns, for dfns below `frames`. */
PV_EXPORT int pv_core_show_tables(struct pv_core *core, uint32_t ctx, const struct pv_walker *walker, uint64_t frames,
				  const uint64_t *direct, uint64_t directs, const uint64_t *closed, uint64_t closeds)
{
	struct pv_context *context = shown(core, ctx, direct, directs, closed, closeds);

	if (!context)
		return -1;
	context->walker = walker;
	context->frames = frames;
	return 0;
}

static struct pv_outcome stopped(uint64_t done, enum pv_stop stop, uint64_t at)
{
	struct pv_outcome outcome = { done, at, stop };

	return outcome;
}

/* Engine.map of RAM into an existing context. */
struct pv_outcome pv_map(const struct pv_core *core, const struct pv_context *context, uint64_t dfn, uint64_t gfn,
			 uint64_t nr, uint64_t access)
{
	struct pv_table *table = context->table;
	uint64_t backed, clear, possible, done;

	if (!nr)
		return stopped(0, PV_WHOLE, 0);
	if (!(access & PV_ACCESS))
		return stopped(0, PV_STOP_NO_ACCESS, dfn);
	if (dfn >= core->limit || nr > core->limit - dfn)
		return stopped(0, PV_STOP_OUT_OF_APERTURE, dfn < core->limit ? core->limit : dfn);
	backed = pv_inside(&core->backed, gfn);
	clear = pv_outside(&context->closed, dfn);
	possible = min64(nr, min64(backed, clear));
	done = possible ? pv_table_map(table, dfn, gfn, possible, access & PV_ACCESS, 1) : 0;
	if (done == nr)
		return stopped(done, PV_WHOLE, 0);
	if (done == possible)
		return stopped(done, backed <= clear ? PV_STOP_NOT_RAM : PV_STOP_RESERVED, dfn + done);
	if (pv_leaf_at(table, dfn + done).pages)
		return stopped(done, PV_STOP_MAPPED, dfn + done);
	if (table->pool->out_of_memory) {
		table->pool->out_of_memory = 0;
		return stopped(done, PV_STOP_OUT_OF_MEMORY, dfn + done);
	}
	return stopped(done, PV_STOP_POOL_EXHAUSTED, dfn + done);
}

/* Engine.unmap, page by page until a hole, of an existing context that is no clone. */
struct pv_outcome pv_unmap(const struct pv_core *core, const struct pv_context *context, uint64_t dfn, uint64_t nr)
{
	struct pv_table *table = context->table;
	uint64_t possible, done;

	if (!nr)
		return stopped(0, PV_WHOLE, 0);
	if (dfn >= core->limit || nr > core->limit - dfn)
		return stopped(0, PV_STOP_OUT_OF_APERTURE, dfn < core->limit ? core->limit : dfn);
	possible = min64(nr, pv_outside(&context->closed, dfn));
	done = possible ? pv_table_unmap(table, dfn, possible, 0) : 0;
	if (done == nr)
		return stopped(done, PV_WHOLE, 0);
	if (table->pool->out_of_memory) {
		table->pool->out_of_memory = 0;
		return stopped(done, PV_STOP_OUT_OF_MEMORY, dfn + done);
	}
	return stopped(done, pv_inside(&context->closed, dfn + done) ? PV_STOP_RESERVED : PV_STOP_NOT_MAPPED,
		       dfn + done);
}

/* Pages that a domain without a table gives at a DFN: 1:1 with PV_IDENTITY, otherwise 0; and the refusal. */
static uint64_t fixed_pages(const struct pv_core *core, uint32_t ctx, uint64_t dfn, enum pv_refusal *refusal)
{
	uint64_t clear, pages;

	if (ctx != PV_IDENTITY) {
		*refusal = PV_BLOCKED;
		return 0;
	}
	if (dfn >= PV_FRAME_LIMIT) {
		*refusal = PV_OUT_OF_APERTURE;
		return 0;
	}
	clear = pv_outside(&core->reserved, dfn);
	if (!clear) {
		*refusal = PV_RESERVED;
		return 0;
	}
	pages = min64(clear, pv_inside(&core->backed, dfn));
	*refusal = PV_NOT_MAPPED;
	return pages;
}

/*
 * The pages that one leaf, direct region or range of RAM gives at `dfn`; `*gfn` and `*access` are those of the first.
 */
uint64_t pv_pages_at(const struct pv_core *core, uint32_t ctx, uint64_t dfn, uint64_t *gfn, uint64_t *access,
		     enum pv_refusal *refusal)
{
	const struct pv_context *context = ctx < PV_CONTEXTS ? core->contexts[ctx] : NULL;
	struct pv_leaf leaf;

	*gfn = dfn;
	*access = PV_ACCESS;
	if (!context)
		return fixed_pages(core, ctx, dfn, refusal);
	if (dfn >= core->limit) {
		*refusal = PV_OUT_OF_APERTURE;
		return 0;
	}
	if (context->closed.count && pv_inside(&context->closed, dfn)) {
		*refusal = PV_RESERVED;
		return pv_inside(&context->direct, dfn);
	}
	leaf = pv_leaf_at(context->table, dfn);
	*gfn = leaf.gfn;
	*access = leaf.flags & PV_ACCESS;
	*refusal = PV_NOT_MAPPED;
	return leaf.pages;
}

/* What a walk that ends without a result is to DMA; REFUSALS of engine/guest_tables.py. */
static enum pv_refusal refusal_of(uint32_t kind)
{
	switch (kind) {
	case PV_FAULT_INPUT:
		return PV_OUT_OF_APERTURE;
	case PV_FAULT_READ:
	case PV_FAULT_OUTPUT:
		return PV_NOT_RAM;
	case PV_FAULT_PERMISSION:
		return PV_NO_PERMISSION;
	default:
		return PV_NOT_MAPPED;
	}
}

/*
 * The bytes that one leaf of the guest's tables, or a direct region over them, gives from `at` on for this access; *gpa
 * is where they are.
 */
static uint64_t guest_bytes(const struct pv_context *context, uint64_t at, uint64_t wanted, uint64_t *gpa,
			    enum pv_refusal *refusal)
{
	uint64_t dfn = at >> PV_PAGE_SHIFT, offset = at & PV_PAGE_MASK, pages;
	struct pv_walk_report report;
	struct pv_walked leaf;
	uint32_t kind;

	if (dfn >= context->frames) {
		*refusal = PV_OUT_OF_APERTURE;
		return 0;
	}
	pages = pv_outside(&context->closed, dfn);
	if (!pages) {
		pages = min64(pv_inside(&context->direct, dfn), context->frames - dfn);
		*gpa = at;
		*refusal = PV_RESERVED;
		return pages ? (pages << PV_PAGE_SHIFT) - offset : 0;
	}
	kind = pv_walker_leaf(context->walker, at, (uint32_t)wanted, &leaf, &report);
	if (kind) {
		*refusal = refusal_of(kind);
		return 0;
	}
	*gpa = leaf.output;
	pages = min64(pages, context->frames - dfn);
	return min64((1ull << leaf.shift) - (at & ((1ull << leaf.shift) - 1)), (pages << PV_PAGE_SHIFT) - offset);
}

/* The same of a table of the core, or of the identity domain. */
static uint64_t own_bytes(const struct pv_core *core, uint32_t ctx, uint64_t at, uint64_t wanted, uint64_t last,
			  uint64_t *gpa, enum pv_refusal *refusal)
{
	uint64_t dfn = at >> PV_PAGE_SHIFT, offset = at & PV_PAGE_MASK, gfn, access;
	uint64_t pages = pv_pages_at(core, ctx, dfn, &gfn, &access, refusal);

	if (pages && wanted & ~access) {
		*refusal = PV_NO_PERMISSION;
		return 0;
	}
	if (!pages)
		return 0;
	*gpa = gfn << PV_PAGE_SHIFT | offset;
	/* The end of the highest page has no number. */
	return pages > (last >> PV_PAGE_SHIFT) - dfn ? last - at + 1 : (pages << PV_PAGE_SHIFT) - offset;
}

/*
 * Add a run to *count of `runs`, or make the last one longer; 0 if there is no room for one more. No run continues at 0,
 * though the end of the highest page wraps to it.
 */
int pv_add_run(uint64_t *runs, uint64_t *count, uint64_t room, uint64_t gpa, uint64_t size)
{
	uint64_t *next = runs + 2 * *count;

	if (*count && gpa && next[-2] + next[-1] == gpa) {
		next[-1] += size;
		return 1;
	}
	if (*count == room)
		return 0;
	next[0] = gpa;
	next[1] = size;
	++*count;
	return 1;
}

/*
 * Translate the bytes from *position to `last` (inclusive) into up to `room` runs of (gpa, length) in `runs`, adjacent
 * ones joined. Returns how many, sets *done if that is all and otherwise moves *position past them; or minus a
 * pv_refusal, with *position at the first refused byte.
 */
PV_EXPORT int64_t pv_core_walk(const struct pv_core *core, uint32_t ctx, uint64_t *position, uint64_t last,
			       uint64_t wanted, uint64_t *runs, uint64_t room, uint32_t *done)
{
	const struct pv_context *context = ctx < PV_CONTEXTS ? core->contexts[ctx] : NULL;
	uint64_t count = 0, at = *position;

	*done = 0;
	for (;;) {
		enum pv_refusal refusal = PV_NOT_MAPPED;
		uint64_t gpa = 0, size;
		int is_last;

		if (context && context->walker)
			size = guest_bytes(context, at, wanted, &gpa, &refusal);
		else
			size = own_bytes(core, ctx, at, wanted, last, &gpa, &refusal);
		*position = at;
		if (!size)
			return -(int64_t)refusal;
		is_last = size > last - at;
		if (is_last)
			size = last - at + 1;
		if (!pv_add_run(runs, &count, room, gpa, size))
			return (int64_t)count;
		if (is_last) {
			*done = 1;
			return (int64_t)count;
		}
		at += size;
	}
}

/*
 * pv_core_walk() for each of `count` spans, pairs of iova and length: a run for each, in order. Returns 0 if one of them
 * is not one run, for whatever reason.
 */
PV_EXPORT uint32_t pv_core_walk_spans(const struct pv_core *core, uint32_t ctx, const uint64_t *spans, uint64_t count,
				      uint64_t wanted, uint64_t *runs)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t at = spans[2 * i], length = spans[2 * i + 1];
		uint32_t done;

		if (!length || length - 1 > UINT64_MAX - at)
			return 0;
		if (pv_core_walk(core, ctx, &at, at + length - 1, wanted, runs + 2 * i, 1, &done) != 1 || !done)
			return 0;
	}
	return 1;
}

/*
 * A whole request: `count` spans, pairs of iova and length, are translated, and `room` bytes, all of them, copied to or
 * from `buffer`, once the guard is installed. `runs` has room for `most` pairs of numbers. Returns 0 if the request is
 * not for here, for whatever reason; of a write some of it may have happened if memory went away.
 */
uint32_t pv_request(const struct pv_core *core, uint32_t ctx, const struct pv_memory *memory, const uint64_t *spans,
		    uint64_t count, uint64_t *runs, uint64_t most, uint8_t *buffer, uint64_t room, uint32_t to_guest)
{
	uint64_t found = 0, wanted = to_guest ? PV_WRITE : PV_READ;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t at = spans[2 * i], length = spans[2 * i + 1];
		uint32_t done;
		int64_t more;

		if (!length || length - 1 > UINT64_MAX - at)
			return 0;
		more = pv_core_walk(core, ctx, &at, at + length - 1, wanted, runs + 2 * found, most - found, &done);
		if (more < 0 || !done)
			return 0;
		found += (uint64_t)more;
	}
	return pv_memory_has(memory, runs, found) &&
	       pv_memory_move(memory, runs, found, buffer, room, to_guest) == room;
}

/*
 * pv_request() by tables of the guest. The step of the in-flight line is *step meanwhile, which is odd, and the next one
 * afterwards (docs/guest-tables.md).
 */
uint32_t pv_request_by_guest(const struct pv_core *core, uint32_t ctx, const struct pv_memory *memory, uint32_t *line,
			     uint32_t step, const uint64_t *spans, uint64_t count, uint64_t *runs, uint64_t most,
			     uint8_t *buffer, uint64_t room, uint32_t to_guest)
{
	uint32_t done;

	__atomic_store_n(line, step, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);	/* the guest sees this, or entries are read after it cleared them */
	done = pv_request(core, ctx, memory, spans, count, runs, most, buffer, room, to_guest);
	__atomic_store_n(line, step + 1, __ATOMIC_RELEASE);
	return done;
}

/* The same, for who has not installed the guard. */
PV_EXPORT uint32_t pv_core_transfer(const struct pv_core *core, uint32_t ctx, const struct pv_memory *memory,
				    uint32_t *line, uint32_t step, const uint64_t *spans, uint64_t count, uint64_t *runs,
				    uint64_t most, uint8_t *buffer, uint64_t room, uint32_t to_guest)
{
	pv_guard_install();
	return pv_request_by_guest(core, ctx, memory, line, step, spans, count, runs, most, buffer, room, to_guest);
}
