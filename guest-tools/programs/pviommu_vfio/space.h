/* SPDX-License-Identifier: MIT */
/*
 * An I/O address space of user space, by either of the kernel's interfaces: a type1 container, or
 * an IOAS of iommufd.
 *
 * Functions return 0 (or a count) or a negative errno. Addresses and sizes are bytes.
 */
#ifndef PVIOMMU_VFIO_SPACE_H
#define PVIOMMU_VFIO_SPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SPACE_READ = 1, SPACE_WRITE = 2 };

#define MAX_RANGES 16

/* Device addresses that can be mapped; @last is inclusive. */
struct range {
	uint64_t start;
	uint64_t last;
};

/*
 * Descriptors of a device that is attached; @group is -1 where there is none.
 *
 * @id: its number in an iommufd, where it is bound to one
 */
struct attachment {
	int device;
	int group;
	uint32_t id;
};

struct space;

/*
 * @bisect_error: of an unmap that would cut a mapping
 * @hole_error: of an unmap where nothing is mapped
 * @second_open_error: of taking a device that is taken already
 * @maps_bars: whether BARs that the program has mapped count as its memory
 */
struct space_ops {
	const char *name;
	int bisect_error;
	int hole_error;
	int second_open_error;
	bool maps_bars;
	int (*open)(struct space *space);
	int (*attach)(struct space *space, const char *address,
		      struct attachment *attachment);
	int (*map)(struct space *space, const void *memory, uint64_t iova, uint64_t size,
		   unsigned int access);
	int (*unmap)(struct space *space, uint64_t iova, uint64_t size, uint64_t *unmapped);
	int (*unmap_all)(struct space *space);
	/* Fills in at most MAX_RANGES; returns how many there are. */
	int (*ranges)(struct space *space, struct range *ranges);
	/* Checks that queries keep their rules for buffers that are too small. */
	bool (*queries_keep_their_rules)(struct space *space);
	/* Page sizes as a mask, or only the smallest if the interface has no more. */
	int (*page_sizes)(struct space *space, uint64_t *sizes);
	bool tells_all_page_sizes;
};

/*
 * @fd: of the container or of /dev/iommu
 * @ioas: number of the IOAS
 * @typed: whether the container has its type; it loses it with its last device
 */
struct space {
	const struct space_ops *ops;
	int fd;
	uint32_t ioas;
	bool typed;
};

extern const struct space_ops type1_ops;
extern const struct space_ops iommufd_ops;

/* The descriptor of the device's group, or a negative errno. */
int type1_open_group(const char *address);
/* The descriptor of the device's own file, or a negative errno; it is not bound to anything. */
int open_cdev(const char *address);

int space_open(struct space *space, const struct space_ops *ops);
void space_close(struct space *space);
void attachment_close(struct attachment *attachment);

#endif
