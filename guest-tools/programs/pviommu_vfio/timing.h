/* SPDX-License-Identifier: MIT */
/* How long maps of single pages take. */
#ifndef PVIOMMU_VFIO_TIMING_H
#define PVIOMMU_VFIO_TIMING_H

#include <stdint.h>

#include "space.h"

/*
 * Maps @mib MiB (a multiple of 8) page by page for the function at @address, unmaps all, and prints
 * the seconds of either; or prints the name of the error. Returns the exit status.
 */
int time_maps(const struct space_ops *ops, const char *address, uint64_t mib);

#endif
