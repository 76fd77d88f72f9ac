// SPDX-License-Identifier: MIT
/* DMA to memory of this process, checked byte for byte. */
#include <string.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"

#define RW	(SPACE_READ | SPACE_WRITE)

/* Copies between two halves of @memory, mapped at @iova, and checks both. */
static bool copy_works(struct fixture *f, unsigned char *memory, uint64_t iova, size_t half)
{
	unsigned char *dst = memory + half;
	const size_t skip = 3, length = half - 2 * skip;

	memory_write(memory, half, 1);
	memset(dst, 0x55, half);
	return engine_copies(&f->engine, iova + half + skip, iova + skip, length) &&
	       memory_has(memory, half, 1) && memory_is(dst, skip, 0x55) &&
	       memory_equals(dst + skip, memory + skip, length) &&
	       memory_is(dst + skip + length, skip, 0x55);
}

static bool single_pages(struct fixture *f)
{
	return maps(f, f->memory, GIB, PAGE, SPACE_READ) &&
	       maps(f, f->memory + PAGE, GIB + PAGE, PAGE, SPACE_WRITE) &&
	       mapped_pages_are(f, 2) && copy_works(f, f->memory, GIB, PAGE);
}

static bool many_pages(struct fixture *f)
{
	return maps(f, f->memory, GIB + 5 * PAGE, 512 * PAGE, RW) && mapped_pages_are(f, 512) &&
	       copy_works(f, f->memory, GIB + 5 * PAGE, 256 * PAGE);
}

static bool fill(struct fixture *f)
{
	const uint64_t pattern = 0x8877665544332211;
	const size_t skip = PAGE - 5, length = 2 * PAGE + 9;
	unsigned char want[8];

	memcpy(want, &pattern, sizeof(want));
	memset(f->memory, 0, 4 * PAGE);
	if (!maps(f, f->memory, GIB, 4 * PAGE, RW) ||
	    !engine_fills(&f->engine, GIB + skip, pattern, length))
		return false;
	for (size_t i = 0; i < length; i++)
		if (f->memory[skip + i] != want[i % 8])
			return complain("byte %#zx is %#x, expected %#x", i, f->memory[skip + i],
					want[i % 8]);
	return memory_is(f->memory, skip, 0) &&
	       memory_is(f->memory + skip + length, 4 * PAGE - skip - length, 0);
}

static bool works_at(struct fixture *f, uint64_t iova)
{
	return maps(f, f->memory, iova, 64 * PAGE, RW) &&
	       copy_works(f, f->memory, iova, 32 * PAGE);
}

static bool above_4_gib(struct fixture *f)
{
	return works_at(f, 4 * GIB - 32 * PAGE) && works_at(f, 4 * GIB + 32 * PAGE);
}

static bool at_0(struct fixture *f)
{
	return works_at(f, 0);
}

static bool at_every_end(struct fixture *f)
{
	const struct capabilities *device = &f->capabilities;
	unsigned int i;

	for (i = 0; i < device->nr_ranges; i++)
		if (!works_at(f, PAGE_UP(device->ranges[i].start)) ||
		    !works_at(f, PAGE_DOWN(device->ranges[i].last + 1) - 64 * PAGE))
			return complain("that was range %u", i);
	return true;
}

const struct test dma_tests[] = {
	{ "copies between two mappings of a page", single_pages },
	{ "copies through a mapping of 512 scattered pages", many_pages },
	{ "fills across pages, and not a byte more", fill },
	{ "DMA works across and above IOVA 4 GiB", above_4_gib },
	{ "DMA works at IOVA 0", at_0 },
	{ "DMA works at both ends of every IOVA range", at_every_end },
	{}
};

static bool huge_pages(struct fixture *f)
{
	unsigned char *memory = memory_get_huge(2 * HUGE);
	bool passed = memory && maps(f, memory, 8 * GIB, 2 * HUGE, RW) &&
		      mapped_pages_are(f, 2 * HUGE / PAGE) &&
		      copy_works(f, memory, 8 * GIB, HUGE) && unmaps(f, 8 * GIB, 2 * HUGE) &&
		      mapped_pages_are(f, 0);

	memory_put(memory, 2 * HUGE);
	return passed;
}

/* Addresses differ within their pages of 2 MiB: the driver must not take it for one large page. */
static bool huge_page_at_odd_address(struct fixture *f)
{
	unsigned char *memory = memory_get_huge(HUGE);
	bool passed = memory && maps(f, memory, 8 * GIB + PAGE, HUGE, RW) &&
		      mapped_pages_are(f, HUGE / PAGE) &&
		      copy_works(f, memory, 8 * GIB + PAGE, HUGE / 2) &&
		      unmaps(f, 8 * GIB + PAGE, HUGE);

	memory_put(memory, HUGE);
	return passed;
}

const struct test huge_tests[] = {
	{ "copies between two huge pages, above IOVA 4 GiB", huge_pages },
	{ "copies within a huge page at an IOVA that is no multiple of 2 MiB",
	  huge_page_at_odd_address },
	{}
};
