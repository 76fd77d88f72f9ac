// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: isolation. refused DMA changes nothing and is reported in full. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include "pviommu_test.h"

static void pvt_never_mapped(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request fill = pvt_fill(pvt_iova(PVT_DFN) + 0x123, 64, 0x41);
	struct pvdt_request read = pvt_read(pvt_iova(PVT_DFN) + 0x321, 64);
	struct pvdt_request identity = pvt_fill(pvt_iova(t->gfn), 64, 0x42);

	pvt_expect_fault(ktap, t, 0, &fill, pvt_iova(PVT_DFN) + 0x123, PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	pvt_expect_fault(ktap, t, 0, &read, pvt_iova(PVT_DFN) + 0x321, PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_READ, ctx);
	/* a guest address is no device address */
	pvt_expect_fault(ktap, t, 0, &identity, pvt_iova(t->gfn), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	EXPECT(ktap, pvt_unchanged(t));
}

static void pvt_just_unmapped(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request late;
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x43);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN, 1, &done), 0);
	late = pvt_fill(pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x44);
	pvt_expect_fault(ktap, t, 0, &late, pvt_iova(PVT_DFN), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x43, PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(pvt_page(t, 1), PVT_GUARD, (PVT_PAGES - 1) * PVT_PAGE_SIZE));
}

static void pvt_moved_elsewhere(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x45);
	EXPECT_EQ(ktap, pvt_unmap(t, ctx, PVT_DFN, 1, &done), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn + 5, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x46);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x45, PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(pvt_page(t, 5), 0x46, PVT_PAGE_SIZE));
}

static void pvt_read_only(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request fill = pvt_fill(pvt_iova(PVT_DFN) + 4001, 95, 0x47);
	struct pvdt_request read = pvt_read(pvt_iova(PVT_DFN), PVT_PAGE_SIZE);
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVIOMMU_MAP_READABLE, &done), 0);
	pvt_expect_fault(ktap, t, 0, &fill, pvt_iova(PVT_DFN) + 4001, PVIOMMU_EVENT_PERMISSION,
			 PVIOMMU_ACCESS_WRITE, ctx);
	EXPECT(ktap, pvt_unchanged(t));
	EXPECT_EQ(ktap, pvdt_client_ops.run(t->engine[0], &read, PVDT_POLL), 0);
	EXPECT_EQ(ktap, read.status, PVDT_STATUS_DONE);
}

static void pvt_write_only(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request read = pvt_read(pvt_iova(PVT_DFN) + 1, 7);
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVIOMMU_MAP_WRITEABLE, &done), 0);
	pvt_expect_fault(ktap, t, 0, &read, pvt_iova(PVT_DFN) + 1, PVIOMMU_EVENT_PERMISSION,
			 PVIOMMU_ACCESS_READ, ctx);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x48);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x48, PVT_PAGE_SIZE));
}

static void pvt_hole_in_the_middle(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request fill = pvt_fill(pvt_iova(PVT_DFN) + 100, 7 * PVT_PAGE_SIZE, 0x49);
	u32 done;

	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 3, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 4, t->gfn + 4, 4, PVT_RW, &done), 0);
	pvt_expect_fault(ktap, t, 0, &fill, pvt_iova(PVT_DFN + 3), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	EXPECT(ktap, pvt_unchanged(t));
	/* the next good DMA works */
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 3, t->gfn + 3, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN) + 100, 7 * PVT_PAGE_SIZE, 0x4a);
	EXPECT(ktap, pvt_holds(t->memory, PVT_GUARD, 100));
	EXPECT(ktap, pvt_holds(t->memory + 100, 0x4a, 7 * PVT_PAGE_SIZE));
	EXPECT(ktap, pvt_holds(t->memory + 100 + 7 * PVT_PAGE_SIZE, PVT_GUARD,
			       (PVT_PAGES - 7) * PVT_PAGE_SIZE - 100));
}

static void pvt_copy_half_refused(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request copy = {
		.op = PVDT_OP_COPY, .length = 2 * PVT_PAGE_SIZE,
		.src = pvt_iova(PVT_DFN), .dst = pvt_iova(PVT_DFN + 8),
	};
	u32 done;

	memset(t->memory, 0x4b, 2 * PVT_PAGE_SIZE);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 2, PVT_RW, &done), 0);
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN + 8, t->gfn + 8, 1, PVT_RW, &done), 0);
	pvt_expect_fault(ktap, t, 0, &copy, pvt_iova(PVT_DFN + 9), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
	EXPECT(ktap, pvt_holds(pvt_page(t, 2), PVT_GUARD, (PVT_PAGES - 2) * PVT_PAGE_SIZE));
}

static void pvt_reserved_window(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u64 start = t->caps->reserved[0].range.start, dfn = start >> PVIOMMU_PAGE_SHIFT;
	struct pvdt_request fill = pvt_fill(start + 8, 4, 0x4c);
	struct pvdt_request into = pvt_fill(start - PVT_PAGE_SIZE, 2 * PVT_PAGE_SIZE, 0x4d);
	u32 done;

	if (!EXPECT(ktap, t->caps->nr_reserved > 0))
		return;
	pvt_expect_fault(ktap, t, 0, &fill, start + 8, PVIOMMU_EVENT_RESERVED, PVIOMMU_ACCESS_WRITE,
			 ctx);
	EXPECT_EQ(ktap, pvt_map(t, ctx, dfn - 1, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_fault(ktap, t, 0, &into, start, PVIOMMU_EVENT_RESERVED, PVIOMMU_ACCESS_WRITE,
			 ctx);
	EXPECT(ktap, pvt_unchanged(t));
}

static void pvt_beyond_aperture(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u64 end = 1ULL << t->caps->aperture_bits, dfn = end >> PVIOMMU_PAGE_SHIFT;
	struct pvdt_request fill = pvt_fill(end + 16, 16, 0x4e);
	struct pvdt_request over = pvt_fill(end - PVT_PAGE_SIZE, 2 * PVT_PAGE_SIZE, 0x4f);
	struct pvdt_request far = pvt_fill(U64_MAX - 7, 8, 0x50);
	u32 done;

	pvt_expect_fault(ktap, t, 0, &fill, end + 16, PVIOMMU_EVENT_OUT_OF_APERTURE,
			 PVIOMMU_ACCESS_WRITE, ctx);
	pvt_expect_fault(ktap, t, 0, &far, U64_MAX - 7, PVIOMMU_EVENT_OUT_OF_APERTURE,
			 PVIOMMU_ACCESS_WRITE, ctx);
	EXPECT_EQ(ktap, pvt_map(t, ctx, dfn - 1, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_fault(ktap, t, 0, &over, end, PVIOMMU_EVENT_OUT_OF_APERTURE,
			 PVIOMMU_ACCESS_WRITE, ctx);
	EXPECT(ktap, pvt_unchanged(t));
}

static void pvt_second_engine(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request fill = pvt_fill(pvt_iova(PVT_DFN) + 5, 6, 0x51);
	u16 other = 0;

	if (!EXPECT(ktap, t->engine[1]) || !EXPECT_EQ(ktap, pvt_alloc(t, 0, &other), 0))
		return;
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[1], other), 0);
	pvt_expect_fault(ktap, t, 1, &fill, pvt_iova(PVT_DFN) + 5, PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, other);
	EXPECT_EQ(ktap, pvt_reattach(t, t->sbdf[1], t->home[1]), 0);
	EXPECT_EQ(ktap, pvt_free(t, other, 0), 0);
}

const struct ktap_case pvt_fault_cases[] = {
	PVT_ATTACHED("DMA to an address never mapped is refused", pvt_never_mapped),
	PVT_ATTACHED("DMA to an address unmapped a moment ago is refused", pvt_just_unmapped),
	PVT_ATTACHED("DMA follows an address that was mapped anew", pvt_moved_elsewhere),
	PVT_ATTACHED("a write through a read-only mapping is refused", pvt_read_only),
	PVT_ATTACHED("a read through a write-only mapping is refused", pvt_write_only),
	PVT_ATTACHED("one unmapped page in the middle refuses the whole request",
		     pvt_hole_in_the_middle),
	PVT_ATTACHED("a copy whose destination is refused moves nothing", pvt_copy_half_refused),
	PVT_ATTACHED("DMA to the MSI window is refused", pvt_reserved_window),
	PVT_ATTACHED("DMA beyond the aperture is refused", pvt_beyond_aperture),
	PVT_ATTACHED("the event names the engine that it concerns", pvt_second_engine),
};

const unsigned int pvt_nr_fault_cases = ARRAY_SIZE(pvt_fault_cases);
