// SPDX-License-Identifier: MIT
/* Copies of guest memory that is mapped into this process: dma/memory.py, for requests of many runs. */

#include <stdlib.h>
#include <string.h>

#include "core.h"

/* Guest physical bytes [first, end) are at `host`. */
struct piece {
	uint64_t first;
	uint64_t end;
	uint8_t *host;
	uint32_t may_vanish;
};

struct pv_memory {
	uint64_t count;
	uint64_t room;
	uint64_t vanishing;	/* pieces of which memory may go away while it is used */
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

/* How many pieces begin at `gpa` or before it. */
static uint64_t begun(const struct pv_memory *memory, uint64_t gpa)
{
	uint64_t low = 0, high = memory->count;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (memory->pieces[middle].first <= gpa)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * Add a piece that overlaps none; -1 without memory, and then it is not added. `may_vanish`: its file may become
 * shorter.
 */
PV_EXPORT int pv_memory_add(struct pv_memory *memory, uint64_t first, uint64_t size, uint8_t *host,
			    uint32_t may_vanish)
{
	uint64_t at = begun(memory, first);

	if (memory->count == memory->room) {
		uint64_t room = memory->room ? 2 * memory->room : 16;
		struct piece *pieces = realloc(memory->pieces, room * sizeof(*pieces));

		if (!pieces)
			return -1;
		memory->pieces = pieces;
		memory->room = room;
	}
	memmove(&memory->pieces[at + 1], &memory->pieces[at], (memory->count - at) * sizeof(*memory->pieces));
	memory->pieces[at] = (struct piece){ first, first + size, host, may_vanish };
	memory->count++;
	memory->vanishing += !!may_vanish;
	return 0;
}

/* Remove the pieces that begin in the `size` bytes from `first` on. */
PV_EXPORT void pv_memory_remove(struct pv_memory *memory, uint64_t first, uint64_t size)
{
	uint64_t at, end;

	if (!memory->count || !size)
		return;
	at = first ? begun(memory, first - 1) : 0;
	end = begun(memory, first + (size - 1));
	for (uint64_t i = at; i < end; i++)
		memory->vanishing -= !!memory->pieces[i].may_vanish;
	memmove(&memory->pieces[at], &memory->pieces[end], (memory->count - end) * sizeof(*memory->pieces));
	memory->count -= end - at;
}

/* The piece that contains `gpa`, or NULL. */
static const struct piece *piece_at(const struct pv_memory *memory, uint64_t gpa)
{
	uint64_t at = begun(memory, gpa);

	return at && gpa - memory->pieces[at - 1].first < memory->pieces[at - 1].end - memory->pieces[at - 1].first
		       ? &memory->pieces[at - 1]
		       : NULL;
}

/* Where `size` bytes at `gpa` are, if they are in one piece; otherwise NULL. */
uint8_t *pv_memory_at(const struct pv_memory *memory, uint64_t gpa, uint64_t size)
{
	const struct piece *piece = piece_at(memory, gpa);

	return piece && size <= piece->end - gpa ? piece->host + (gpa - piece->first) : NULL;
}

/*
 * Replace the word at `gpa`, which is a multiple of 8, by `after` if it is *found, as one atomic step; *found becomes what
 * was there. 0 if it is missing.
 */
PV_EXPORT int pv_memory_exchange(const struct pv_memory *memory, uint64_t gpa, uint64_t *found, uint64_t after)
{
	uint64_t *word = (uint64_t *)pv_memory_at(memory, gpa, sizeof(*word));

	pv_guard_install();
	return word && pv_try_exchange(word, found, after);
}

/* Whether some of it may go away while it is used. */
int pv_memory_may_vanish(const struct pv_memory *memory)
{
	return memory->vanishing != 0;
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
 * Copy `count` runs, which pv_memory_has() has checked, one after the other to or from `buffer`, once the handler is
 * installed. `room`: bytes of the buffer. Returns the bytes copied; fewer if memory behind a mapping is missing.
 */
uint64_t pv_memory_move(const struct pv_memory *memory, const uint64_t *runs, uint64_t count, uint8_t *buffer,
			uint64_t room, uint32_t to_guest)
{
	uint64_t done = 0;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t gpa = runs[2 * i], left = runs[2 * i + 1];

		while (left) {
			const struct piece *piece = piece_at(memory, gpa);
			uint64_t size, copied;
			uint8_t *host;

			if (!piece)
				return done;
			size = piece->end - gpa;
			size = left < size ? left : size;
			if (size > room - done)
				return done;
			host = piece->host + (gpa - piece->first);
			copied = to_guest ? pv_copy(host, buffer + done, size) :
					    pv_copy(buffer + done, host, size);
			done += copied;
			if (copied < size)
				return done;
			gpa += size;
			left -= size;
		}
	}
	return done;
}

/* The same, for who has not installed the handler. */
PV_EXPORT uint64_t pv_memory_copy(const struct pv_memory *memory, const uint64_t *runs, uint64_t count,
				  uint8_t *buffer, uint64_t room, uint32_t to_guest)
{
	pv_guard_install();
	return pv_memory_move(memory, runs, count, buffer, room, to_guest);
}
