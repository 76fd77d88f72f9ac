// SPDX-License-Identifier: MIT
/* Maps that cannot fail are not waited for, and what they take of memory goes back. */
#include <string.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"

#define RW		(SPACE_READ | SPACE_WRITE)
#define MAPS		256
/* the pool is asked for pages a few times, and reading the usage asks too */
#define FEW		8
#define TABLES		64
#define TWO		(2 * PAGE)
#define STRIDE		(2 * HUGE)

static bool few_waits(const struct usage *before, const struct usage *after)
{
	uint64_t waits = after->waited - before->waited, posts = after->posted - before->posted;

	if (waits > FEW)
		return complain("%lu waits for %u maps", (unsigned long)waits, MAPS);
	if (after->guest_tables)
		return same("maps posted", posts, 0);
	return posts >= MAPS || complain("%lu of %u were posted", (unsigned long)posts, MAPS);
}

static bool maps_are_posted(struct fixture *f)
{
	struct usage before, after;
	unsigned int i;

	memset(f->memory, 0, MAPS * PAGE);
	if (!read_usage(&before))
		return false;
	for (i = 0; i < MAPS; i++)
		if (!maps(f, f->memory + i * PAGE, GIB + 2 * i * PAGE, PAGE, RW))
			return false;
	return engine_fills(&f->engine, GIB + 2 * (MAPS - 1) * PAGE, 0x1111111111111111, PAGE) &&
	       memory_is(f->memory + (MAPS - 1) * PAGE, PAGE, 0x11) && read_usage(&after) &&
	       few_waits(&before, &after) && mapped_pages_are(f, MAPS);
}

/* Two pages on both sides of a border between two tables. */
static uint64_t place(unsigned int i)
{
	return 8 * GIB + i * STRIDE + HUGE - PAGE;
}

/* So far apart that each page needs its own table; @count is even. */
static bool map_tables(struct fixture *f, struct space *space, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count / 2; i++)
		if (!gives("map", f->ops->map(space, f->memory, place(i), TWO, RW), 0))
			return complain("that was for tables %u and %u", 2 * i, 2 * i + 1);
	return true;
}

static bool pool_is_given_back(struct fixture *f)
{
	struct usage with, without;

	return map_tables(f, &f->space, TABLES) && read_usage(&with) &&
	       (with.pool_used >= f->attached.pool_used + TABLES ||
		complain("tables are not charged")) &&
	       gives("unmap", f->ops->unmap_all(&f->space), 0) && read_usage(&without) &&
	       same("pool pages used", without.pool_used, f->attached.pool_used) &&
	       maps(f, f->memory, 8 * GIB, PAGE, RW) &&
	       engine_fills(&f->engine, 8 * GIB, 0, PAGE);
}

/*
 * One space had most of the pool and unmapped all but two pages. Whatever was kept for it, the
 * other one can have as much.
 */
static bool pool_goes_where_it_is_needed(struct fixture *f)
{
	unsigned int count = f->capabilities.pool_pages / 8 * 5 & ~1u, last = count / 2 - 1;
	uint64_t unmapped;

	return map_tables(f, &f->space, count) &&
	       gives("unmap", f->ops->unmap(&f->space, place(1), place(last) + TWO - place(1),
					    &unmapped), 0) &&
	       map_tables(f, &f->other_space, count) &&
	       engine_fills(&f->engine, place(0), 0x4444444444444444, TWO) &&
	       engine_fills(&f->other_engine, place(last), 0, TWO) &&
	       mapped_pages_are(f, 2 + count);
}

/* Tables are memory of the guest: the device's pool has nothing of them. */
static bool tables_are_the_guests(struct fixture *f)
{
	struct usage with;

	return map_tables(f, &f->space, TABLES) && read_usage(&with) &&
	       same("pool pages used", with.pool_used, f->attached.pool_used) &&
	       (with.table_pages >= f->attached.table_pages + TABLES ||
		complain("tables are not counted")) &&
	       gives("unmap", f->ops->unmap_all(&f->space), 0) &&
	       maps(f, f->memory, 8 * GIB, PAGE, RW) &&
	       engine_fills(&f->engine, 8 * GIB, 0, PAGE);
}

const struct test guest_tests[] = {
	{ "a map is told to nobody, and DMA sees it", maps_are_posted },
	{ "tables are memory of the guest, and of no pool", tables_are_the_guests },
	{}
};

const struct test posting_tests[] = {
	{ "a map that cannot fail is not waited for, and DMA sees it", maps_are_posted },
	{ "unmapping everything gives all pages of the pool back", pool_is_given_back },
	{}
};

const struct test sharing_tests[] = {
	{ "pool pages that one address space does not need any more are there for another",
	  pool_goes_where_it_is_needed },
	{}
};
