// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: posted commands, a full ring, waiting by interrupt. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include "pviommu_test.h"

#define PVT_POSTED_ROUNDS	200

static int pvt_noop(struct pvt *t, enum pviommu_wait wait)
{
	struct pviommu_command command = t->profile->command(0);

	return pviommu_raw_ops.submit(t->pv, &command, wait);
}

static int pvt_post_map(struct pvt *t, u16 ctx, u64 dfn, unsigned int page)
{
	return pvt_post(t, t->profile->map_command(ctx, dfn, t->gfn + page, 1, PVT_RW));
}

static int pvt_post_unmap(struct pvt *t, u16 ctx, u64 dfn)
{
	return pvt_post(t, t->profile->unmap_command(ctx, dfn, 1));
}

/* The map of each round, and the unmap of the one before, are posted right before the DMA. */
static void pvt_posted_map(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	unsigned int round, page;
	u64 dfn, before;

	for (round = 0; round < PVT_POSTED_ROUNDS && !ktap->failed; round++) {
		dfn = PVT_DFN + round % 2;
		before = PVT_DFN + !(round % 2);
		page = round % PVT_PAGES;
		if (round)
			EXPECT_EQ(ktap, pvt_post_unmap(t, ctx, before), 0);
		EXPECT_EQ(ktap, pvt_post_map(t, ctx, dfn, page), 0);
		if (pvt_expect_fill(ktap, t, 0, pvt_iova(dfn), PAGE_SIZE, round))
			EXPECT(ktap, pvt_holds(pvt_page(t, page), round, PAGE_SIZE));
	}
	if (ktap->failed)
		ktap_print(ktap, "# in round %u\n", round - 1);
}

static void pvt_posted_in_order(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	unsigned int page;

	EXPECT_EQ(ktap, pvt_post_map(t, ctx, PVT_DFN, 0), 0);
	for (page = 1; page < PVT_PAGES && !ktap->failed; page++) {
		EXPECT_EQ(ktap, pvt_post_unmap(t, ctx, PVT_DFN), 0);
		EXPECT_EQ(ktap, pvt_post_map(t, ctx, PVT_DFN, page), 0);
	}
	EXPECT_EQ(ktap, pvt_noop(t, PVIOMMU_WAIT_BUSY), 0);
	pvt_expect_mapped(ktap, t, ctx, PVT_DFN, t->gfn + PVT_PAGES - 1, 1);
}

static void pvt_posted_fails(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pviommu_command command;
	u32 position = pviommu_raw_ops.event_position(t->pv);
	struct pviommu_event event;

	command = t->profile->map_command(PVT_NO_CONTEXT, PVT_DFN, t->gfn, 1, PVT_RW);
	EXPECT_EQ(ktap, pviommu_raw_ops.submit(t->pv, &command, PVIOMMU_POSTED), 0);
	if (!EXPECT_EQ(ktap, pvt_event(t, &position, &event), 0))
		return;
	EXPECT_EQ(ktap, le16_to_cpu(event.reason), PVIOMMU_EVENT_POSTED_FAILED);
	EXPECT_EQ(ktap, (s32)le32_to_cpu(event.result), -EINVAL);
	EXPECT_EQ(ktap, le32_to_cpu(event.slot), le32_to_cpu(command.slot.sequence));
}

static void pvt_ring_full(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	u32 slots = 2 * pviommu_raw_ops.ring_entries(t->pv), i;
	struct pviommu_usage usage;

	for (i = 0; i < slots && !ktap->failed; i++)
		EXPECT_EQ(ktap, pvt_noop(t, PVIOMMU_POSTED), 0);
	EXPECT_EQ(ktap, pvt_noop(t, PVIOMMU_WAIT_BUSY), 0);
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &usage), 0);
	EXPECT_EQ(ktap, usage.slots_in_flight, 0);
}

static void pvt_waits(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	unsigned int i;

	for (i = 0; i < 8; i++)
		EXPECT_EQ(ktap, pvt_noop(t, i % 2 ? PVIOMMU_WAIT_SLEEP : PVIOMMU_WAIT_BUSY), 0);
}

const struct ktap_case pvt_ring_cases[] = {
	PVT_ATTACHED("a posted map is seen by the DMA that follows it", pvt_posted_map),
	PVT_CONTEXT("posted commands are carried out in order", pvt_posted_in_order),
	PVT_CONTEXT("a posted command that fails is an event", pvt_posted_fails),
	PVT_CONTEXT("a full ring makes room", pvt_ring_full),
	PVT_CONTEXT("waiting works with and without the interrupt", pvt_waits),
};

const unsigned int pvt_nr_ring_cases = ARRAY_SIZE(pvt_ring_cases);
