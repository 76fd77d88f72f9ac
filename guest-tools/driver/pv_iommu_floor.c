// SPDX-License-Identifier: GPL-2.0-only
/*
 * The PV-IOMMU driver without the store to the ring in map and unmap: what the kernel itself costs.
 * DMA does not work with it; it is for measurements only. One unit, because the same sources make
 * the real driver.
 */

#define PV_IOMMU_FLOOR

#include "pv_iommu_pci.c"
#undef pr_fmt
#include "pv_iommu_rings.c"
#undef pr_fmt
#include "pv_iommu_ring.c"
#undef pr_fmt
#include "pv_iommu_ops.c"
#undef pr_fmt
#include "pv_iommu_xen_2024.c"
#undef pr_fmt
#include "pv_iommu_xen_v7.c"
#undef pr_fmt
#include "pv_iommu_table.c"
#undef pr_fmt
#include "pv_iommu_pending.c"
#undef pr_fmt
#include "pv_iommu_domain.c"
#undef pr_fmt
#include "pv_iommu_device.c"
#undef pr_fmt
#include "pv_iommu_capabilities.c"
#undef pr_fmt
#include "pv_iommu_events.c"
#undef pr_fmt
#include "pv_iommu_debugfs.c"
