// SPDX-License-Identifier: MIT
/*
 * The busy part of the command rings: slots that map and unmap, from the shared BAR and back into it.
 *
 * What is rare, long or wrong in a way that only its status tells is left to Python, slot by slot and in order. The
 * guest can write the shared memory at any time: a slot is read once, into registers, and indices are never read back.
 */

#include <poll.h>
#include <time.h>

#include "core.h"

#define SLOT_SIZE	64u
#define SLOT_WORDS	8
#define RESULT		2	/* 32-bit words of a slot */
#define COMPLETED	3
#define POSTED		1u

#define CLASS_XEN_2024	1
#define CLASS_XEN_V7	2
#define XEN_2024_MAP	5
#define XEN_2024_UNMAP	6
#define XEN_V7_MAP	6
#define XEN_V7_UNMAP	7
#define PAGE_SIZE	4096u

/* Longer operations are left to Python, which does them in pieces: this many pages take C less than a millisecond. */
#define PIECE		65536u
#define BATCH		256u

/* How much work goes by between two looks at the clock. */
#define CLOCK_SLOTS	16
#define CLOCK_PAGES	1024

/* How long a poll of the rings goes on between two looks at the descriptor that may end it: each is a system call. */
#define LOOK_NS		20000u

#define EPERM		1
#define ENOENT		2
#define EIO		5
#define ENOMEM		12
#define EINVAL		22
#define ERANGE		34
#define EADDRINUSE	98
#define EADDRNOTAVAIL	99

/* A map or unmap that a slot asks for, of either profile. */
struct request {
	const struct pv_context *context;
	uint64_t dfn;
	uint64_t gfn;
	uint32_t nr;
	uint32_t access;
	uint32_t is_unmap;
	uint32_t count_word;	/* 32-bit word of the slot for the count */
	uint32_t count_before;	/* what it is added to */
};

static const int16_t map_errno[2][PV_STOP_OUT_OF_MEMORY + 1] = {
	{
		[PV_STOP_NO_ACCESS] = -EINVAL,
		[PV_STOP_OUT_OF_APERTURE] = -ERANGE,
		[PV_STOP_NOT_RAM] = -EPERM,
		[PV_STOP_RESERVED] = -EADDRINUSE,
		[PV_STOP_MAPPED] = -EADDRINUSE,
		[PV_STOP_POOL_EXHAUSTED] = -ENOMEM,
		[PV_STOP_NOT_MAPPED] = -ENOENT,
		[PV_STOP_OUT_OF_MEMORY] = -EIO,
	}, {
		[PV_STOP_NO_ACCESS] = -EINVAL,
		[PV_STOP_OUT_OF_APERTURE] = -ERANGE,
		[PV_STOP_NOT_RAM] = -ENOENT,
		[PV_STOP_RESERVED] = -EADDRNOTAVAIL,
		[PV_STOP_MAPPED] = -EADDRINUSE,
		[PV_STOP_POOL_EXHAUSTED] = -ENOMEM,
		[PV_STOP_NOT_MAPPED] = -ENOENT,
		[PV_STOP_OUT_OF_MEMORY] = -EIO,
	},
};

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

/* The request of a xen-2024 payload; 0 when it is not for this core. */
static int parse_2024(const struct pv_core *core, const uint64_t *slot, struct request *request, uint32_t *ctx)
{
	uint32_t subop = slot[2] & 0xffff, flags = slot[2] >> 32;

	if (slot[0] >> 8 & 0xff || slot[6] || slot[7])
		return 0;
	*ctx = slot[2] >> 16 & 0xffff;
	request->count_before = 0;
	if (subop == XEN_2024_MAP && !(flags & ~(uint32_t)PV_ACCESS)) {
		request->is_unmap = 0;
		request->access = flags;
		request->gfn = slot[3];
		request->dfn = slot[4];
		request->nr = (uint32_t)slot[5];
		request->count_word = 11;
	} else if (subop == XEN_2024_UNMAP && !flags && !slot[5]) {
		request->is_unmap = 1;
		request->dfn = slot[3];
		request->nr = (uint32_t)slot[4];
		request->count_word = 9;
	} else {
		return 0;
	}
	return request->nr <= core->max_nr_pages;
}

/* The request of a xen-v7 payload; 0 when it is not for this core. */
static int parse_v7(const uint64_t *slot, struct request *request, uint32_t *ctx)
{
	uint32_t op = slot[0] >> 8 & 0xff;

	if (slot[2] >> 16 || slot[7])
		return 0;
	*ctx = (uint32_t)slot[2];
	if (op == XEN_V7_MAP) {
		request->is_unmap = 0;
		request->gfn = slot[3];
		request->dfn = slot[4];
		request->access = (uint32_t)slot[5];
		request->nr = (uint32_t)slot[6];
		request->count_before = slot[6] >> 32;
		request->count_word = 13;
		return !(request->access & ~(uint32_t)PV_ACCESS) && slot[5] >> 32 == PAGE_SIZE;
	}
	request->is_unmap = 1;
	request->dfn = slot[3];
	request->nr = slot[4] >> 32;
	request->count_before = (uint32_t)slot[5];
	request->count_word = 10;
	return op == XEN_V7_UNMAP && (uint32_t)slot[4] == PAGE_SIZE && !(slot[5] >> 32) && !slot[6];
}

static int parse(const struct pv_core *core, const uint64_t *slot, struct request *request)
{
	uint64_t op_class = slot[0] & 0xff;
	uint32_t ctx;

	if (op_class != core->profile || slot[0] >> 16 & 0xffff & ~POSTED)
		return 0;
	if (op_class == CLASS_XEN_2024 ? !parse_2024(core, slot, request, &ctx) : !parse_v7(slot, request, &ctx))
		return 0;
	request->context = core->contexts[ctx];
	/* Python notes what the guest unmaps of a clone. */
	return request->nr <= PIECE && request->context && !(request->is_unmap && request->context->is_clone);
}

/* Carry a request out; its result, and the pages done in *done. */
static int32_t carry_out(const struct pv_core *core, const struct request *request, uint64_t *done)
{
	uint32_t is_v7 = core->profile == CLASS_XEN_V7;
	struct pv_outcome outcome;

	if (request->is_unmap)
		outcome = pv_unmap(core, request->context, request->dfn, request->nr);
	else
		outcome = pv_map(core, request->context, request->dfn, request->gfn, request->nr, request->access);
	*done = outcome.done;
	if (outcome.stop == PV_WHOLE)
		return 0;
	if (request->is_unmap && outcome.stop == PV_STOP_RESERVED && !is_v7)
		return -ENOENT;
	/* In xen-v7 a reserved page outranks a frame that is not RAM. */
	if (outcome.stop == PV_STOP_NOT_RAM && is_v7 && pv_inside(&request->context->closed, outcome.at))
		return -EADDRNOTAVAIL;
	return map_errno[is_v7][outcome.stop];
}

/* Complete the next `count` slots. Whether the guest asked to be interrupted. */
static uint32_t publish(struct pv_ring *ring, uint32_t count)
{
	uint32_t old = ring->completed, event;

	ring->completed = old + count;
	__atomic_store_n(&ring->device_line[0], ring->completed, __ATOMIC_RELEASE);
	__sync_synchronize();
	event = ring->guest_line[1];
	return ring->completed - event - 1 < count;
}

static void count_pages(struct pv_report *report, const struct request *request, uint64_t done)
{
	if (request->is_unmap) {
		report->unmaps++;
		report->pages_unmapped += done;
	} else {
		report->maps++;
		report->pages_mapped += done;
	}
}

/* Carry out the slot at `place`, if it is for this core. Its outcome is written, its completion not published. */
static int execute_one(const struct pv_core *core, uint8_t *place, struct pv_report *report, uint64_t *slot,
		       uint64_t *done)
{
	volatile uint32_t *words = (volatile uint32_t *)place;
	struct request request;
	int32_t result;

	for (int i = 0; i < SLOT_WORDS; i++)
		slot[i] = ((const volatile uint64_t *)place)[i];
	if (!parse(core, slot, &request))
		return 0;
	result = carry_out(core, &request, done);
	words[request.count_word] = request.count_before + (uint32_t)*done;
	words[RESULT] = (uint32_t)result;
	__atomic_store_n(&words[COMPLETED], (uint32_t)(slot[0] >> 32), __ATOMIC_RELEASE);
	count_pages(report, &request, *done);
	report->slots++;
	report->failed += result < 0;
	report->result = result;
	report->sequence = slot[0] >> 32;
	return 1;
}

/* Execute up to `limit` slots, which the ring has; adds to *report. A slot begun is finished, whatever the time. */
static void execute(const struct pv_core *core, struct pv_ring *ring, uint32_t limit, uint64_t deadline_ns,
		    struct pv_report *report)
{
	uint64_t slot[SLOT_WORDS], done, pages = 0;
	uint32_t unpublished = 0, posted;

	report->ring = ring->number;
	report->reason = PV_DONE;
	for (uint32_t i = 1; i <= limit; i++) {
		uint32_t position = (ring->completed + unpublished) & (ring->entries - 1);

		if (!execute_one(core, ring->slots + position * SLOT_SIZE, report, slot, &done)) {
			report->reason = PV_FOR_PYTHON;
			break;
		}
		unpublished++;
		posted = slot[0] >> 16 & POSTED;
		report->posted += posted;
		if (!posted) {
			/* Somebody waits. */
			report->interrupt |= publish(ring, unpublished);
			unpublished = 0;
			if (report->interrupt)
				break;
		} else if (report->result < 0) {
			report->reason = PV_POSTED_FAILED;
			report->unpublished = unpublished;
			return;
		}
		pages += done;
		if (i % CLOCK_SLOTS == 0 || pages > CLOCK_PAGES) {
			pages = 0;
			if (now_ns() > deadline_ns) {
				report->reason = PV_OVERDUE;
				break;
			}
		}
	}
	if (unpublished)
		report->interrupt |= publish(ring, unpublished);
}

/*
 * Execute up to `limit` slots of a ring, which has that many, for about `budget_ns`. *report, all zeros before, tells
 * what was done and why it ended.
 */
PV_EXPORT void pv_ring_execute(const struct pv_core *core, struct pv_ring *ring, uint32_t limit, uint64_t budget_ns,
			       struct pv_report *report)
{
	execute(core, ring, limit < BATCH ? limit : BATCH, now_ns() + budget_ns, report);
}

/* Whether somebody began to wait since the last look. Twin: CommandRing.is_awaited_anew() of pv/ring.py. */
static uint32_t awaited_anew(struct pv_ring *ring)
{
	uint32_t before = ring->awaited;

	ring->awaited = ring->guest_line[2];
	return ring->awaited != before;
}

/* Times that somebody waited; a guest that does not tell waits for all but posted slots. */
static uint64_t waits_of(const struct pv_report *report)
{
	return report->waits ? report->waits : report->slots - report->posted;
}

static int is_readable(int fd)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN };

	return poll(&polled, 1, 0) > 0;	/* never of a negative one */
}

/*
 * Poll `count` rings and execute what appears, as far as it is for this core: for about `left_ns`, and for `window_ns`
 * after each time that somebody began to wait, for `budget_ns` in all. Ends early when there is something for Python
 * to do, or to read from `fd`.
 */
PV_EXPORT void pv_spin(const struct pv_core *core, struct pv_ring *rings, uint32_t count, uint64_t budget_ns,
		       uint64_t left_ns, uint64_t window_ns, int fd, struct pv_report *report)
{
	uint64_t now = now_ns(), deadline = now + budget_ns, until = now + left_ns, look = now + LOOK_NS, waits = 0;

	do {
		if (now >= look) {
			if (is_readable(fd))
				return;
			look = now + LOOK_NS;
		}
		for (uint32_t turn = 0; turn < CLOCK_SLOTS; turn++) {
			for (uint32_t i = 0; i < count; i++) {
				struct pv_ring *ring = &rings[i];
				uint32_t pending;

				if (!ring->entries || ring->broken)
					continue;
				pending = __atomic_load_n(&ring->guest_line[0], __ATOMIC_ACQUIRE) - ring->completed;
				if (!pending)
					continue;
				if (pending > ring->entries) {
					report->reason = PV_BROKEN;
					return;
				}
				execute(core, ring, pending < BATCH ? pending : BATCH, deadline, report);
				report->waits += awaited_anew(ring);
				if (report->reason != PV_DONE || report->interrupt)
					return;
			}
			__builtin_ia32_pause();
		}
		now = now_ns();
		if (waits != waits_of(report)) {
			waits = waits_of(report);
			until = now + window_ns;
		}
	} while (now < until && now < deadline);
}
