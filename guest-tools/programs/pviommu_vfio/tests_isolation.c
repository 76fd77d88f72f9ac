// SPDX-License-Identifier: MIT
/* Two engines, each with an address space of its own, and both in one. */
#include <string.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"

#define RW	(SPACE_READ | SPACE_WRITE)

static bool other_maps(struct fixture *f, const void *memory, uint64_t iova)
{
	return gives("map for the other engine",
		     f->ops->map(&f->other_space, memory, iova, PAGE, RW), 0);
}

static bool same_address(struct fixture *f)
{
	unsigned char *first = f->memory, *second = f->memory + PAGE;
	uint64_t unmapped;

	memset(first, 0, 2 * PAGE);
	if (!maps(f, first, GIB, PAGE, RW) || !other_maps(f, second, GIB) ||
	    !engine_fills(&f->engine, GIB, 0x1111111111111111, PAGE) ||
	    !engine_fills(&f->other_engine, GIB, 0x2222222222222222, PAGE) ||
	    !memory_is(first, PAGE, 0x11) || !memory_is(second, PAGE, 0x22))
		return false;
	return gives("unmap", f->ops->unmap(&f->space, GIB, PAGE, &unmapped), 0) &&
	       engine_write_faults(&f->engine, GIB, 8, GIB) &&
	       engine_fills(&f->other_engine, GIB, 0x3333333333333333, PAGE) &&
	       memory_is(first, PAGE, 0x11) && memory_is(second, PAGE, 0x33);
}

static bool is_logged(const struct fixture *f, const struct engine *engine, uint64_t iova)
{
	return f->other || event_is_logged("not-mapped", "write", engine->address, iova);
}

static bool out_of_reach(struct fixture *f)
{
	uint64_t mine = 2 * GIB, others = 3 * GIB;

	memset(f->memory, 0x66, 2 * PAGE);
	return maps(f, f->memory, mine, PAGE, RW) && other_maps(f, f->memory + PAGE, others) &&
	       engine_write_faults(&f->engine, others, 8, others) &&
	       is_logged(f, &f->engine, others) &&
	       engine_write_faults(&f->other_engine, mine, 8, mine) &&
	       is_logged(f, &f->other_engine, mine) &&
	       engine_read_faults(&f->other_engine, mine, 8, mine) &&
	       memory_is(f->memory, 2 * PAGE, 0x66);
}

const struct test isolation_tests[] = {
	{ "one address leads two engines to different memory", same_address },
	{ "neither engine reaches what only the other has mapped", out_of_reach },
	{}
};
