// SPDX-License-Identifier: MIT
/*
 * The measuring side of `pviommu bench ring` for a native server: a guest that submits slots, and the two ends of a
 * bare exchange of words, as fast as this machine can. Each function has its own loop, so that the cost of Python is
 * spread over all of its rounds.
 */

#include <stdint.h>
#include <string.h>

#define SHOWN		__attribute__((visibility("default")))
#define SLOT_SIZE	64
#define ENOUGH_LOOKS	(1u << 26)

/* Places in the shared BAR, which the caller takes from the interface's declaration. */
struct pvb_ring {
	uint8_t *slots;
	volatile uint32_t *producer;
	volatile uint32_t *completed;
	volatile uint32_t *doorbell_event;
	uint32_t entries;	/* a power of two */
	uint32_t submitted;	/* the producer index */
	uint32_t notified;	/* the producer index when the doorbell was asked for last */
	const uint8_t *templates;	/* two slots, used in turn */
};

static uint32_t load(volatile uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void submit(struct pvb_ring *ring)
{
	uint32_t at = ring->submitted;

	memcpy(ring->slots + (at & (ring->entries - 1)) * SLOT_SIZE, ring->templates + (at & 1) * SLOT_SIZE, SLOT_SIZE);
	ring->submitted = at + 1;
	__atomic_store_n(ring->producer, at + 1, __ATOMIC_RELEASE);
}

/*
 * Waits until at most `left` slots are not completed. Returns 0, or 1 if the device asks for a doorbell first: it does
 * when the event index is among the slots that it has not completed, once per index.
 */
static int wait_for(struct pvb_ring *ring, uint32_t left)
{
	for (;;) {
		uint32_t looks, missing, new;

		for (looks = 0; looks < 256; looks++)
			if (ring->submitted - load(ring->completed) <= left)
				return 0;
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		missing = ring->submitted - load(ring->completed);
		new = ring->submitted - ring->notified;
		if (ring->submitted - load(ring->doorbell_event) - 1 < (new < missing ? new : missing)) {
			ring->notified = ring->submitted;
			return 1;
		}
	}
}

/* Submits slots up to index `target`, each when the previous one is complete. Returns as wait_for() does. */
SHOWN int pvb_waited(struct pvb_ring *ring, uint32_t target)
{
	if (wait_for(ring, 0))
		return 1;
	while (ring->submitted != target) {
		submit(ring);
		if (wait_for(ring, 0))
			return 1;
	}
	return 0;
}

/* Submits slots up to index `target`, waiting only when the ring is full. Returns as wait_for() does. */
SHOWN int pvb_posted(struct pvb_ring *ring, uint32_t target)
{
	while (ring->submitted != target) {
		if (wait_for(ring, ring->entries - 1))
			return 1;
		submit(ring);
	}
	return 0;
}

/* One end of a bare exchange: writes word 0 and reads word 16 (the next cache line). Returns the rounds completed. */
SHOWN uint32_t pvb_ping(volatile uint32_t *words, uint32_t first, uint32_t count)
{
	uint32_t turn, looks;

	for (turn = 0; turn < count; turn++) {
		__atomic_store_n(words, first + turn, __ATOMIC_RELEASE);
		for (looks = 0; load(words + 16) != first + turn; looks++)
			if (looks == ENOUGH_LOOKS)
				return turn;
	}
	return count;
}

/* The other end, until word 32 is set. It may begin after the first number was sent; numbers are never 0. */
SHOWN void pvb_pong(volatile uint32_t *words)
{
	uint32_t last = 0;

	while (!load(words + 32)) {
		uint32_t seen = load(words);

		if (seen != last) {
			__atomic_store_n(words + 16, seen, __ATOMIC_RELEASE);
			last = seen;
		}
	}
}
