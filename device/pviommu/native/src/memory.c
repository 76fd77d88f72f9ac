// SPDX-License-Identifier: MIT
/* Guest memory that is mapped into this process: memory.py, for requests of many runs. */

#include <stdlib.h>
#include <string.h>

#include "core.h"

/* Guest physical bytes [first, end) lie at `host`. */
struct piece {
	uint64_t first;
	uint64_t end;
	uint8_t *host;
};

struct pv_memory {
	uint64_t count;
	struct piece *pieces;	/* in order, none overlaps another */
};

PV_EXPORT struct pv_memory *pv_memory_create(void)
{
	return calloc(1, sizeof(struct pv_memory));
}

PV_EXPORT void pv_memory_destroy(struct pv_memory *memory)
{
	free(memory->pieces);
	free(memory);
}

/* Replace all by `count` pieces of three numbers each; -1 without memory, and then there is nothing. */
PV_EXPORT int pv_memory_set(struct pv_memory *memory, const uint64_t *numbers, uint64_t count)
{
	free(memory->pieces);
	memory->count = 0;
	memory->pieces = NULL;
	if (!count)
		return 0;
	memory->pieces = malloc(count * sizeof(*memory->pieces));
	if (!memory->pieces)
		return -1;
	memcpy(memory->pieces, numbers, count * sizeof(*memory->pieces));
	memory->count = count;
	return 0;
}

/* The piece that holds `gpa`, or NULL. */
static const struct piece *piece_at(const struct pv_memory *memory, uint64_t gpa)
{
	uint64_t low = 0, high = memory->count;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (memory->pieces[middle].first <= gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low && gpa < memory->pieces[low - 1].end ? &memory->pieces[low - 1] : NULL;
}

/* Whether all of `count` runs of (gpa, length) are there. */
PV_EXPORT int pv_memory_has(const struct pv_memory *memory, const uint64_t *runs, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t gpa = runs[2 * i], left = runs[2 * i + 1];

		while (left) {
			const struct piece *piece = piece_at(memory, gpa);
			uint64_t size;

			if (!piece)
				return 0;
			size = piece->end - gpa;
			size = left < size ? left : size;
			gpa += size;
			left -= size;
		}
	}
	return 1;
}

/*
 * Copy `count` runs, which pv_memory_has() has found to be there, one after the other to `buffer`, or from it.
 * `room`: bytes of the buffer. Returns the bytes copied.
 */
PV_EXPORT uint64_t pv_memory_copy(const struct pv_memory *memory, const uint64_t *runs, uint64_t count,
				  uint8_t *buffer, uint64_t room, uint32_t to_guest)
{
	uint64_t done = 0;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t gpa = runs[2 * i], left = runs[2 * i + 1];

		while (left) {
			const struct piece *piece = piece_at(memory, gpa);
			uint64_t size;

			if (!piece)
				return done;
			size = piece->end - gpa;
			size = left < size ? left : size;
			if (size > room - done)
				return done;
			if (to_guest)
				memcpy(piece->host + (gpa - piece->first), buffer + done, size);
			else
				memcpy(buffer + done, piece->host + (gpa - piece->first), size);
			done += size;
			gpa += size;
			left -= size;
		}
	}
	return done;
}
