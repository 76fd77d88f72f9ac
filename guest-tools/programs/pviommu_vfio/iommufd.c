// SPDX-License-Identifier: MIT
/* An IOAS of iommufd, with devices opened by their own character device. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ktap.h"
#include "space.h"

static int iommufd_open(struct space *space)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	int error;

	space->fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (space->fd < 0)
		return -errno;
	if (ioctl(space->fd, IOMMU_IOAS_ALLOC, &alloc)) {
		error = -errno;
		space_close(space);
		return error;
	}
	space->ioas = alloc.out_ioas_id;
	return 0;
}

int open_cdev(const char *address)
{
	char path[PATH_MAX];
	struct dirent *entry;
	int fd = -ENOENT;
	DIR *folder;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", address);
	folder = opendir(path);
	if (!folder)
		return -errno;
	while (fd == -ENOENT && (entry = readdir(folder))) {
		if (strncmp(entry->d_name, "vfio", 4))
			continue;
		snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			fd = -errno;
		break;
	}
	closedir(folder);
	return fd;
}

static int iommufd_attach(struct space *space, const char *address, struct attachment *attachment)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = space->fd };
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach), .pt_id = space->ioas,
	};
	int error;

	*attachment = (struct attachment){ .device = open_cdev(address), .group = -1 };
	if (attachment->device < 0)
		return attachment->device;
	if (ioctl(attachment->device, VFIO_DEVICE_BIND_IOMMUFD, &bind) ||
	    ioctl(attachment->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach)) {
		error = -errno;
		attachment_close(attachment);
		return error;
	}
	attachment->id = bind.out_devid;
	return 0;
}

static int iommufd_map(struct space *space, const void *memory, uint64_t iova, uint64_t size,
		       unsigned int access)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA |
			 (access & SPACE_READ ? IOMMU_IOAS_MAP_READABLE : 0) |
			 (access & SPACE_WRITE ? IOMMU_IOAS_MAP_WRITEABLE : 0),
		.ioas_id = space->ioas,
		.user_va = (uintptr_t)memory,
		.length = size,
		.iova = iova,
	};

	return ioctl(space->fd, IOMMU_IOAS_MAP, &map) ? -errno : 0;
}

static int iommufd_unmap(struct space *space, uint64_t iova, uint64_t size, uint64_t *unmapped)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap), .ioas_id = space->ioas, .iova = iova, .length = size,
	};

	*unmapped = 0;
	if (ioctl(space->fd, IOMMU_IOAS_UNMAP, &unmap))
		return -errno;
	*unmapped = unmap.length;
	return 0;
}

static int iommufd_unmap_all(struct space *space)
{
	uint64_t unmapped;

	return iommufd_unmap(space, 0, UINT64_MAX, &unmapped);
}

static int get_ranges(struct space *space, struct iommu_iova_range *found, uint32_t room,
		      struct iommu_ioas_iova_ranges *query)
{
	*query = (struct iommu_ioas_iova_ranges){
		.size = sizeof(*query),
		.ioas_id = space->ioas,
		.num_iovas = room,
		.allowed_iovas = (uintptr_t)found,
	};
	return ioctl(space->fd, IOMMU_IOAS_IOVA_RANGES, query) ? -errno : 0;
}

static int iommufd_ranges(struct space *space, struct range *ranges)
{
	struct iommu_iova_range found[MAX_RANGES];
	struct iommu_ioas_iova_ranges query;
	int result = get_ranges(space, found, MAX_RANGES, &query);
	unsigned int i;

	if (result)
		return result;
	for (i = 0; i < query.num_iovas; i++)
		ranges[i] = (struct range){ .start = found[i].start, .last = found[i].last };
	return query.num_iovas;
}

static int iommufd_page_sizes(struct space *space, uint64_t *sizes)
{
	struct iommu_iova_range found[MAX_RANGES];
	struct iommu_ioas_iova_ranges query;
	int result = get_ranges(space, found, MAX_RANGES, &query);

	*sizes = query.out_iova_alignment;
	return result;
}

/* Too little room: -EMSGSIZE, the number of ranges, and as many of them as fit. */
static bool iommufd_queries_keep_their_rules(struct space *space)
{
	struct iommu_iova_range all[MAX_RANGES], found[MAX_RANGES];
	struct iommu_ioas_iova_ranges query;
	uint32_t count, room;

	if (!gives("IOVA_RANGES", get_ranges(space, all, MAX_RANGES, &query), 0))
		return false;
	count = query.num_iovas;
	for (room = 0; room < count; room++) {
		memset(found, 0xaa, sizeof(found));
		if (!gives("IOVA_RANGES with little room", get_ranges(space, found, room, &query),
			   -EMSGSIZE) ||
		    !same("number of ranges", query.num_iovas, count))
			return false;
		if (memcmp(found, all, room * sizeof(*all)))
			return complain("with room for %u, these are not the first ranges", room);
		if (!same("first byte past the room", found[room].start, 0xaaaaaaaaaaaaaaaa))
			return false;
	}
	query.__reserved = 1;
	query.num_iovas = MAX_RANGES;
	return gives("IOVA_RANGES with a reserved field set",
		     ioctl(space->fd, IOMMU_IOAS_IOVA_RANGES, &query) ? -errno : 0, -EOPNOTSUPP);
}

const struct space_ops iommufd_ops = {
	.name = "iommufd",
	.bisect_error = -ENOENT,
	.hole_error = -ENOENT,
	.second_open_error = -EINVAL,
	.open = iommufd_open,
	.attach = iommufd_attach,
	.map = iommufd_map,
	.unmap = iommufd_unmap,
	.unmap_all = iommufd_unmap_all,
	.ranges = iommufd_ranges,
	.queries_keep_their_rules = iommufd_queries_keep_their_rules,
	.page_sizes = iommufd_page_sizes,
	.tells_all_page_sizes = false,
};
