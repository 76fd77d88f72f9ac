// SPDX-License-Identifier: MIT
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ktap.h"
#include "memory.h"
#include "space.h"
#include "starve.h"

#define IOVA	0x10000000
#define MOST	10000

/* The result with enough memory. */
struct ranges {
	struct range ranges[MAX_RANGES];
	int count;
};

/* The allocation of this thread that fails next, by its number; 0: none. */
static bool fail_nth(int file, unsigned int nth)
{
	char text[16];
	int length = snprintf(text, sizeof(text), "%u", nth);

	return pwrite(file, text, length, 0) == length ||
	       complain("fail-nth cannot be set: %s", strerror(errno));
}

/* How many allocations are still to come before it; 0: it was made to fail. */
static long left(int file)
{
	char text[16] = "";

	return pread(file, text, sizeof(text) - 1, 0) > 0 ? atol(text) : -1;
}

static int take_and_map(struct space *space, int group, const void *page)
{
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &space->fd) ||
	    ioctl(space->fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		return -errno;
	return space->ops->map(space, page, IOVA, PAGE, SPACE_READ | SPACE_WRITE);
}

static bool same_ranges(struct space *space, const struct ranges *want)
{
	struct ranges got;

	memset(&got, 0, sizeof(got));
	got.count = space->ops->ranges(space, got.ranges);
	return same("ranges", got.count, want->count) &&
	       (!memcmp(got.ranges, want->ranges, sizeof(got.ranges)) ||
		complain("the ranges are others"));
}

/* 1: the allocation failed, 0: there were not so many, -1: wrong. */
static int starve_once(int file, int group, const void *page, unsigned int nth,
		       struct ranges *ranges)
{
	struct space space;
	bool right, failed;
	int result;

	if (!gives("open", space_open(&space, &type1_ops), 0) || !fail_nth(file, nth))
		return -1;
	result = take_and_map(&space, group, page);
	failed = nth && !left(file);
	right = fail_nth(file, 0);
	if (!nth)
		ranges->count = space.ops->ranges(&space, ranges->ranges);
	if (!result)
		right = same_ranges(&space, ranges) && right;
	else if (!failed || result != -ENOMEM)
		right = gives("attach and map", result, failed ? -ENOMEM : 0);
	space_close(&space);
	ioctl(group, VFIO_GROUP_UNSET_CONTAINER);
	if (!right)
		complain("that was with allocation %u", nth);
	return right ? failed : -1;
}

int starve(const char *address)
{
	void *page = aligned_alloc(PAGE, PAGE);
	int file = open("/proc/thread-self/fail-nth", O_RDWR);
	int group = type1_open_group(address);
	struct ranges ranges;
	int result = -1;
	unsigned int nth;

	memset(&ranges, 0, sizeof(ranges));
	if (file < 0 || group < 0 || !page) {
		complain("no fail-nth, group or memory: %d %d %p", file, group, page);
		goto out;
	}
	memset(page, 1, PAGE);
	result = starve_once(file, group, page, 0, &ranges);
	for (nth = 1; !result && nth < MOST; nth++) {
		result = starve_once(file, group, page, nth, &ranges);
		if (result <= 0)
			break;
		result = 0;
	}
	if (!result)
		result = nth - 1;
out:
	if (file >= 0)
		close(file);
	if (group >= 0)
		close(group);
	free(page);
	return result;
}
