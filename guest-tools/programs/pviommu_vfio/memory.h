/* SPDX-License-Identifier: MIT */
/* Memory of this process that is mapped for DMA, and what is in it. */
#ifndef PVIOMMU_VFIO_MEMORY_H
#define PVIOMMU_VFIO_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

/* of this kernel, and how many of the device's pages of 4 KiB that is */
#define PAGE		((size_t)sysconf(_SC_PAGESIZE))
#define PAGE_FRAMES	(PAGE / 4096)
#define PAGE_DOWN(at)	((at) / PAGE * PAGE)
#define PAGE_UP(at)	PAGE_DOWN((at) + PAGE - 1)
/*
 * what one table of the device's spans; and the size of huge pages here, which every kernel has,
 * whatever its usual ones are
 */
#define HUGE		((size_t)2 << 20)

/*
 * Zeroed memory in huge pages, every page present; NULL with a complaint. The system must have
 * reserved them.
 */
unsigned char *memory_get_huge(size_t size);
/*
 * The same in small pages, touched out of order, so that they are not contiguous in physical
 * memory.
 */
unsigned char *memory_get_scattered(size_t size);
void memory_put(unsigned char *memory, size_t size);

/* Writes bytes that differ from page to page, and with @seed. */
void memory_write(unsigned char *memory, size_t size, uint32_t seed);
/* Whether all bytes are as expected; complains about the first that is not. */
bool memory_equals(const unsigned char *memory, const unsigned char *want, size_t size);
bool memory_has(const unsigned char *memory, size_t size, uint32_t seed);
bool memory_is(const unsigned char *memory, size_t size, unsigned char value);

#endif
