// SPDX-License-Identifier: MIT
/*
 * What can be done with iommufd alone: page tables before any device is attached to them, and those
 * that note what is written.
 */
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

static int alloc_table(struct space *space, uint32_t device, uint32_t flags, uint32_t *id)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc), .flags = flags, .dev_id = device, .pt_id = space->ioas,
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
 * The MSI window in pages of this kernel, which it may share with what is beside it: @start up to
 * @end, and a @middle. A window of one page is behind the middle.
 */
struct window {
	uint64_t start, middle, end;
};

static struct window window_of(const struct range *msi)
{
	uint64_t start = PAGE_DOWN(msi->start), end = PAGE_UP(msi->last + 1);

	return (struct window){ start, start + PAGE_DOWN((end - start) / 2), end };
}

/*
 * One map reaches from before the window to its middle, one from there to behind, one lies
 * elsewhere.
 */
static bool map_around_window(struct fixture *f, struct space *space, const struct window *window)
{
	return gives("map", f->ops->map(space, f->memory, window->start - PAGE,
					window->middle - window->start + PAGE, RW), 0) &&
	       gives("map", f->ops->map(space, f->memory, window->middle,
					window->end - window->middle + 2 * PAGE, RW), 0) &&
	       gives("map", f->ops->map(space, f->memory, GIB, PAGE, RW), 0);
}

static bool table_is_refused_then_used(struct fixture *f, struct space *space,
				       const struct window *window, int device)
{
	const struct range *msi = &f->capabilities.msi;
	uint64_t beside = window->end - window->start - (msi->last + 1 - msi->start);
	uint64_t first = window->middle - window->start + PAGE;
	uint64_t second = window->end - window->middle + 2 * PAGE;
	struct usage before, after;
	uint64_t unmapped;
	uint32_t id, table;

	if (!gives("bind", bind_device(device, space->fd, &id), 0) || !read_usage(&before) ||
	    !gives("HWPT_ALLOC", alloc_table(space, id, 0, &table), 0) || !read_usage(&after) ||
	    !same("pages mapped", after.mapped_pages - before.mapped_pages,
		  (1 + 2 + 1) * PAGE_FRAMES + beside / 4096) ||
	    !gives("attach", attach(device, table), -EADDRINUSE))
		return false;
	return gives("unmap", f->ops->unmap(space, window->start - PAGE, first, &unmapped), 0) &&
	       same("bytes unmapped", unmapped, first) &&
	       gives("attach", attach(device, table), -EADDRINUSE) &&
	       gives("unmap", f->ops->unmap(space, window->middle, second, &unmapped), 0) &&
	       same("bytes unmapped", unmapped, second) && read_usage(&after) &&
	       same("pages mapped", after.mapped_pages - before.mapped_pages, PAGE_FRAMES) &&
	       gives("attach", attach(device, table), 0);
}

static bool reserved_window(struct fixture *f)
{
	const struct window window = window_of(&f->capabilities.msi);
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
		passed = map_around_window(f, &space, &window) &&
			 table_is_refused_then_used(f, &space, &window, device);
	if (device >= 0)
		close(device);
	space_close(&space);
	return passed && read_usage(&after) && same_usage(&after, &f->before);
}

static int track(struct space *space, uint32_t table, bool on)
{
	struct iommu_hwpt_set_dirty_tracking set = {
		.size = sizeof(set),
		.flags = on ? IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0,
		.hwpt_id = table,
	};

	return ioctl(space->fd, IOMMU_HWPT_SET_DIRTY_TRACKING, &set) ? -errno : 0;
}

/* Pages of GIB to GIB + 64 * PAGE that were written since the last time, one bit each. */
static bool written_are(struct space *space, uint32_t table, uint32_t flags, uint64_t want)
{
	uint64_t found = 0;
	struct iommu_hwpt_get_dirty_bitmap get = {
		.size = sizeof(get),
		.hwpt_id = table,
		.flags = flags,
		.iova = GIB,
		.length = 64 * PAGE,
		.page_size = PAGE,
		.data = (uintptr_t)&found,
	};

	return gives("GET_DIRTY_BITMAP",
		     ioctl(space->fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get) ? -errno : 0, 0) &&
	       same("pages written", found, want);
}

static bool writes_are_noted(struct fixture *f, uint32_t table)
{
	const uint32_t keep = IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
	struct space *space = &f->space;

	return maps(f, f->memory, GIB, 64 * PAGE, RW) &&
	       engine_fills(&f->engine, GIB, 0, PAGE) &&
	       gives("SET_DIRTY_TRACKING", track(space, table, true), 0) &&
	       written_are(space, table, 0, 0) &&
	       engine_fills(&f->engine, GIB + 4 * PAGE - 8, 0, PAGE + 16) &&
	       engine_fills(&f->engine, GIB + 63 * PAGE, 0, PAGE) &&
	       written_are(space, table, keep, 1ULL << 63 | 7 << 3) &&
	       written_are(space, table, 0, 1ULL << 63 | 7 << 3) &&
	       written_are(space, table, 0, 0) &&
	       engine_fills(&f->engine, GIB + 4 * PAGE, 0, 8) &&
	       written_are(space, table, 0, 1 << 4) &&
	       gives("SET_DIRTY_TRACKING", track(space, table, false), 0);
}

/* The engine leaves the table of the whole address space for one that notes what is written. */
static bool dirty_tracking(struct fixture *f)
{
	const uint32_t flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
	struct iommu_destroy destroy = { .size = sizeof(destroy) };
	struct attachment *own = &f->engine.attachment;
	bool passed;

	if (!f->before.guest_tables)
		return gives("HWPT_ALLOC", alloc_table(&f->space, own->id, flags, &destroy.id),
			     -EOPNOTSUPP);
	if (!gives("HWPT_ALLOC", alloc_table(&f->space, own->id, flags, &destroy.id), 0))
		return false;
	passed = gives("attach", attach(own->device, destroy.id), 0) &&
		 writes_are_noted(f, destroy.id);
	return gives("attach", attach(own->device, f->space.ioas), 0) &&
	       gives("DESTROY", ioctl(f->space.fd, IOMMU_DESTROY, &destroy) ? -errno : 0, 0) &&
	       passed;
}

const struct test dirty_tests[] = {
	{ "what is written is noted page by page where the tables are the guest's, else refused",
	  dirty_tracking },
	{}
};

const struct test iommufd_tests[] = {
	{ "a page table may hold maps in the MSI window, but no device is attached to it",
	  reserved_window },
	{}
};
