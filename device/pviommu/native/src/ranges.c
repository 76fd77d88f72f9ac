// SPDX-License-Identifier: MIT
/* Sets of frames as merged ranges in order. */

#include <stdlib.h>
#include <string.h>

#include "core.h"

/* Replace a set by `count` merged ranges; 0, or -1 and no change when there is no memory. */
int pv_ranges_set(struct pv_ranges *ranges, const uint64_t *bounds, uint64_t count)
{
	uint64_t *copy = NULL;

	if (count) {
		copy = malloc(count * 2 * sizeof(*copy));
		if (!copy)
			return -1;
		memcpy(copy, bounds, count * 2 * sizeof(*copy));
	}
	free(ranges->bounds);
	ranges->bounds = copy;
	ranges->count = count;
	return 0;
}

/* How many ranges begin at `frame` or before it. */
static uint64_t begun(const struct pv_ranges *ranges, uint64_t frame)
{
	uint64_t low = 0, high = ranges->count;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (ranges->bounds[2 * middle] <= frame)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Frames from `frame` on that belong to the set without a gap; 0 when `frame` does not. */
uint64_t pv_inside(const struct pv_ranges *ranges, uint64_t frame)
{
	uint64_t at = begun(ranges, frame);

	if (!at || ranges->bounds[2 * at - 1] < frame)
		return 0;
	return ranges->bounds[2 * at - 1] - frame + 1;
}

/* Frames from `frame` on that do not belong to the set; 0 when `frame` does. */
uint64_t pv_outside(const struct pv_ranges *ranges, uint64_t frame)
{
	uint64_t at = begun(ranges, frame);

	if (at && frame <= ranges->bounds[2 * at - 1])
		return 0;
	return (at < ranges->count ? ranges->bounds[2 * at] : PV_FRAME_LIMIT) - frame;
}
