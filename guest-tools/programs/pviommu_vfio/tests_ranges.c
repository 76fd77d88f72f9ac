// SPDX-License-Identifier: MIT
/* What the kernel says about the address space is what the device says. */
#include "ktap.h"
#include "memory.h"
#include "tests.h"

static bool own_context(struct fixture *f)
{
	unsigned int engines = f->addresses[1] ? 2 : 1;

	return same("contexts", f->attached.contexts, f->before.contexts + engines) &&
	       same("mapped_pages", f->attached.mapped_pages, f->before.mapped_pages);
}

static bool ranges_are_the_devices(struct fixture *f)
{
	const struct capabilities *want = &f->capabilities;
	struct range got[MAX_RANGES];
	int count = f->ops->ranges(&f->space, got);
	unsigned int i;

	if (!gives("ranges", count, want->nr_ranges))
		return false;
	for (i = 0; i < want->nr_ranges; i++)
		if (!same("start", got[i].start, want->ranges[i].start) ||
		    !same("last", got[i].last, want->ranges[i].last))
			return complain("that was range %u", i);
	return true;
}

static bool msi_window_splits(struct fixture *f)
{
	const struct range *msi = &f->capabilities.msi;
	struct range got[MAX_RANGES];

	return gives("ranges", f->ops->ranges(&f->space, got), 2) &&
	       same("first start", got[0].start, 0) &&
	       same("first last", got[0].last, msi->start - 1) &&
	       same("second start", got[1].start, msi->last + 1);
}

static bool page_sizes_are_the_devices(struct fixture *f)
{
	uint64_t want = f->capabilities.page_sizes, got = 0;

	if (!f->ops->tells_all_page_sizes)
		want &= -want;
	else if (want & (PAGE - 1)) /* sizes below the kernel's own page count as that */
		want = (want & -(uint64_t)PAGE) | PAGE;
	return gives("page sizes", f->ops->page_sizes(&f->space, &got), 0) &&
	       same("page sizes", got, want);
}

static bool queries_keep_their_rules(struct fixture *f)
{
	return f->ops->queries_keep_their_rules(&f->space);
}

const struct test ranges_tests[] = {
	{ "each engine has a context of its own, empty at first", own_context },
	{ "the IOVA ranges are those of the device", ranges_are_the_devices },
	{ "the IOVA ranges are two, split by the MSI window", msi_window_splits },
	{ "the page sizes are those of the device", page_sizes_are_the_devices },
	{ "queries keep their rules for buffers that are too small", queries_keep_their_rules },
	{}
};
