// SPDX-License-Identifier: MIT
/*
 * pviommu_mapbench PAGES THREADS SECONDS: makes the kernel's DMA_MAP_BENCHMARK
 * (dma/map_benchmark.c) measure maps of so many pages by so many threads, for the device to which
 * the driver dma_map_benchmark is bound. Prints one line of NAME=VALUE; the kernel counts in tenths
 * of a microsecond.
 *
 * Exit status: 0 measured, 1 the kernel refused or has no such benchmark, 2 wrong arguments.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FILE_NAME	"/sys/kernel/debug/dma_map_benchmark"
#define MOST_PAGES	1024
#define MOST_THREADS	1024
#define MOST_SECONDS	300
#define NANOSECONDS	100	/* of a unit of the kernel's averages */

enum { REFUSED = 1, USAGE = 2 };

/*
 * The kernel installs no header for it. Zeros: bidirectional, single maps, no time between map
 * and unmap.
 */
struct map_benchmark {
	uint64_t avg_map_100ns;
	uint64_t map_stddev;
	uint64_t avg_unmap_100ns;
	uint64_t unmap_stddev;
	uint32_t threads;
	uint32_t seconds;
	int32_t node;
	uint32_t dma_bits;
	uint32_t dma_dir;
	uint32_t dma_trans_ns;
	uint32_t granule;
	uint8_t expansion[76];
};

_Static_assert(sizeof(struct map_benchmark) == 136, "the size is part of the ioctl's number");

#define MAP_BENCHMARK	_IOWR('d', 1, struct map_benchmark)
#define ANY_NODE	(-1)
#define ADDRESS_BITS	64

static int read_number(const char *text, unsigned long most, uint32_t *value)
{
	char *end;
	unsigned long found;

	errno = 0;
	found = strtoul(text, &end, 10);
	if (errno || end == text || *end || !found || found > most) {
		fprintf(stderr, "pviommu_mapbench: %s: give a number from 1 to %lu\n", text, most);
		return -1;
	}
	*value = found;
	return 0;
}

int main(int argc, char **argv)
{
	struct map_benchmark bench = { .node = ANY_NODE, .dma_bits = ADDRESS_BITS };
	int file;

	if (argc != 4) {
		fprintf(stderr, "usage: pviommu_mapbench PAGES THREADS SECONDS\n");
		return USAGE;
	}
	if (read_number(argv[1], MOST_PAGES, &bench.granule) ||
	    read_number(argv[2], MOST_THREADS, &bench.threads) ||
	    read_number(argv[3], MOST_SECONDS, &bench.seconds))
		return USAGE;
	file = open(FILE_NAME, O_RDWR | O_CLOEXEC);
	if (file < 0) {
		fprintf(stderr, "pviommu_mapbench: %s: %s\n", FILE_NAME, strerror(errno));
		return REFUSED;
	}
	if (ioctl(file, MAP_BENCHMARK, &bench) < 0) {
		fprintf(stderr, "pviommu_mapbench: %s pages, %s threads, %s s: %s\n", argv[1],
			argv[2], argv[3], strerror(errno));
		close(file);
		return REFUSED;
	}
	close(file);
	printf("pages=%" PRIu32 " threads=%" PRIu32 " map_ns=%" PRIu64 " unmap_ns=%" PRIu64 "\n",
	       bench.granule, bench.threads, bench.avg_map_100ns * NANOSECONDS,
	       bench.avg_unmap_100ns * NANOSECONDS);
	return 0;
}
