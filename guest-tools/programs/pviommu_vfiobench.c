// SPDX-License-Identifier: MIT
/*
 * pviommu_vfiobench ADDRESS MIB: measures how long VFIO's type1 interface takes to map so many MiB
 * for a PCI function that is bound to vfio-pci, with one call per page, and to unmap all of it with
 * one call. Prints one line of NAME=VALUE: nanoseconds per page.
 *
 * Exit status: 0 measured, 1 the kernel refused, 2 wrong arguments.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vfio_group.h"

#define PAGE_BYTES	4096ul
#define MIB		1048576ul
#define MOST_MIB	16384
/* Mapped again and again, because memory is not what is measured. */
#define BUFFER_BYTES	(16 * MIB)
/* Above the MSI window, and below the limit of every IOMMU. */
#define FIRST_IOVA	(4096 * MIB)

enum { REFUSED = 1, USAGE = 2 };

static void refuse(const char *what)
{
	fprintf(stderr, "pviommu_vfiobench: %s: %s\n", what, strerror(errno));
	exit(REFUSED);
}

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int open_group(const char *address)
{
	char path[PATH_MAX];
	int group = vfio_open_group(address, path);

	if (group < 0) {
		errno = -group;
		refuse(path);
	}
	return group;
}

/* A container with the function's group; it stays open until this process ends. */
static int open_container(const char *address)
{
	int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), group;

	if (container < 0)
		refuse("/dev/vfio/vfio");
	group = open_group(address);
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container))
		refuse("VFIO_GROUP_SET_CONTAINER");
	if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		refuse("VFIO_SET_IOMMU");
	return container;
}

static void *get_buffer(void)
{
	void *buffer = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (buffer == MAP_FAILED)
		refuse("mmap");
	return buffer;
}

static uint64_t map_all(int container, char *buffer, uint64_t pages)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.size = PAGE_BYTES,
	};
	uint64_t start = now_ns(), page;

	for (page = 0; page < pages; page++) {
		map.vaddr = (uintptr_t)buffer + page * PAGE_BYTES % BUFFER_BYTES;
		map.iova = FIRST_IOVA + page * PAGE_BYTES;
		if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map))
			refuse("VFIO_IOMMU_MAP_DMA");
	}
	return now_ns() - start;
}

static uint64_t unmap_all(int container, uint64_t pages)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.iova = FIRST_IOVA,
		.size = pages * PAGE_BYTES,
	};
	uint64_t start = now_ns();

	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) || unmap.size != pages * PAGE_BYTES)
		refuse("VFIO_IOMMU_UNMAP_DMA");
	return now_ns() - start;
}

int main(int argc, char **argv)
{
	unsigned long mib = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	uint64_t pages = mib * MIB / PAGE_BYTES, map_ns, unmap_ns;
	int container;

	if (!mib || mib > MOST_MIB) {
		fprintf(stderr, "usage: pviommu_vfiobench ADDRESS MIB, at most %u of them\n",
			MOST_MIB);
		return USAGE;
	}
	container = open_container(argv[1]);
	map_ns = map_all(container, get_buffer(), pages);
	unmap_ns = unmap_all(container, pages);
	printf("pages=%" PRIu64 " map_ns=%" PRIu64 " unmap_ns=%" PRIu64 "\n", pages,
	       map_ns / pages, unmap_ns / pages);
	return 0;
}
