// SPDX-License-Identifier: MIT
/*
 * The guest's side of strict unmaps, and of reading and clearing dirty bits, as fast as it goes. `hammer` maps a page,
 * lets some DMA happen, clears the entry, looks at the in-flight line, polls if it has to, and then uses the page itself.
 * It returns how many times DMA wrote to it after that; `without_fence` is for a guest that forgets its own.
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

/* After this no DMA uses an entry as it was before. */
static void look(const uint32_t *line)
{
	uint32_t step = step_of(line);

	while (step & 1 && step_of(line) == step)
		__builtin_ia32_pause();
}

static uint64_t next_random(uint64_t random)
{
	random ^= random << 13;
	random ^= random >> 7;
	return random ^ random << 17;
}

__attribute__((visibility("default"))) uint64_t hammer(uint64_t *entry, uint64_t value, const uint32_t *line,
							 volatile uint64_t *page, uint64_t rounds, int without_fence)
{
	uint64_t violations = 0, random = 88172645463325252ull;

	for (uint64_t round = 1; round <= rounds; round++) {
		__atomic_store_n(entry, value, __ATOMIC_RELEASE);
		random = next_random(random);
		let_pass(line, 1 + random % 4);
		for (uint32_t i = 0; i < (uint32_t)(random >> 32) % 256; i++)
			__asm__ volatile("" ::: "memory");
		__atomic_store_n(entry, 0, __ATOMIC_RELAXED);
		if (!without_fence)
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
		look(line);
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

/*
 * The page stays mapped; its dirty bit is cleared, and after the look the page is copied, as a migration does: here it is
 * written instead, so that what DMA writes afterwards can be told. Returns how many times DMA had written and the bit did
 * not say so. `without_look` is for a guest that forgets that.
 */
__attribute__((visibility("default"))) uint64_t harvest(uint64_t *entry, uint64_t dirty, const uint32_t *line,
							  volatile uint64_t *page, uint64_t rounds, int without_look)
{
	uint64_t lost = 0, random = 88172645463325252ull;

	for (uint64_t round = 1; round <= rounds; round++) {
		int is_written = 0;

		random = next_random(random);
		let_pass(line, (uint32_t)random % 4);
		__atomic_fetch_and(entry, ~dirty, __ATOMIC_SEQ_CST);
		if (!without_look)
			look(line);
		for (uint32_t i = 0; i < WORDS; i++)
			page[i] = round;
		for (uint32_t i = 0; i < (uint32_t)(random >> 32) % 512; i++)
			__asm__ volatile("" ::: "memory");
		for (uint32_t i = 0; i < WORDS; i++)
			is_written |= page[i] != round;
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		lost += is_written && !(__atomic_load_n(entry, __ATOMIC_ACQUIRE) & dirty);
	}
	return lost;
}
