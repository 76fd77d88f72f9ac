// SPDX-License-Identifier: GPL-2.0-only
/* Tests of the PV-IOMMU: posted commands, a full ring, waiting by interrupt. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/preempt.h>
#include <linux/timer.h>

#include "pviommu_test.h"

#define PVT_POSTED_ROUNDS	200
#define PVT_SLEEPER_ROUNDS	4
/* after this the device sleeps until its doorbell rings, and not for a bounded time */
#define PVT_SLEEPER_MS		600

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
		if (pvt_expect_fill(ktap, t, 0, pvt_iova(dfn), PVT_PAGE_SIZE, round))
			EXPECT(ktap, pvt_holds(pvt_page(t, page), round, PVT_PAGE_SIZE));
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

/**
 * struct pvt_interrupter - sends a command in the middle of another one
 * @timer: when
 * @t: what it sends to
 * @ran: whether it has run
 * @ret: the result
 */
struct pvt_interrupter {
	struct timer_list timer;
	struct pvt *t;
	bool ran;
	int ret;
};

static void pvt_interrupt(struct timer_list *timer)
{
	struct pvt_interrupter *own = container_of(timer, struct pvt_interrupter, timer);

	own->ret = pvt_noop(own->t, PVIOMMU_WAIT_BUSY);
	own->ran = true;
}

/*
 * A sender that finds the device asleep rings. Between the decision and the doorbell, which
 * debug_doorbell_us slows down, it is interrupted by another one that waits for the device too.
 */
static void pvt_interrupted_doorbell(struct ktap *ktap, void *subject, unsigned long rounds)
{
	struct pviommu_usage before, after;
	struct pvt_interrupter *own;
	struct pvt *t = subject;
	int ret;

	own = kzalloc(sizeof(*own), GFP_KERNEL);
	if (!EXPECT(ktap, own))
		return;
	own->t = t;
	timer_setup(&own->timer, pvt_interrupt, TIMER_PINNED);
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &before), 0);
	while (rounds-- && !ktap->failed) {
		msleep(PVT_SLEEPER_MS);
		own->ran = false;
		preempt_disable();
		mod_timer(&own->timer, jiffies + 1);
		ret = pvt_noop(own->t, PVIOMMU_WAIT_BUSY);
		preempt_enable();
		EXPECT_EQ(ktap, ret, 0);
		msleep(PVT_SLEEPER_MS / 10);
		EXPECT(ktap, own->ran);
		EXPECT_EQ(ktap, own->ret, 0);
	}
	timer_delete_sync(&own->timer);
	kfree(own);
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &after), 0);
	EXPECT(ktap, after.doorbells - before.doorbells >= PVT_SLEEPER_ROUNDS);
	EXPECT_EQ(ktap, after.rescues, before.rescues);
}

const struct ktap_case pvt_doorbell_cases[] = {
	{ "no doorbell is lost to who interrupts the one who rings", pvt_interrupted_doorbell,
	  PVT_SLEEPER_ROUNDS },
};

const unsigned int pvt_nr_doorbell_cases = ARRAY_SIZE(pvt_doorbell_cases);

const struct ktap_case pvt_ring_cases[] = {
	PVT_ATTACHED("a posted map is seen by the DMA that follows it", pvt_posted_map),
	PVT_CONTEXT("posted commands are carried out in order", pvt_posted_in_order),
	PVT_CONTEXT("a posted command that fails is an event", pvt_posted_fails),
	PVT_CONTEXT("a full ring makes room", pvt_ring_full),
	PVT_CONTEXT("waiting works with and without the interrupt", pvt_waits),
};

const unsigned int pvt_nr_ring_cases = ARRAY_SIZE(pvt_ring_cases);
