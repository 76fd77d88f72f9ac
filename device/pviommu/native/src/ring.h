/* SPDX-License-Identifier: MIT */
/*
 * Rings and their slots (interfaces/pv/ring.py, execution.py and page_operation.py). Python declares what a slot's
 * payload means and its results, and passes that to C: the C sources have no number of a profile.
 */
#ifndef PVIOMMU_RING_H
#define PVIOMMU_RING_H

#include "core.h"

#define PV_SLOT_WORDS	8

/* Slots that map or unmap, as a profile declares them. A slot is an array of 64-bit words. */
struct pv_operation {
	uint64_t fixed[PV_SLOT_WORDS];	/* bits that must be as in `value`: number, padding, unknown flags */
	uint64_t value[PV_SLOT_WORDS];
	struct pv_field ctx;
	struct pv_field dfn;
	struct pv_field gfn;
	struct pv_field nr;
	struct pv_field count;		/* written: the count of pages done */
	uint64_t added;			/* bits of the guest's value to which the pages are added */
	uint64_t readable;		/* in words[access_word] */
	uint64_t writeable;
	uint64_t most;			/* pages; slots with more are left to Python */
	uint32_t access_word;
	uint32_t carried_out;		/* 0: these slots are left to Python */
	uint32_t counted;		/* one bit per pv_stop: whether the count is written */
	uint32_t reserved_first;	/* whether a reserved page is reported before a frame that is not RAM */
	int32_t result[PV_STOPS];	/* by pv_stop */
};

enum pv_kind {
	PV_MAP,
	PV_UNMAP,
	PV_KINDS,
};

/* The lines that each side writes; see protocol/pviommu_abi/shared.py. */
struct pv_ring {
	uint8_t *slots;
	const volatile uint32_t *guest_line;	/* producer, completion_event, awaited */
	volatile uint32_t *device_line;		/* completed, doorbell_event */
	uint32_t entries;			/* a power of two; 0: off */
	uint32_t completed;
	uint32_t broken;
	uint32_t number;
	uint32_t awaited;			/* as last seen */
};

/* One operation that was carried out: Record of history/records.py, which says what the fields are. */
struct pv_record {
	uint64_t time_ns;
	uint64_t dfn;
	uint64_t gfn;
	uint64_t nr;
	uint64_t done;
	uint64_t before;	/* of the first page: gfn << 2 | access, 0 if it is not mapped */
	uint64_t after;
	uint32_t domain;
	uint32_t stream;
	uint32_t ring;
	uint32_t index;
	uint32_t sequence;
	int32_t result;
	uint32_t spare;
	uint8_t kind;
	uint8_t access;
	uint8_t stop;
	uint8_t padding;
};

/* The last operations. Python writes there too, but never while a function of this library runs. */
struct pv_history {
	uint64_t count;		/* so far */
	uint64_t next;		/* place of the next record */
	uint64_t size;
	uint64_t time_ns;	/* when the clock was last looked at */
	struct pv_record records[];
};

/* The rings of one device, and the operations of the profile that it has selected. */
struct pv_rings {
	const struct pv_core *core;
	struct pv_ring *rings;
	uint64_t count;
	struct pv_operation operations[PV_KINDS];
	struct pv_history *history;	/* NULL: nobody wants to know */
};

enum pv_reason {
	PV_DONE,		/* all slots that were asked for, or that there were */
	PV_OVERDUE,		/* time is up */
	PV_FOR_PYTHON,		/* the next slot is not for this core */
	PV_POSTED_FAILED,	/* `unpublished` slots wait until the event about the last one is sent */
	PV_BROKEN,		/* an impossible producer index */
};

struct pv_report {
	uint64_t slots;
	uint64_t posted;
	uint64_t failed;
	uint64_t maps;
	uint64_t unmaps;
	uint64_t pages_mapped;
	uint64_t pages_unmapped;
	uint64_t waits;		/* while polling: the number of times that the guest began to wait */
	uint32_t reason;
	uint32_t interrupt;	/* whether the guest asked for an interrupt */
	uint32_t unpublished;
	uint32_t ring;		/* the last one worked on */
	uint32_t sequence;	/* of the last slot that failed, and its result */
	int32_t result;
};

#endif
