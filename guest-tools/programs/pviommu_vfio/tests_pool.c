// SPDX-License-Identifier: MIT
/* A guest's page tables are limited: what happens at the limit. */
#include <errno.h>
#include <string.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"

#define RW	(SPACE_READ | SPACE_WRITE)
#define BASE	(16 * GIB)
#define TWO	(2 * PAGE)
/* one leaf table spans HUGE; two pages on both sides of a border cost two of the pool's pages */
#define STRIDE	(2 * HUGE)

static uint64_t place(unsigned int i)
{
	return BASE + i * STRIDE + HUGE - PAGE;
}

/* Maps two pages in each stride until one map is refused, which must be for lack of pool pages. */
static bool exhaust(struct fixture *f, unsigned int *count)
{
	unsigned int limit = f->capabilities.pool_pages / 2 + 1;
	int result = 0;

	for (*count = 0; *count < limit; (*count)++) {
		result = f->ops->map(&f->space, f->memory, place(*count), TWO, RW);
		if (result)
			break;
	}
	return gives("map past the pool", result, -ENOMEM) &&
	       (*count > 16 || complain("only %u mappings fitted", *count));
}

static bool others_are_intact(struct fixture *f, unsigned int count)
{
	const uint64_t pattern = 0x4444444444444444;
	const unsigned int places[] = { 0, count / 2, count - 1 };
	unsigned int i;

	for (i = 0; i < sizeof(places) / sizeof(*places); i++) {
		memset(f->memory, 0, TWO);
		if (!engine_fills(&f->engine, place(places[i]) + 8, pattern, TWO - 8) ||
		    !memory_is(f->memory, 8, 0) || !memory_is(f->memory + 8, TWO - 8, 0x44))
			return complain("that was mapping %u of %u", places[i], count);
	}
	return true;
}

/* Room for the last mapping is made, which is two leaf tables; four are wanted. */
static bool half_way(struct fixture *f, unsigned int count)
{
	unsigned int last = count - 1;
	uint64_t start = BASE + last * STRIDE, iova;
	int result;

	if (!unmaps(f, place(last), TWO))
		return false;
	result = f->ops->map(&f->space, f->memory, start, 4 * HUGE, RW);
	if (!gives("map of four tables", result, -ENOMEM) || !mapped_pages_are(f, 2 * last))
		return false;
	for (iova = start; iova < start + 4 * HUGE; iova += HUGE)
		if (!engine_write_faults(&f->engine, iova, 8, iova))
			return false;
	return others_are_intact(f, last) && maps(f, f->memory, start, 2 * HUGE, RW) &&
	       mapped_pages_are(f, 2 * last + 2 * HUGE / PAGE) &&
	       engine_fills(&f->engine, start + HUGE - 8, 0, 16);
}

/* One test, as filling the pool is what takes its time. */
static bool pool_is_out(struct fixture *f)
{
	struct usage before, after;
	unsigned int count;

	return read_usage(&before) && exhaust(f, &count) && mapped_pages_are(f, 2 * count) &&
	       engine_write_faults(&f->engine, place(count), 8, place(count)) &&
	       others_are_intact(f, count) && unmaps(f, place(count / 2), TWO) &&
	       maps(f, f->memory, place(count / 2), TWO, RW) && others_are_intact(f, count) &&
	       half_way(f, count) && gives("unmap", f->ops->unmap_all(&f->space), 0) &&
	       read_usage(&after) && same("pool pages used", after.pool_used, before.pool_used) &&
	       maps(f, f->memory, place(count), TWO, RW);
}

const struct test pool_tests[] = {
	{ "a map past the page pool is ENOMEM and leaves nothing, and unmapping makes room",
	  pool_is_out },
	{}
};
