// SPDX-License-Identifier: MIT
/* What can be done with iommufd alone: page tables before any device is attached to them. */
#include <errno.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"

#define RW	(SPACE_READ | SPACE_WRITE)

static int bind_device(int device, int iommufd, uint32_t *id)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	int result = ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) ? -errno : 0;

	*id = bind.out_devid;
	return result;
}

static int alloc_table(struct space *space, uint32_t device, uint32_t *id)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc), .dev_id = device, .pt_id = space->ioas,
	};
	int result = ioctl(space->fd, IOMMU_HWPT_ALLOC, &alloc) ? -errno : 0;

	*id = alloc.out_hwpt_id;
	return result;
}

static int attach(int device, uint32_t id)
{
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = id };

	return ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) ? -errno : 0;
}

/*
 * One map reaches from before the MSI window into it, one from it to behind, one lies elsewhere.
 * The window must have room for both.
 */
static bool map_around_window(struct fixture *f, struct space *space)
{
	const struct range *msi = &f->capabilities.msi;

	return gives("map", f->ops->map(space, f->memory, msi->start - PAGE, 4 * PAGE, RW), 0) &&
	       gives("map", f->ops->map(space, f->memory, msi->last + 1 - PAGE, 3 * PAGE, RW),
		     0) &&
	       gives("map", f->ops->map(space, f->memory, GIB, PAGE, RW), 0);
}

static bool table_is_refused_then_used(struct fixture *f, struct space *space, int device)
{
	const struct range *msi = &f->capabilities.msi;
	struct usage before, after;
	uint64_t unmapped;
	uint32_t id, table;

	if (!gives("bind", bind_device(device, space->fd, &id), 0) || !read_usage(&before) ||
	    !gives("HWPT_ALLOC", alloc_table(space, id, &table), 0) || !read_usage(&after) ||
	    !same("pages mapped", after.mapped_pages - before.mapped_pages,
		  (1 + 2 + 1) * PAGE_FRAMES) ||
	    !gives("attach", attach(device, table), -EADDRINUSE))
		return false;
	return gives("unmap", f->ops->unmap(space, msi->start - PAGE, 4 * PAGE, &unmapped),
		     0) &&
	       same("bytes unmapped", unmapped, 4 * PAGE) &&
	       gives("attach", attach(device, table), -EADDRINUSE) &&
	       gives("unmap",
		     f->ops->unmap(space, msi->last + 1 - PAGE, 3 * PAGE, &unmapped), 0) &&
	       same("bytes unmapped", unmapped, 3 * PAGE) && read_usage(&after) &&
	       same("pages mapped", after.mapped_pages - before.mapped_pages, PAGE_FRAMES) &&
	       gives("attach", attach(device, table), 0);
}

static bool reserved_window(struct fixture *f)
{
	struct usage after;
	struct space space;
	bool passed = false;
	int device;

	if (!gives("open", space_open(&space, f->ops), 0))
		return false;
	device = open_cdev(f->addresses[0]);
	if (device < 0)
		gives("open of the device", device, 0);
	else
		passed = map_around_window(f, &space) &&
			 table_is_refused_then_used(f, &space, device);
	if (device >= 0)
		close(device);
	space_close(&space);
	return passed && read_usage(&after) && same_usage(&after, &f->before);
}

const struct test iommufd_tests[] = {
	{ "a page table may hold maps in the MSI window, but no device is attached to it",
	  reserved_window },
	{}
};
