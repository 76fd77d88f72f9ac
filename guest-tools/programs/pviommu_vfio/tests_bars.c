// SPDX-License-Identifier: MIT
/* Maps of BARs: of another engine if there is one, of the only one otherwise. */
#include <errno.h>
#include <string.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"

#define RW	(SPACE_READ | SPACE_WRITE)
/* scatter/gather entries, which nobody uses meanwhile: the rest of the BAR */
#define SCRATCH		PVDT_SG_OFFSET
#define SCRATCH_SIZE	(PVDT_SHARED_BAR_SIZE - SCRATCH)

static struct engine *peer(struct fixture *f)
{
	return f->addresses[1] ? &f->other_engine : &f->engine;
}

static unsigned char *scratch(struct fixture *f)
{
	return (unsigned char *)peer(f)->shared + SCRATCH;
}

/* Whether @size bytes at @iova are those of the scratch memory, for reads and for writes. */
static bool leads_to_scratch(struct fixture *f, uint64_t iova, size_t size)
{
	uint64_t ram = 2 * GIB;

	if (!maps(f, f->memory, ram, PVDT_SHARED_BAR_SIZE, RW))
		return false;
	memory_write(f->memory, size, 7);
	memset(scratch(f), 0, size);
	if (!engine_copies(&f->engine, iova, ram, size) || !memory_has(scratch(f), size, 7))
		return false;
	memset(f->memory, 0, size);
	return engine_copies(&f->engine, ram, iova, size) && memory_has(f->memory, size, 7);
}

static bool whole(struct fixture *f)
{
	return maps(f, peer(f)->shared, GIB, PVDT_SHARED_BAR_SIZE, RW) &&
	       mapped_pages_are(f, PVDT_SHARED_BAR_SIZE / PAGE) &&
	       leads_to_scratch(f, GIB + SCRATCH, SCRATCH_SIZE);
}

static bool part(struct fixture *f)
{
	return maps(f, scratch(f), GIB, 2 * PAGE, RW) && leads_to_scratch(f, GIB, 2 * PAGE) &&
	       engine_write_faults(&f->engine, GIB + 2 * PAGE, 8, GIB + 2 * PAGE);
}

static bool shifted(struct fixture *f)
{
	uint64_t iova = GIB + 3 * PAGE;

	return maps(f, scratch(f) - PAGE, iova, 4 * PAGE, RW) &&
	       leads_to_scratch(f, iova + PAGE, 2 * PAGE);
}

static bool registers(struct fixture *f)
{
	uint32_t found[2] = { 0 };

	memset(f->memory, 0xff, sizeof(found));
	if (!maps(f, f->memory, 2 * GIB, PAGE, RW) ||
	    !maps(f, peer(f)->registers, GIB, PAGE, SPACE_READ) ||
	    !engine_copies(&f->engine, 2 * GIB, GIB + PVDT_REG_MAGIC, sizeof(found)))
		return false;
	memcpy(found, f->memory, sizeof(found));
	return same("register MAGIC", found[0], PVDT_MAGIC) &&
	       same("register VERSION", found[1], PVDT_VERSION) &&
	       engine_write_faults(&f->engine, GIB, 4, GIB);
}

static bool refused(struct fixture *f)
{
	int got = f->ops->map(&f->space, peer(f)->shared, GIB, PAGE, RW);

	return gives("map of a BAR", got, -EFAULT) && mapped_pages_are(f, 0);
}

const struct test bar_tests[] = {
	{ "a whole BAR is mapped, and DMA reaches it", whole },
	{}
};

const struct test bar_part_tests[] = {
	{ "part of a BAR is mapped, and DMA reaches no more of it", part },
	{ "part of a BAR is mapped at a device address that is aligned otherwise", shifted },
	{}
};

const struct test register_tests[] = {
	{ "registers of a BAR are mapped and read by DMA", registers },
	{}
};

const struct test no_bar_tests[] = {
	{ "a BAR is no memory for iommufd: EFAULT", refused },
	{}
};
