// SPDX-License-Identifier: MIT
/* Memory of this process that is mapped for DMA, and what is in it. */
#include <errno.h>
#include <linux/mman.h>
#include <string.h>
#include <sys/mman.h>

#include "ktap.h"
#include "memory.h"

static unsigned char *get(size_t size, int flags)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (memory != MAP_FAILED)
		return memory;
	complain("no memory (%zu bytes, flags %#x): %s", size, flags, strerror(errno));
	return NULL;
}

unsigned char *memory_get_huge(size_t size)
{
	return get(size, MAP_POPULATE | MAP_HUGETLB | MAP_HUGE_2MB);
}

unsigned char *memory_get_scattered(size_t size)
{
	size_t pages = size / PAGE, step, first, i;
	unsigned char *memory = get(size, 0);

	if (!memory)
		return NULL;
	madvise(memory, size, MADV_NOHUGEPAGE);
	for (step = 7, first = 0; first < step; first++)
		for (i = first; i < pages; i += step)
			memory[i * PAGE] = 0;
	return memory;
}

void memory_put(unsigned char *memory, size_t size)
{
	if (memory)
		munmap(memory, size);
}

/* A multiplicative hash of the place: no two pages are alike. */
static unsigned char byte_at(size_t i, uint32_t seed)
{
	return ((uint32_t)i * 2654435761u + seed * 40503u) >> 21;
}

void memory_write(unsigned char *memory, size_t size, uint32_t seed)
{
	for (size_t i = 0; i < size; i++)
		memory[i] = byte_at(i, seed);
}

static bool differs(size_t place, unsigned char got, unsigned char want)
{
	return complain("byte %#zx is %#x, expected %#x", place, got, want);
}

bool memory_equals(const unsigned char *memory, const unsigned char *want, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (memory[i] != want[i])
			return differs(i, memory[i], want[i]);
	return true;
}

bool memory_has(const unsigned char *memory, size_t size, uint32_t seed)
{
	for (size_t i = 0; i < size; i++)
		if (memory[i] != byte_at(i, seed))
			return differs(i, memory[i], byte_at(i, seed));
	return true;
}

bool memory_is(const unsigned char *memory, size_t size, unsigned char value)
{
	for (size_t i = 0; i < size; i++)
		if (memory[i] != value)
			return differs(i, memory[i], value);
	return true;
}
