// SPDX-License-Identifier: MIT
/*
 * The fast path of the command rings: slots that map and unmap, read from and completed in the shared BAR.
 *
 * Slots that are rare, long or invalid are left to Python, one by one and in order. The guest can write the shared
 * memory at any time: a slot is read once, into registers, and indices are never read back.
 */

#include <poll.h>
#include <time.h>

#include "ring.h"

/* Header of a slot; see protocol/pviommu_abi/slots.py. */
#define SLOT_SIZE	64u
#define RESULT		2	/* 32-bit words */
#define COMPLETED	3
#define FLAGS_SHIFT	16
#define SEQUENCE_SHIFT	32
#define POSTED		1u

#define MOST_SLOTS	256u

/*
 * How far ahead slots are prefetched. 2 makes posting faster for both sides; 1, 3 and 4 do not (docs/performance.md).
 * Slots past those submitted are never fetched: the guest is writing them.
 */
#define AHEAD		2

#define PV_NOBODY	0xffffffffu	/* history/records.py */

/* How much work goes by between two looks at the clock: so many slots, so many pages, or less of both. */
#define CLOCK_SLOTS	16
#define CLOCK_PAGES	1024

/* How long the rings are polled between two checks of the descriptor that may end it, since each is a system call. */
#define LOOK_NS		20000u

/* Two words of a slot, read and compared at once. */
typedef uint64_t pair __attribute__((vector_size(16), aligned(8), may_alias));

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

/* The time, which is that of the records which follow, if there is a history. */
static uint64_t look_at_clock(struct pv_history *history)
{
	uint64_t now = now_ns();

	if (history)
		history->time_ns = now;
	return now;
}

/* Whether a slot matches an operation: all bits that the operation fixes have their values. */
static inline __attribute__((always_inline)) int matches(const struct pv_operation *operation, const uint64_t *slot)
{
	const pair *fixed = (const pair *)operation->fixed, *value = (const pair *)operation->value;
	const pair *words = (const pair *)slot;
	pair difference = ((words[0] & fixed[0]) ^ value[0]) | ((words[1] & fixed[1]) ^ value[1]) |
			  ((words[2] & fixed[2]) ^ value[2]) | ((words[3] & fixed[3]) ^ value[3]);

	return operation->carried_out && !(difference[0] | difference[1]);
}

/* A page, as a record has it. */
static uint64_t entry_at(const struct pv_context *context, uint64_t dfn)
{
	struct pv_leaf leaf = pv_leaf_at(context->table, dfn);

	return leaf.pages ? leaf.gfn << 2 | (leaf.flags & PV_ACCESS) : 0;
}

/* Record an operation that was carried out, with its slot as it was before. Counterpart: history/recorder.py. */
static __attribute__((noinline)) void remember(const struct pv_rings *rings, const struct pv_operation *operation,
					       enum pv_kind kind, const uint64_t *slot, uint64_t before,
					       const struct pv_outcome *outcome, uint32_t ring, uint32_t index)
{
	struct pv_history *history = rings->history;
	uint64_t dfn = pv_field(slot, &operation->dfn), gfn = 0, after = outcome->done ? 0 : before;
	uint32_t ctx = (uint32_t)pv_field(slot, &operation->ctx);
	uint8_t access = 0;

	if (kind == PV_MAP) {
		uint64_t flags = slot[operation->access_word];

		access = (flags & operation->readable ? PV_READ : 0) | (flags & operation->writeable ? PV_WRITE : 0);
		gfn = pv_field(slot, &operation->gfn);
		before = outcome->done ? 0 : entry_at(rings->core->contexts[ctx], dfn);
		after = outcome->done ? gfn << 2 | access : before;
	}
	history->records[history->next] = (struct pv_record) {
		.time_ns = history->time_ns,
		.dfn = dfn,
		.gfn = gfn,
		.nr = pv_field(slot, &operation->nr),
		.done = outcome->done,
		.before = before,
		.after = after,
		.domain = ctx,
		.stream = PV_NOBODY,
		.ring = ring,
		.index = index,
		.sequence = slot[0] >> SEQUENCE_SHIFT,
		.result = operation->result[outcome->stop],
		.kind = kind,
		.access = access,
		.stop = outcome->stop,
	};
	history->next = history->next + 1 == history->size ? 0 : history->next + 1;
	history->count++;
}

/* Map or unmap what a slot asks for, and count it; 0 when the slot is not for this core. */
static inline __attribute__((always_inline)) int
carry_out(const struct pv_rings *rings, const struct pv_operation *operation, enum pv_kind kind, const uint64_t *slot,
	  struct pv_outcome *outcome, struct pv_report *report, int recorded, uint64_t *before)
{
	const struct pv_core *core = rings->core;
	uint64_t ctx = pv_field(slot, &operation->ctx), dfn = pv_field(slot, &operation->dfn);
	uint64_t nr = pv_field(slot, &operation->nr), flags, access;
	const struct pv_context *context;

	if (ctx >= PV_CONTEXTS || nr > operation->most)
		return 0;
	context = core->contexts[ctx];
	/* Python refuses where the guest owns the tables, and keeps track of what the guest unmaps in a clone. */
	if (!context || !context->table || (kind == PV_UNMAP && context->is_clone))
		return 0;
	if (kind == PV_UNMAP) {
		if (recorded)
			*before = entry_at(context, dfn);
		*outcome = pv_unmap(core, context, dfn, nr);
		report->unmaps++;
		report->pages_unmapped += outcome->done;
		return 1;
	}
	flags = slot[operation->access_word];
	access = (flags & operation->readable ? PV_READ : 0) | (flags & operation->writeable ? PV_WRITE : 0);
	*outcome = pv_map(core, context, dfn, pv_field(slot, &operation->gfn), nr, access);
	if (outcome->stop == PV_STOP_NOT_RAM && operation->reserved_first && pv_inside(&context->closed, outcome->at))
		outcome->stop = PV_STOP_RESERVED;
	report->maps++;
	report->pages_mapped += outcome->done;
	return 1;
}

/* Write the count of pages into the slot at `place`, keeping the other bits of its word. */
static void write_count(volatile uint64_t *place, const struct pv_operation *operation, const uint64_t *slot,
			uint64_t done)
{
	const struct pv_field *count = &operation->count;
	uint64_t word = slot[count->word], total = (word >> count->shift & operation->added) + done;

	place[count->word] = (word & ~(count->mask << count->shift)) | (total & count->mask) << count->shift;
}

/* Complete the next `count` slots; returns whether the guest asked for an interrupt. */
static uint32_t publish(struct pv_ring *ring, uint32_t count)
{
	uint32_t old = ring->completed, event;

	ring->completed = old + count;
	__atomic_store_n(&ring->device_line[0], ring->completed, __ATOMIC_RELEASE);
	__sync_synchronize();
	event = ring->guest_line[1];
	return ring->completed - event - 1 < count;
}

static uint8_t *slot_at(const struct pv_ring *ring, uint32_t index)
{
	return ring->slots + (index & (ring->entries - 1)) * SLOT_SIZE;
}

/*
 * Carry out slot `index` of a ring, if it is for this core, of which `slot` is a copy afterwards. What came of it is
 * written, its completion not published.
 */
static inline __attribute__((always_inline)) int
execute_one(const struct pv_rings *rings, struct pv_ring *ring, uint32_t index, struct pv_report *report,
	    uint64_t *slot, struct pv_outcome *outcome, int recorded)
{
	uint8_t *place = slot_at(ring, index);
	const volatile pair *pairs = (const volatile pair *)place;
	volatile uint32_t *words = (volatile uint32_t *)place;
	const struct pv_operation *operation;
	uint64_t before = 0;
	enum pv_kind kind;
	int32_t result;

	((pair *)slot)[0] = pairs[0];
	((pair *)slot)[1] = pairs[1];
	((pair *)slot)[2] = pairs[2];
	((pair *)slot)[3] = pairs[3];
	/* Separate branches: the processor predicts them and continues before the comparison is done. */
	if (matches(operation = &rings->operations[PV_MAP], slot)) {
		if (!carry_out(rings, operation, kind = PV_MAP, slot, outcome, report, recorded, &before))
			return 0;
	} else if (matches(operation = &rings->operations[PV_UNMAP], slot)) {
		if (!carry_out(rings, operation, kind = PV_UNMAP, slot, outcome, report, recorded, &before))
			return 0;
	} else {
		return 0;
	}
	result = operation->result[outcome->stop];
	if (recorded)
		remember(rings, operation, kind, slot, before, outcome, ring->number, index);
	if (operation->counted >> outcome->stop & 1)
		write_count((volatile uint64_t *)place, operation, slot, outcome->done);
	words[RESULT] = (uint32_t)result;
	__atomic_store_n(&words[COMPLETED], (uint32_t)(slot[0] >> SEQUENCE_SHIFT), __ATOMIC_RELEASE);
	report->slots++;
	if (outcome->stop != PV_WHOLE) {
		report->failed++;
		report->result = result;
		report->sequence = slot[0] >> SEQUENCE_SHIFT;
	}
	return 1;
}

static inline __attribute__((always_inline)) void
execute_slots(const struct pv_rings *rings, struct pv_ring *ring, uint32_t limit, uint64_t deadline_ns,
	      struct pv_report *report, int recorded)
{
	uint64_t slot[PV_SLOT_WORDS] __attribute__((aligned(16))), work = 0;
	struct pv_outcome outcome;
	uint32_t unpublished = 0;

	report->ring = ring->number;
	report->reason = PV_DONE;
	for (; limit; limit--) {
		if (limit > AHEAD)
			__builtin_prefetch(slot_at(ring, ring->completed + unpublished + AHEAD));
		if (!execute_one(rings, ring, ring->completed + unpublished, report, slot, &outcome, recorded)) {
			report->reason = PV_FOR_PYTHON;
			break;
		}
		unpublished++;
		if (slot[0] >> FLAGS_SHIFT & POSTED) {
			report->posted++;
			if (outcome.stop != PV_WHOLE) {
				report->reason = PV_POSTED_FAILED;
				report->unpublished = unpublished;
				return;
			}
		} else {
			/* The guest waits. */
			report->interrupt |= publish(ring, unpublished);
			unpublished = 0;
			if (report->interrupt)
				break;
		}
		work += CLOCK_PAGES / CLOCK_SLOTS + outcome.done;
		if (work >= CLOCK_PAGES) {
			work = 0;
			if (look_at_clock(recorded ? rings->history : NULL) > deadline_ns) {
				report->reason = PV_OVERDUE;
				break;
			}
		}
	}
	if (unpublished)
		report->interrupt |= publish(ring, unpublished);
}

/* Two functions: in a common one, the loop that keeps no history lacks the registers that the other needs. */
static __attribute__((noinline)) void
execute_recorded(const struct pv_rings *rings, struct pv_ring *ring, uint32_t limit, uint64_t deadline_ns,
		 struct pv_report *report)
{
	execute_slots(rings, ring, limit, deadline_ns, report, 1);
}

static __attribute__((noinline)) void
execute_unrecorded(const struct pv_rings *rings, struct pv_ring *ring, uint32_t limit, uint64_t deadline_ns,
		   struct pv_report *report)
{
	execute_slots(rings, ring, limit, deadline_ns, report, 0);
}

/* Execute up to `limit` slots, which the ring has; adds to *report. A slot begun is finished, whatever the time. */
static void execute(const struct pv_rings *rings, struct pv_ring *ring, uint32_t limit, uint64_t deadline_ns,
		    struct pv_report *report)
{
	if (rings->history)
		execute_recorded(rings, ring, limit, deadline_ns, report);
	else
		execute_unrecorded(rings, ring, limit, deadline_ns, report);
}

/*
 * Execute up to `limit` slots of ring `number`, which has that many, for about `budget_ns`. *report, all zeros before,
 * says what was done and why it ended.
 */
PV_EXPORT void pv_ring_execute(const struct pv_rings *rings, uint32_t number, uint32_t limit, uint64_t budget_ns,
			       struct pv_report *report)
{
	execute(rings, &rings->rings[number], limit < MOST_SLOTS ? limit : MOST_SLOTS,
		look_at_clock(rings->history) + budget_ns, report);
}

/* Whether the guest began to wait since the last call, as CommandRing.is_awaited_anew() of pv/ring.py. */
static uint32_t awaited_anew(struct pv_ring *ring)
{
	uint32_t before = ring->awaited;

	ring->awaited = ring->guest_line[2];
	return ring->awaited != before;
}

/* The number of waits; a guest that does not write `awaited` waits for all slots that are not posted. */
static uint64_t waits_of(const struct pv_report *report)
{
	return report->waits ? report->waits : report->slots - report->posted;
}

static int is_readable(int fd)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN };

	return poll(&polled, 1, 0) > 0;	/* never a negative time */
}

/*
 * Poll all rings and execute new slots, as far as they are for this core: for about `left_ns`, and for `window_ns`
 * after each time that the guest began to wait, for `budget_ns` in all. Ends early when there is something for Python
 * to do, or to read from `fd`.
 */
PV_EXPORT void pv_spin(const struct pv_rings *rings, uint64_t budget_ns, uint64_t left_ns, uint64_t window_ns, int fd,
		       struct pv_report *report)
{
	uint64_t now = look_at_clock(rings->history), deadline = now + budget_ns, until = now + left_ns;
	uint64_t look = now + LOOK_NS, waits = 0;

	do {
		if (now >= look) {
			if (is_readable(fd))
				return;
			look = now + LOOK_NS;
		}
		for (uint32_t turn = 0; turn < CLOCK_SLOTS; turn++) {
			for (uint32_t i = 0; i < rings->count; i++) {
				struct pv_ring *ring = &rings->rings[i];
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
				execute(rings, ring, pending < MOST_SLOTS ? pending : MOST_SLOTS, deadline, report);
				report->waits += awaited_anew(ring);
				if (report->reason != PV_DONE || report->interrupt)
					return;
			}
			__builtin_ia32_pause();
		}
		now = look_at_clock(rings->history);
		if (waits != waits_of(report)) {
			waits = waits_of(report);
			until = now + window_ns;
		}
	} while (now < until && now < deadline);
}
