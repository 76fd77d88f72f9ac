/* SPDX-License-Identifier: MIT */
/* The tests, and what they are given. */
#ifndef PVIOMMU_VFIO_TESTS_H
#define PVIOMMU_VFIO_TESTS_H

#include "driver.h"
#include "engine.h"
#include "space.h"

#define GIB		((uint64_t)1 << 30)
#define MEMORY_SIZE	(2048 * PAGE)

/*
 * @ops: the interface that is tested
 * @addresses: the engines' PCI functions; the second is NULL if there is none
 * @huge: whether huge pages are available
 * @other: whether the IOMMU is another than the PV-IOMMU, of which neither capabilities but ranges
 *	nor usage are known
 * @capabilities: what the device offers
 * @before: usage before anything was opened
 * @attached: usage with everything attached and nothing mapped
 * @space, @engine: the first engine and its address space
 * @other_space, @other_engine: those of the second
 * @memory: MEMORY_SIZE bytes of small pages, scattered in physical memory
 */
struct fixture {
	const struct space_ops *ops;
	const char *addresses[2];
	bool huge, other;
	struct capabilities capabilities;
	struct usage before, attached;
	struct space space, other_space;
	struct engine engine, other_engine;
	unsigned char *memory;
};

struct test {
	const char *name;
	bool (*run)(struct fixture *fixture);
};

/*
 * Each list ends with an entry without a name. They expect everything attached and nothing mapped,
 * and need not unmap what they map.
 */
extern const struct test ranges_tests[];
extern const struct test dma_tests[];
extern const struct test huge_tests[];
extern const struct test map_tests[];
/* where the device has the tables of address spaces, and where the guest has */
extern const struct test posting_tests[];
extern const struct test pool_tests[];
extern const struct test guest_tests[];
/* where BARs can be mapped by their address, and where not */
extern const struct test bar_tests[];
extern const struct test bar_part_tests[]; /* and where half of their scratch memory has a page */
extern const struct test register_tests[]; /* and where a page is no larger than such a BAR */
extern const struct test no_bar_tests[];
/* need two engines; in the second list, with tables of the device */
extern const struct test isolation_tests[];
extern const struct test sharing_tests[];
/* what only iommufd has, with everything attached and nothing mapped */
extern const struct test dirty_tests[];
/* come last, in this order: the first closes what is open, the others begin with all closed */
extern const struct test lifetime_tests[];
/* what only iommufd has; they begin with all closed */
extern const struct test iommufd_tests[];

/* Opens the address spaces and attaches the engines; false with a complaint. */
bool fixture_open(struct fixture *fixture);
void fixture_close(struct fixture *fixture);

/* Maps @size bytes at @memory for the first engine, and complains if that fails. */
bool maps(struct fixture *fixture, const void *memory, uint64_t iova, uint64_t size,
	  unsigned int access);
/* Unmaps what is mapped there, and complains if that fails or unmaps something else. */
bool unmaps(struct fixture *fixture, uint64_t iova, uint64_t size);
/* Whether as many pages are mapped as with nothing of the tests mapped, and @more. */
bool mapped_pages_are(struct fixture *fixture, uint64_t more);

#endif
