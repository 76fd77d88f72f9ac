// SPDX-License-Identifier: MIT
/* What may be mapped and unmapped, and what may be reached through a mapping. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"

#define RW	(SPACE_READ | SPACE_WRITE)

static bool map_gives(struct fixture *f, uint64_t iova, uint64_t size, unsigned int access,
		      int want)
{
	int got = f->ops->map(&f->space, f->memory, iova, size, access);

	if (got == want)
		return true;
	complain("map at %#" PRIx64 " of %#" PRIx64 " bytes:", iova, size);
	return gives("map", got, want);
}

static bool unmap_gives(struct fixture *f, uint64_t iova, uint64_t size, int want)
{
	uint64_t unmapped;
	int got = f->ops->unmap(&f->space, iova, size, &unmapped);

	return gives("unmap", got, want) && same("bytes unmapped", unmapped, 0);
}

static bool read_only(struct fixture *f)
{
	memory_write(f->memory, PAGE, 1);
	return maps(f, f->memory, GIB, PAGE, SPACE_READ) &&
	       maps(f, f->memory + PAGE, GIB + PAGE, PAGE, RW) &&
	       engine_copies(&f->engine, GIB + PAGE, GIB, PAGE) &&
	       engine_write_faults(&f->engine, GIB + 8, 16, GIB + 8) &&
	       event_is_logged("permission", "write", f->engine.address, GIB + 8) &&
	       memory_has(f->memory, PAGE, 1) && memory_has(f->memory + PAGE, PAGE, 1);
}

static bool write_only(struct fixture *f)
{
	return maps(f, f->memory, GIB, PAGE, SPACE_WRITE) &&
	       engine_fills(&f->engine, GIB, 0x1111111111111111, PAGE) &&
	       memory_is(f->memory, PAGE, 0x11) &&
	       engine_read_faults(&f->engine, GIB + 24, 16, GIB + 24);
}

static bool over_a_live_one(struct fixture *f)
{
	memset(f->memory, 0, 4 * PAGE);
	return maps(f, f->memory + PAGE, GIB + PAGE, PAGE, RW) &&
	       map_gives(f, GIB + PAGE, PAGE, RW, -EEXIST) &&
	       map_gives(f, GIB, 4 * PAGE, RW, -EEXIST) && mapped_pages_are(f, 1) &&
	       engine_fills(&f->engine, GIB + PAGE, 0x2222222222222222, PAGE) &&
	       memory_is(f->memory, PAGE, 0) && memory_is(f->memory + PAGE, PAGE, 0x22) &&
	       engine_write_faults(&f->engine, GIB, 8, GIB);
}

static bool impossible(struct fixture *f)
{
	const struct capabilities *device = &f->capabilities;
	uint64_t end = device->ranges[device->nr_ranges - 1].last + 1;
	/* pages of this kernel that hold the ends of the window */
	uint64_t msi = PAGE_DOWN(device->msi.start), msi_last = PAGE_DOWN(device->msi.last);

	return map_gives(f, msi, PAGE, RW, -EINVAL) &&
	       map_gives(f, msi_last, PAGE, RW, -EINVAL) &&
	       map_gives(f, msi - PAGE, 2 * PAGE, RW, -EINVAL) &&
	       map_gives(f, msi_last, 2 * PAGE, RW, -EINVAL) &&
	       map_gives(f, end, PAGE, RW, -EINVAL) &&
	       map_gives(f, end - PAGE, 2 * PAGE, RW, -EINVAL) &&
	       map_gives(f, GIB, 0, RW, -EINVAL) && map_gives(f, GIB, PAGE, 0, -EINVAL) &&
	       map_gives(f, GIB + 512, PAGE, RW, -EINVAL) &&
	       map_gives(f, GIB, PAGE + 512, RW, -EINVAL) && mapped_pages_are(f, 0) &&
	       engine_write_faults(&f->engine, device->msi.start, 4,
				   device->msi.start);
}

static bool cutting(struct fixture *f)
{
	int error = f->ops->bisect_error;

	memory_write(f->memory, 2 * PAGE, 3);
	return maps(f, f->memory, GIB, 4 * PAGE, RW) &&
	       unmap_gives(f, GIB + PAGE, PAGE, error) &&
	       unmap_gives(f, GIB, 2 * PAGE, error) &&
	       unmap_gives(f, GIB + 2 * PAGE, 4 * PAGE, error) &&
	       unmap_gives(f, GIB, 0, -EINVAL) && mapped_pages_are(f, 4) &&
	       engine_copies(&f->engine, GIB + 2 * PAGE, GIB, 2 * PAGE) &&
	       memory_has(f->memory + 2 * PAGE, 2 * PAGE, 3);
}

static bool many_at_once(struct fixture *f)
{
	uint64_t unmapped = 0;
	unsigned int i;

	for (i = 0; i < 4; i++)
		if (!maps(f, f->memory, GIB + 4 * i * PAGE, 2 * PAGE, RW))
			return false;
	return gives("unmap", f->ops->unmap(&f->space, GIB - PAGE, 16 * PAGE, &unmapped), 0) &&
	       same("bytes unmapped", unmapped, 8 * PAGE) && mapped_pages_are(f, 0) &&
	       unmap_gives(f, GIB, PAGE, f->ops->hole_error);
}

static bool stale_access(struct fixture *f)
{
	uint64_t iova = 16 * GIB, stale = iova + PAGE + 0x120;

	memset(f->memory, 0x77, 2 * PAGE);
	return maps(f, f->memory, iova, 2 * PAGE, RW) &&
	       engine_fills(&f->engine, stale, 0x3333333333333333, 64) &&
	       unmaps(f, iova, 2 * PAGE) &&
	       engine_write_faults(&f->engine, stale + 64, 64, stale + 64) &&
	       event_is_logged("not-mapped", "write", f->engine.address, stale + 64) &&
	       engine_read_faults(&f->engine, iova, PAGE, iova) &&
	       event_is_logged("not-mapped", "read", f->engine.address, iova) &&
	       memory_is(f->memory + PAGE + 0x120 + 64, 64, 0x77);
}

static bool hole_in_the_middle(struct fixture *f)
{
	memset(f->memory, 0x77, 3 * PAGE);
	return maps(f, f->memory, GIB, PAGE, RW) &&
	       maps(f, f->memory + 2 * PAGE, GIB + 2 * PAGE, PAGE, RW) &&
	       engine_write_faults(&f->engine, GIB + 16, 3 * PAGE - 16, GIB + PAGE) &&
	       memory_is(f->memory, 3 * PAGE, 0x77);
}

static int write_type(const char *address)
{
	char path[PATH_MAX];
	int fd, error = 0;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group/type", address);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "identity", 8) < 0)
		error = -errno;
	if (fd >= 0)
		close(fd);
	return error;
}

static bool taken(struct fixture *f)
{
	struct attachment second;
	struct space space;
	int got;

	if (!gives("open", space_open(&space, f->ops), 0))
		return false;
	got = f->ops->attach(&space, f->engine.address, &second);
	if (!got)
		attachment_close(&second);
	space_close(&space);
	return gives("second user", got, f->ops->second_open_error) &&
	       gives("change of the group's type", write_type(f->engine.address), -EPERM);
}

const struct test map_tests[] = {
	{ "a read-only mapping refuses writes", read_only },
	{ "a write-only mapping refuses reads", write_only },
	{ "a map over a live one is EEXIST and changes nothing", over_a_live_one },
	{ "a map into the MSI window, past the aperture, or of no size or access is EINVAL",
	  impossible },
	{ "an unmap that would cut a mapping is refused and changes nothing", cutting },
	{ "an unmap covers many mappings at once", many_at_once },
	{ "a stale access faults: status, interrupt, event log", stale_access },
	{ "one unmapped page in the middle refuses the whole request", hole_in_the_middle },
	{ "a taken engine is refused to others, and its group keeps its type", taken },
	{}
};
