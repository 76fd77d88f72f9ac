// SPDX-License-Identifier: MIT
/* The container of VFIO with the type1v2 back end: every kernel with VFIO has it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../vfio_group.h"
#include "ktap.h"
#include "space.h"

#define INFO_BYTES	1024
/* up to and including iova_pgsizes, which the first kernels with this call already had */
#define INFO_MINIMUM	16

static int type1_open(struct space *space)
{
	space->fd = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (space->fd < 0)
		return -errno;
	if (ioctl(space->fd, VFIO_GET_API_VERSION) != VFIO_API_VERSION ||
	    ioctl(space->fd, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) != 1) {
		space_close(space);
		return -EOPNOTSUPP;
	}
	return 0;
}

int type1_open_group(const char *address)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	char path[PATH_MAX];
	int group = vfio_open_group(address, path);

	if (group < 0)
		return group;
	if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) ||
	    !(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
		close(group);
		return -EBUSY;
	}
	return group;
}

static int type1_attach(struct space *space, const char *address, struct attachment *attachment)
{
	int error;

	*attachment = (struct attachment){ .device = -1, .group = type1_open_group(address) };
	if (attachment->group < 0)
		return attachment->group;
	if (ioctl(attachment->group, VFIO_GROUP_SET_CONTAINER, &space->fd))
		goto fail;
	/* only a container with a group can be given its type, and only once */
	if (!space->typed && ioctl(space->fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		goto fail;
	space->typed = true;
	attachment->device = ioctl(attachment->group, VFIO_GROUP_GET_DEVICE_FD, address);
	if (attachment->device < 0)
		goto fail;
	return 0;

fail:
	error = -errno;
	attachment_close(attachment);
	return error;
}

static int type1_map(struct space *space, const void *memory, uint64_t iova, uint64_t size,
		     unsigned int access)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = (access & SPACE_READ ? VFIO_DMA_MAP_FLAG_READ : 0) |
			 (access & SPACE_WRITE ? VFIO_DMA_MAP_FLAG_WRITE : 0),
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};

	return ioctl(space->fd, VFIO_IOMMU_MAP_DMA, &map) ? -errno : 0;
}

static int type1_unmap(struct space *space, uint64_t iova, uint64_t size, uint64_t *unmapped)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap), .iova = iova, .size = size,
	};
	int result = ioctl(space->fd, VFIO_IOMMU_UNMAP_DMA, &unmap) ? -errno : 0;

	/* after an error some kernels leave the requested size there */
	*unmapped = result ? 0 : unmap.size;
	return result;
}

static int type1_unmap_all(struct space *space)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap), .flags = VFIO_DMA_UNMAP_FLAG_ALL,
	};

	return ioctl(space->fd, VFIO_IOMMU_UNMAP_DMA, &unmap) ? -errno : 0;
}

/* A query with room for @room bytes. @buffer has INFO_BYTES and is filled with 0xaa first. */
static int get_info(struct space *space, void *buffer, uint32_t room)
{
	struct vfio_iommu_type1_info *info = buffer;

	memset(buffer, 0xaa, INFO_BYTES);
	info->argsz = room;
	info->flags = 0;
	return ioctl(space->fd, VFIO_IOMMU_GET_INFO, info) ? -errno : 0;
}

/*
 * The capability @id of the chain, or NULL; a chain that leads outside the buffer counts as one
 * without it.
 */
static const void *find_capability(const void *buffer, uint16_t id)
{
	const struct vfio_iommu_type1_info *info = buffer;
	const struct vfio_info_cap_header *header;
	uint32_t offset = info->flags & VFIO_IOMMU_INFO_CAPS ? info->cap_offset : 0;
	unsigned int steps;

	for (steps = 0; offset && steps < 16; steps++) {
		if (offset % 8 || offset > INFO_BYTES - sizeof(*header))
			return NULL;
		header = (const void *)((const char *)buffer + offset);
		if (header->id == id)
			return header;
		offset = header->next;
	}
	return NULL;
}

static int type1_ranges(struct space *space, struct range *ranges)
{
	_Alignas(8) char buffer[INFO_BYTES];
	const struct vfio_iommu_type1_info_cap_iova_range *capability;
	int result = get_info(space, buffer, sizeof(buffer));
	unsigned int i;

	if (result)
		return result;
	capability = find_capability(buffer, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
	if (!capability || capability->header.version != 1)
		return -ENOENT;
	for (i = 0; i < capability->nr_iovas && i < MAX_RANGES; i++) {
		ranges[i].start = capability->iova_ranges[i].start;
		ranges[i].last = capability->iova_ranges[i].end;
	}
	return capability->nr_iovas;
}

static int type1_page_sizes(struct space *space, uint64_t *sizes)
{
	_Alignas(8) char buffer[INFO_BYTES];
	struct vfio_iommu_type1_info *info = (void *)buffer;
	int result = get_info(space, buffer, sizeof(*info));

	if (!result && !(info->flags & VFIO_IOMMU_INFO_PGSIZES))
		return -ENOENT;
	*sizes = info->iova_pgsizes;
	return result;
}

static bool untouched_from(const unsigned char *buffer, uint32_t first)
{
	for (uint32_t i = first; i < INFO_BYTES; i++)
		if (buffer[i] != 0xaa)
			return complain("a query with room for %u bytes has written byte %u",
					first, i);
	return true;
}

/*
 * Every buffer size from the smallest to all: success, the size that is needed, and nothing written
 * past the buffer.
 */
static bool type1_queries_keep_their_rules(struct space *space)
{
	_Alignas(8) unsigned char buffer[INFO_BYTES];
	struct vfio_iommu_type1_info *info = (void *)buffer;
	uint32_t room, needed, chain;

	if (!gives("GET_INFO", get_info(space, buffer, sizeof(*info)), 0))
		return false;
	needed = info->argsz;
	if (needed <= sizeof(*info) || needed > INFO_BYTES)
		return complain("GET_INFO says that it needs %u bytes", needed);
	for (room = 0; room < INFO_MINIMUM; room++)
		if (!gives("GET_INFO without room", get_info(space, buffer, room), -EINVAL))
			return false;
	for (; room < needed; room++) {
		if (!gives("GET_INFO", get_info(space, buffer, room), 0) ||
		    !same("size needed", info->argsz, needed) || !untouched_from(buffer, room))
			return false;
		chain = room < sizeof(*info) ? 0 : info->cap_offset;
		if (!same("offset of capabilities", chain, 0))
			return false;
	}
	return gives("GET_INFO", get_info(space, buffer, needed), 0) &&
	       same("offset of capabilities", info->cap_offset, sizeof(*info)) &&
	       untouched_from(buffer, needed);
}

const struct space_ops type1_ops = {
	.name = "type1",
	.bisect_error = -EINVAL,
	.hole_error = 0,
	.second_open_error = -EBUSY,
	.maps_bars = true,
	.open = type1_open,
	.attach = type1_attach,
	.map = type1_map,
	.unmap = type1_unmap,
	.unmap_all = type1_unmap_all,
	.ranges = type1_ranges,
	.queries_keep_their_rules = type1_queries_keep_their_rules,
	.page_sizes = type1_page_sizes,
	.tells_all_page_sizes = true,
};
