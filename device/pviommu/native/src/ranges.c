// SPDX-License-Identifier: MIT
/* Sets of frames as merged ranges in order. */

#include <stdlib.h>
#include <string.h>

#include "core.h"

/* The number of bounds at or before `frame`. If it is odd, the frame is in the set. */
static uint64_t bounds_to(const struct pv_ranges *ranges, uint64_t frame)
{
	uint64_t low = 0, high = ranges->count;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (ranges->bounds[middle] <= frame)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Room for `count` bounds; 0, or -1 and no change when there is no memory. */
static int make_room(struct pv_ranges *ranges, uint64_t count)
{
	uint64_t room = 2 * count, *bounds;

	if (count <= ranges->room)
		return 0;
	bounds = realloc(ranges->bounds, room * sizeof(*bounds));
	if (!bounds)
		return -1;
	ranges->bounds = bounds;
	ranges->room = room;
	return 0;
}

/* Replace a set by `count` bounds; 0, or -1 and no change when there is no memory. */
int pv_ranges_set(struct pv_ranges *ranges, const uint64_t *bounds, uint64_t count)
{
	if (make_room(ranges, count))
		return -1;
	if (count)
		memcpy(ranges->bounds, bounds, count * sizeof(*bounds));
	ranges->count = count;
	return 0;
}

/*
 * Of the frames in [first, end), those within the `count` bounds, all of which are in that range, belong to the set; 0,
 * or -1 and no change when there is no memory.
 */
int pv_ranges_replace(struct pv_ranges *ranges, uint64_t first, uint64_t end, const uint64_t *bounds, uint64_t count)
{
	uint64_t at = first ? bounds_to(ranges, first - 1) : 0, following = bounds_to(ranges, end);
	uint64_t left = at % 2, right = following % 2, tail = ranges->count - following, *place;

	/* A range that continues across an edge has no bound there. */
	if (left && count && bounds[0] == first) {
		left = 0;
		bounds++;
		count--;
	}
	if (right && count && bounds[count - 1] == end) {
		right = 0;
		count--;
	}
	if (make_room(ranges, at + left + count + right + tail))
		return -1;
	place = ranges->bounds + at;
	if (tail)
		memmove(place + left + count + right, ranges->bounds + following, tail * sizeof(*place));
	if (left)
		*place++ = first;
	if (count)
		memcpy(place, bounds, count * sizeof(*place));
	if (right)
		place[count] = end;
	ranges->count = at + left + count + right + tail;
	return 0;
}

/* Frames from `frame` on that belong to the set without a gap; 0 when `frame` does not. */
uint64_t pv_inside(const struct pv_ranges *ranges, uint64_t frame)
{
	uint64_t at = bounds_to(ranges, frame);

	return at % 2 ? ranges->bounds[at] - frame : 0;
}

/* Frames from `frame` on that do not belong to the set; 0 when `frame` does. */
uint64_t pv_outside(const struct pv_ranges *ranges, uint64_t frame)
{
	uint64_t at = bounds_to(ranges, frame);

	if (at % 2)
		return 0;
	return (at < ranges->count ? ranges->bounds[at] : PV_FRAME_LIMIT) - frame;
}
