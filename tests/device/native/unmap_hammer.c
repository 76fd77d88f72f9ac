// SPDX-License-Identifier: MIT
/*
 * The guest's side of a strict unmap, as fast as it goes: maps a page, lets some DMA happen, clears the entry, looks at
 * the in-flight line, polls if it has to, and then uses the page itself. Returns how many times DMA wrote to it after
 * that; `without_fence` is for a guest that forgets its own.
 */

#include <stdint.h>

#define WORDS 512u

static uint32_t step_of(const uint32_t *line)
{
	return __atomic_load_n(line, __ATOMIC_ACQUIRE);
}

/* Wait for some more steps, though not for ever: DMA that is refused makes them too. */
static void let_pass(const uint32_t *line, uint32_t steps)
{
	uint32_t first = step_of(line);

	for (uint32_t i = 0; i < 100000 && step_of(line) - first < steps; i++)
		__builtin_ia32_pause();
}

__attribute__((visibility("default"))) uint64_t hammer(uint64_t *entry, uint64_t value, const uint32_t *line,
							 volatile uint64_t *page, uint64_t rounds, int without_fence)
{
	uint64_t violations = 0, random = 88172645463325252ull;

	for (uint64_t round = 1; round <= rounds; round++) {
		uint32_t step;

		__atomic_store_n(entry, value, __ATOMIC_RELEASE);
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		let_pass(line, 1 + random % 4);
		for (uint32_t i = 0; i < (uint32_t)(random >> 32) % 256; i++)
			__asm__ volatile("" ::: "memory");
		__atomic_store_n(entry, 0, __ATOMIC_RELAXED);
		if (!without_fence)
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
		step = step_of(line);
		while (step & 1 && step_of(line) == step)
			__builtin_ia32_pause();
		for (uint32_t i = 0; i < WORDS; i++)
			page[i] = round;
		let_pass(line, 2);
		for (uint32_t i = 0; i < WORDS; i++) {
			if (page[i] != round) {
				violations++;
				break;
			}
		}
	}
	return violations;
}
