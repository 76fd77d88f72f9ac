// SPDX-License-Identifier: MIT
/* Bytes that any part of can be made, or checked, without those before it. */
#include <string.h>

#include "net.h"

/* splitmix64 (Vigna): its state is a counter, so that each word is found by its number. */
static uint64_t word(uint64_t seed, uint64_t number)
{
	uint64_t value = seed + (number + 1) * 0x9e3779b97f4a7c15;

	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
	value = (value ^ value >> 27) * 0x94d049bb133111eb;
	return value ^ value >> 31;
}

/* The bytes of one word that begin at @offset, at most @most. Returns how many. */
static size_t piece(uint8_t *bytes, size_t most, uint64_t seed, uint64_t offset)
{
	size_t skipped = offset % 8, length = 8 - skipped;
	uint64_t value = word(seed, offset / 8);

	length = length < most ? length : most;
	memcpy(bytes, (uint8_t *)&value + skipped, length);
	return length;
}

void fill(uint8_t *data, size_t length, uint64_t seed, uint64_t offset)
{
	for (size_t at = 0; at < length;)
		at += piece(data + at, length - at, seed, offset + at);
}

int is_filled(const uint8_t *data, size_t length, uint64_t seed, uint64_t offset)
{
	uint8_t bytes[8];

	for (size_t at = 0, step; at < length; at += step) {
		step = piece(bytes, length - at, seed, offset + at);
		if (memcmp(bytes, data + at, step))
			return 0;
	}
	return 1;
}
