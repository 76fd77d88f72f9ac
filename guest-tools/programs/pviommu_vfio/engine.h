/* SPDX-License-Identifier: MIT */
/* The DMA test engine, driven from user space. */
#ifndef PVIOMMU_VFIO_ENGINE_H
#define PVIOMMU_VFIO_ENGINE_H

#include <linux/types.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "../../driver/pviommu_dma_test.h"
#include "space.h"

#define REGISTERS_SIZE	4096

/*
 * @address: of its PCI function
 * @attachment: descriptors that keep it open
 * @registers: its BAR of registers; NULL where pages are larger than it, and cannot be mapped
 * @registers_at: where that BAR is in the device's file
 * @shared: its BAR of memory
 * @interrupt: eventfd of its MSI-X vector
 * @producer: descriptors submitted so far
 */
struct engine {
	const char *address;
	struct attachment attachment;
	uint32_t *registers;
	off_t registers_at;
	void *shared;
	int interrupt;
	uint32_t producer;
};

/* The outcome of a request. */
struct outcome {
	uint32_t status;
	uint64_t detail;
	uint32_t checksum;
	bool interrupted;
};

/*
 * Attaches the engine at PCI @address to @space and makes it ready. 0 or a negative errno, with a
 * complaint.
 */
int engine_open(struct engine *engine, struct space *space, const char *address);
void engine_close(struct engine *engine);

/*
 * Carries out one request and waits for its interrupt, 10 s at most. False, with a complaint, if
 * none comes.
 */
bool engine_run(struct engine *engine, struct pvdt_descriptor request, struct outcome *outcome);

/* Requests that must succeed, as many as the length takes; each complains if not. */
bool engine_copies(struct engine *engine, uint64_t dst, uint64_t src, uint32_t length);
bool engine_fills(struct engine *engine, uint64_t dst, uint64_t pattern, uint32_t length);
/*
 * Requests that must be refused because of the address @refused: a write of @length bytes at @dst,
 * a read at @src.
 */
bool engine_write_faults(struct engine *engine, uint64_t dst, uint32_t length, uint64_t refused);
bool engine_read_faults(struct engine *engine, uint64_t src, uint32_t length, uint64_t refused);
/* Queues @count writes of eight bytes at @dst and the pages after it, and waits for none. */
void engine_queue_writes(struct engine *engine, uint64_t dst, unsigned int count);

#endif
