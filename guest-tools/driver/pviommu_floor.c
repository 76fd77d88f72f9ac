// SPDX-License-Identifier: GPL-2.0-only
/*
 * The PV-IOMMU driver without the store to the ring in map and unmap: what the kernel itself costs.
 * DMA does not work with it; it is for measurements only. One unit, because the same sources make
 * the real driver.
 */

#define PVIOMMU_FLOOR_BUILD

#include "pviommu_pci.c"
#undef pr_fmt
#include "pviommu_rings.c"
#undef pr_fmt
#include "pviommu_ring.c"
#undef pr_fmt
#include "pviommu_ops.c"
#undef pr_fmt
#include "pviommu_xen_2024.c"
#undef pr_fmt
#include "pviommu_xen_v7.c"
#undef pr_fmt
#include "pviommu_table.c"
#undef pr_fmt
#include "pviommu_pending.c"
#undef pr_fmt
#include "pviommu_domain.c"
#undef pr_fmt
#include "pviommu_device.c"
#undef pr_fmt
#include "pviommu_capabilities.c"
#undef pr_fmt
#include "pviommu_events.c"
#undef pr_fmt
#include "pviommu_debugfs.c"
