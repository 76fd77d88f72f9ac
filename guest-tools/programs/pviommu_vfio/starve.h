/* SPDX-License-Identifier: MIT */
/* Memory runs short in the kernel while a program attaches and maps. */
#ifndef PVIOMMU_VFIO_STARVE_H
#define PVIOMMU_VFIO_STARVE_H

#include <stdbool.h>

/*
 * Repeatedly adds the group of the function @address to a container of type1 and maps a page: the
 * first time the kernel's first allocation fails, then the second, until none is left. Needs a
 * kernel with FAULT_INJECTION and FAILSLAB.
 *
 * Returns the number of allocations that were made to fail, or -1 with a complaint: each call has
 * to give 0 or -ENOMEM, and the ranges of addresses have to be the same each time.
 */
int starve(const char *address);

#endif
