/* SPDX-License-Identifier: MIT */
/*
 * Walks of translation tables that lie in guest memory: engine/walk.py in C, and what interfaces/smmuv3/caches.py
 * remembers of them. Formats are data, as there: Python fills in a `struct pv_tables` from its Tables.
 */
#ifndef PVIOMMU_WALK_H
#define PVIOMMU_WALK_H

#include "core.h"

/* ---- formats (engine/formats.py) ---- */

#define PV_WALK_LEVELS	6
#define PV_WALK_ATTEMPTS 8

struct pv_pattern {
	uint64_t mask;
	uint64_t value;
};

struct pv_level {
	struct pv_pattern leaf;
	struct pv_pattern table;
	uint64_t index_mask;
	uint64_t leaf_address;
	uint64_t leaf_reserved;
	int32_t number;
	uint32_t shift;
	uint32_t contiguous;
};

/* Shifts are below 64, and so are input and output bits; Python has checked that. */
struct pv_tables {
	uint64_t root;
	struct pv_level levels[PV_WALK_LEVELS];
	struct pv_pattern leaf_read;
	struct pv_pattern leaf_write;
	struct pv_pattern table_read;
	struct pv_pattern table_write;
	struct pv_pattern clean;
	uint64_t present;
	uint64_t table_address;
	uint64_t table_reserved;
	uint64_t high;
	uint64_t table_accessed;
	uint64_t leaf_accessed;
	uint64_t dirty;
	uint64_t contiguous;
	uint32_t high_shift;
	uint32_t needs_accessed;
	uint32_t neither;	/* enum pv_fault_kind */
	uint32_t count;		/* of levels */
	uint32_t input_bits;
	uint32_t output_bits;
	uint32_t is_signed;
	uint32_t updates_access;
	uint32_t updates_dirty;
};

/* ---- what comes of a walk ---- */

/* As WalkFaultKind, in its order. */
enum pv_fault_kind {
	PV_NO_FAULT,
	PV_FAULT_INPUT,
	PV_FAULT_READ,
	PV_FAULT_NOT_PRESENT,
	PV_FAULT_MALFORMED,
	PV_FAULT_OUTPUT,
	PV_FAULT_ACCESS_FLAG,
	PV_FAULT_PERMISSION,
	PV_FAULT_CONTENDED,
	PV_FAULT_DECLARATION,	/* the lowest level leads on */
	PV_FAULT_STALE,		/* what is remembered differs from what memory says; only if that is compared */
};

struct pv_fault {
	uint64_t place;	/* of the descriptor; 0 for PV_FAULT_INPUT, where none was read */
	uint32_t kind;
	int32_t level;
};

struct pv_walked {
	uint64_t output;
	uint64_t descriptor;
	uint32_t shift;
	uint32_t contiguous;
	uint32_t access;
	int32_t level;
};

/*
 * Why there is no result. A fault of the first stage, or of the second one that translates what the first has found;
 * both, if the first stage could not read a descriptor because the second refused. Without any fault `refused_at` is
 * where the output leads; with PV_FAULT_READ of the lowest stage that failed it is the descriptor's address.
 */
struct pv_walk_report {
	struct pv_fault first;
	struct pv_fault second;
	uint64_t refused_at;
	uint32_t refusal;	/* enum pv_refusal, of the core; 0: there is no memory, or it went */
};

/* ---- translations that are remembered ---- */

struct pv_tlb;

/* A translation of the `1 << shift` bytes around the address that was asked for. */
struct pv_translation {
	uint64_t output;	/* of that address */
	uint32_t shift;
	uint32_t access;
};

void pv_tlb_drop(struct pv_tlb *tlb, uint64_t first, uint64_t last, uint64_t mask, uint64_t one, uint64_t other);
void pv_tlb_clear(struct pv_tlb *tlb);
uint64_t pv_tlb_looked_at(const struct pv_tlb *tlb);
int pv_tlb_find(const struct pv_tlb *tlb, uint64_t tag, uint64_t every, uint64_t address, uint32_t access,
		struct pv_translation *found);
void pv_tlb_add(struct pv_tlb *tlb, uint64_t tag, uint64_t address, const struct pv_walked *leaf);

/* ---- guest memory by way of a context ---- */

/* Whose addresses are meant. Python fills it in. */
struct pv_place {
	const struct pv_core *core;	/* those of a context of this core; NULL: the guest's */
	struct pv_memory *memory;	/* where the guest's are */
	uint64_t end;			/* nothing lies there or above */
	uint32_t ctx;
};

uint8_t *pv_place_at(const struct pv_place *place, uint64_t address, uint64_t size, uint64_t access,
		     uint32_t *refusal);

/* ---- stages ---- */

struct pv_stage {
	const struct pv_tables *tables;	/* NULL: there is no such stage, addresses pass */
	struct pv_tlb *tlb;		/* NULL: nothing is remembered */
	uint64_t tag;			/* of what is remembered... */
	uint64_t every;			/* ... and of leaves that have none of the bits `own` */
	uint64_t own;
	uint64_t base;			/* bits that addresses have outside, and not as the tables' input */
};

/* One or two stages. Python fills it in. */
struct pv_walker {
	struct pv_stage first;
	struct pv_stage second;		/* translates what the first leads to, and the addresses of its tables */
	struct pv_place place;		/* below both */
	uint32_t pass_bits;		/* of the addresses that pass if there is no first stage */
	uint32_t updates;		/* whether descriptors may be updated */
	uint32_t compares;		/* whether what is remembered is compared with memory */
};

enum pv_span_end {
	PV_SPAN_WHOLE,
	PV_SPAN_FULL,		/* there is no room for more runs */
	PV_SPAN_REFUSED,	/* the report says why */
};

/* Where a span leads. */
struct pv_span {
	uint64_t *runs;		/* of (address, length) */
	uint64_t room;
	uint64_t position;	/* of the first byte that is not in them */
	uint32_t end;		/* enum pv_span_end */
	struct pv_walk_report report;
};

uint32_t pv_walker_leaf(const struct pv_walker *walker, uint64_t address, uint32_t access, struct pv_walked *leaf,
			struct pv_walk_report *report);
uint64_t pv_walker_span(const struct pv_walker *walker, uint64_t first, uint64_t last, uint32_t access,
			struct pv_span *span);

#endif
