/* SPDX-License-Identifier: MIT */
/* What the driver of the PV-IOMMU shows in debugfs. */
#ifndef PVIOMMU_VFIO_DRIVER_H
#define PVIOMMU_VFIO_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "space.h"

/* @msi: where writes are interrupts, the first such region if there are several */
struct capabilities {
	struct range ranges[MAX_RANGES];
	unsigned int nr_ranges;
	struct range msi;
	uint64_t page_sizes;
	uint64_t pool_pages;
};

/*
 * What is in use on both sides; and commands sent so far, which same_usage() ignores.
 *
 * @guest_tables: whether the tables of address spaces are the guest's
 */
struct usage {
	bool guest_tables;
	uint64_t contexts, bindings, pool_used, mapped_pages, domains, table_pages, endpoints;
	uint64_t posted, waited;
};

bool read_capabilities(struct capabilities *capabilities);
bool read_usage(struct usage *usage);
/* Whether two usages are the same, with a complaint for each line that is not. */
bool same_usage(const struct usage *got, const struct usage *want);
/*
 * Whether the event log has, or gets within two seconds, this access of function @address at
 * exactly @iova.
 */
bool event_is_logged(const char *reason, const char *access, const char *address, uint64_t iova);

#endif
