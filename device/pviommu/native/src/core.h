/* SPDX-License-Identifier: MIT */
/*
 * The native core: the per-page work of device/pviommu/engine in C. Rings on top of it: ring.h.
 *
 * Every function has a counterpart in Python that defines what is right; tests compare the two. Only table nodes are
 * allocated, every loop is bounded, and everything that comes from a guest is checked before it is used.
 */
#ifndef PVIOMMU_CORE_H
#define PVIOMMU_CORE_H

#include <stddef.h>
#include <stdint.h>

#define PV_EXPORT __attribute__((visibility("default")))

#define PV_PAGE_SHIFT	12
#define PV_PAGE_MASK	((1ull << PV_PAGE_SHIFT) - 1)
#define PV_FRAME_LIMIT	(1ull << (64 - PV_PAGE_SHIFT))

/* ---- numbers in words of 64 bits ---- */

struct pv_field {
	uint64_t mask;
	uint32_t word;
	uint32_t shift;
};

static inline uint64_t pv_field(const uint64_t *words, const struct pv_field *field)
{
	return words[field->word] >> field->shift & field->mask;
}

/* ---- sets of frames (engine/ranges.py) ---- */

/* Merged ranges in order, as `count` bounds: the first frame of a range, the frame after its end, and so on. */
struct pv_ranges {
	uint64_t count;
	uint64_t room;
	uint64_t *bounds;
};

int pv_ranges_set(struct pv_ranges *ranges, const uint64_t *bounds, uint64_t count);
int pv_ranges_replace(struct pv_ranges *ranges, uint64_t first, uint64_t end, const uint64_t *bounds, uint64_t count);
uint64_t pv_inside(const struct pv_ranges *ranges, uint64_t frame);
uint64_t pv_outside(const struct pv_ranges *ranges, uint64_t frame);

/* ---- copies that survive missing memory ---- */

void pv_guard_install(void);
uint64_t pv_copy(uint8_t *to, const uint8_t *from, uint64_t size);
int pv_try_load(const uint64_t *from, uint64_t *value);
int pv_try_exchange(uint64_t *at, uint64_t *found, uint64_t after);

/* ---- guest memory (dma/memory.py) ---- */

struct pv_memory;

int pv_memory_has(const struct pv_memory *memory, const uint64_t *runs, uint64_t count);
uint64_t pv_memory_move(const struct pv_memory *memory, const uint64_t *runs, uint64_t count, uint8_t *buffer,
			uint64_t room, uint32_t to_guest);
uint8_t *pv_memory_at(const struct pv_memory *memory, uint64_t gpa, uint64_t size);
int pv_memory_may_vanish(const struct pv_memory *memory);

/* ---- page tables (engine/pool.py, engine/table.py) ---- */

#define PV_LEVEL_BITS	9
#define PV_ENTRIES	512u

#define PV_READ		1ull
#define PV_WRITE	2ull
#define PV_ACCESS	(PV_READ | PV_WRITE)
#define PV_START	4ull
#define PV_CLONE	8ull
#define PV_KIND		(PV_CLONE | PV_ACCESS)
#define PV_GFN_SHIFT	4
/* An entry with this bit is a lower table; a frame number shifted by four never has it. */
#define PV_TABLE	(1ull << 63)

struct pv_node {
	uint64_t entries[PV_ENTRIES];
	uint64_t live;
};

/* Python reads and writes the first two fields. Spare nodes are all zeros except for entries[0], their link. */
struct pv_pool {
	int64_t free;
	int64_t total;
	uint64_t out_of_memory;
	uint64_t spares;
	struct pv_node *spare;
};

struct pv_table {
	uint64_t mapped;
	struct pv_pool *pool;
	uint64_t limit;
	int64_t charged;
	int64_t reserve;
	uint64_t top;	/* shift of the root's level */
	struct pv_node *root;
};

/* What was found at a dfn. pages == 0: nothing. */
struct pv_leaf {
	uint64_t gfn;
	uint64_t pages;
	uint64_t flags;
	uint64_t offset;	/* of the dfn inside the leaf */
};

struct pv_leaf pv_leaf_at(const struct pv_table *table, uint64_t dfn);
uint64_t pv_table_map(struct pv_table *table, uint64_t dfn, uint64_t gfn, uint64_t nr, uint64_t kind, uint32_t starts);
uint64_t pv_table_unmap(struct pv_table *table, uint64_t dfn, uint64_t nr, uint32_t past_holes);

/* ---- contexts and translation (engine/engine.py) ---- */

/* A context here is a paging domain of Python's engine. */

#define PV_CONTEXTS 65536u
#define PV_IDENTITY 0u	/* as in engine/domain.py; any other number without a table reaches nothing */

struct pv_walker;	/* walk.h */

struct pv_context {
	struct pv_table *table;	/* NULL: the guest owns its tables */
	const struct pv_walker *walker;	/* these */
	uint64_t frames;	/* of theirs: dfns are below it */
	struct pv_ranges direct;
	struct pv_ranges closed;
	uint32_t is_clone;
};

enum pv_refusal {
	PV_NOT_MAPPED = 1,
	PV_NO_PERMISSION,
	PV_OUT_OF_APERTURE,
	PV_RESERVED,
	PV_BLOCKED,
	PV_NOT_RAM,
};

enum pv_stop {
	PV_WHOLE,
	PV_STOP_NO_ACCESS,
	PV_STOP_OUT_OF_APERTURE,
	PV_STOP_NOT_RAM,
	PV_STOP_RESERVED,
	PV_STOP_MAPPED,
	PV_STOP_POOL_EXHAUSTED,
	PV_STOP_NOT_MAPPED,
	PV_STOP_OUT_OF_MEMORY,	/* the process is out of memory; in Python a MemoryError */
	PV_STOPS,
};

struct pv_outcome {
	uint64_t done;
	uint64_t at;
	enum pv_stop stop;
};

struct pv_core {
	uint64_t limit;		/* dfns of a context are below it */
	struct pv_ranges backed; /* RAM, and other frames that may be mapped */
	struct pv_ranges reserved;
	struct pv_context *contexts[PV_CONTEXTS];
};

struct pv_outcome pv_map(const struct pv_core *core, const struct pv_context *context, uint64_t dfn, uint64_t gfn,
			 uint64_t nr, uint64_t access);
struct pv_outcome pv_unmap(const struct pv_core *core, const struct pv_context *context, uint64_t dfn, uint64_t nr);
uint64_t pv_pages_at(const struct pv_core *core, uint32_t ctx, uint64_t dfn, uint64_t *gfn, uint64_t *access,
		     enum pv_refusal *refusal);
int pv_add_run(uint64_t *runs, uint64_t *count, uint64_t room, uint64_t gpa, uint64_t size);
uint32_t pv_request(const struct pv_core *core, uint32_t ctx, const struct pv_memory *memory, const uint64_t *spans,
		    uint64_t count, uint64_t *runs, uint64_t most, uint8_t *buffer, uint64_t room, uint32_t to_guest);
uint32_t pv_request_by_guest(const struct pv_core *core, uint32_t ctx, const struct pv_memory *memory, uint32_t *line,
			     uint32_t step, const uint64_t *spans, uint64_t count, uint64_t *runs, uint64_t most,
			     uint8_t *buffer, uint64_t room, uint32_t to_guest);

#endif
