/* SPDX-License-Identifier: MIT */
/* A function's group, as every program opens it that uses VFIO's containers. */
#ifndef VFIO_GROUP_H
#define VFIO_GROUP_H

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

/*
 * The open group of the PCI function at `address`, or a negative errno. `path` is what was opened,
 * or could not be.
 */
static inline int vfio_open_group(const char *address, char path[PATH_MAX])
{
	char target[PATH_MAX];
	ssize_t length;
	int group;

	snprintf(path, PATH_MAX, "/sys/bus/pci/devices/%s/iommu_group", address);
	length = readlink(path, target, sizeof(target) - 1);
	if (length < 0)
		return -errno;
	target[length] = '\0';
	snprintf(path, PATH_MAX, "/dev/vfio/%s", basename(target));
	group = open(path, O_RDWR | O_CLOEXEC);
	return group < 0 ? -errno : group;
}

#endif
