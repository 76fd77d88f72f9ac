// SPDX-License-Identifier: MIT
/* How long maps of single pages take. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"
#include "timing.h"

#define BASE	(4 * GIB)

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/*
 * Maps the same memory again and again, at ascending addresses: no page beside its neighbour, so
 * that the kernel makes a map of each.
 */
static int map_all(struct space *space, const unsigned char *memory, uint64_t mib)
{
	int result = 0;
	uint64_t done;

	for (done = 0; done < mib << 20 && !result; done += MEMORY_SIZE)
		result = space->ops->map(space, memory, BASE + done, MEMORY_SIZE,
					 SPACE_READ | SPACE_WRITE);
	return result;
}

static int time_space(struct space *space, const unsigned char *memory, uint64_t mib)
{
	double start = seconds(), middle;
	int result;

	result = map_all(space, memory, mib);
	middle = seconds();
	if (!result)
		result = space->ops->unmap_all(space);
	if (!result)
		printf("pages %llu map_seconds %.3f unmap_seconds %.3f\n",
		       (unsigned long long)(mib << 20) / PAGE, middle - start, seconds() - middle);
	return result;
}

int time_maps(const struct space_ops *ops, const char *address, uint64_t mib)
{
	unsigned char *memory = memory_get_scattered(MEMORY_SIZE);
	struct attachment attachment;
	struct space space;
	int result;

	if (!memory)
		return 1;
	result = space_open(&space, ops);
	if (!result) {
		result = ops->attach(&space, address, &attachment);
		if (!result) {
			result = time_space(&space, memory, mib);
			attachment_close(&attachment);
		}
		space_close(&space);
	}
	if (result)
		printf("%s\n", strerrorname_np(-result));
	memory_put(memory, MEMORY_SIZE);
	return result ? 1 : 0;
}
