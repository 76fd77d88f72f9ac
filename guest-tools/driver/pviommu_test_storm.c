// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the PV-IOMMU: more faults than there is room for. The driver does not drain events
 * meanwhile, so that the event ring is certain to be full.
 */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/interrupt.h>
#include <linux/pci.h>

#include "pviommu_test.h"

#define PVT_STORM_BATCHES	6

/* Refused requests, as many at a time as the engine takes; each descriptor says so. */
static void pvt_storm(struct ktap *ktap, struct pvt *t, struct pvdt_request *requests)
{
	unsigned int batch, i;
	u64 iova;

	for (batch = 0; batch < PVT_STORM_BATCHES && !ktap->failed; batch++) {
		iova = pvt_iova(PVT_DFN + batch * PVDT_ENTRIES);
		for (i = 0; i < PVDT_ENTRIES; i++)
			requests[i] = pvt_fill(iova + i * PVT_PAGE_SIZE, 8, 0x61);
		EXPECT_EQ(ktap, pvdt_client_ops.run_many(t->engine[0], requests, PVDT_ENTRIES,
							 PVDT_POLL), 0);
		for (i = 0; i < PVDT_ENTRIES && !ktap->failed; i++) {
			EXPECT_EQ(ktap, requests[i].status, PVDT_STATUS_FAULT);
			EXPECT_EQ(ktap, requests[i].detail, iova + i * PVT_PAGE_SIZE);
			EXPECT_EQ(ktap, requests[i].reason, PVIOMMU_EVENT_NOT_MAPPED);
		}
	}
}

/* The first events are in the ring, complete and in order; the rest are only counted. */
static void pvt_expect_first_events(struct ktap *ktap, struct pvt *t, u32 position)
{
	struct pviommu_event event;
	unsigned int i;

	for (i = 0; i < PVIOMMU_EVENT_ENTRIES && !ktap->failed; i++) {
		if (!EXPECT_EQ(ktap, pvt_event(t, &position, &event), 0))
			return;
		EXPECT_EQ(ktap, le64_to_cpu(event.iova), pvt_iova(PVT_DFN + i));
		EXPECT_EQ(ktap, le32_to_cpu(event.sbdf), t->sbdf[0]);
	}
}

static void pvt_works_afterwards(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	struct pvdt_request fill = pvt_fill(pvt_iova(PVT_DFN + 1), 8, 0x62);
	u32 done;

	EXPECT(ktap, pvt_unchanged(t));
	EXPECT_EQ(ktap, pvt_map(t, ctx, PVT_DFN, t->gfn, 1, PVT_RW, &done), 0);
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_DFN), PVT_PAGE_SIZE, 0x63);
	EXPECT(ktap, pvt_holds(pvt_page(t, 0), 0x63, PVT_PAGE_SIZE));
	pvt_expect_fault(ktap, t, 0, &fill, pvt_iova(PVT_DFN + 1), PVIOMMU_EVENT_NOT_MAPPED,
			 PVIOMMU_ACCESS_WRITE, ctx);
}

static void pvt_fault_storm(struct ktap *ktap, struct pvt *t, u16 ctx)
{
	const u32 refused = PVT_STORM_BATCHES * PVDT_ENTRIES;
	u32 position = pviommu_raw_ops.event_position(t->pv);
	struct pviommu_usage before, after;
	struct pvdt_request *requests;
	struct pci_dev *pdev;
	int irq;

	pdev = pci_get_device(PVIOMMU_VENDOR_ID, PVIOMMU_DEVICE_ID, NULL);
	if (!EXPECT(ktap, pdev))
		return;
	irq = pci_irq_vector(pdev, PVIOMMU_VECTOR_EVENTS);
	requests = kcalloc(PVDT_ENTRIES, sizeof(*requests), GFP_KERNEL);
	if (!EXPECT(ktap, requests) || !EXPECT(ktap, irq > 0))
		goto out;
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &before), 0);
	disable_irq(irq);
	pvt_storm(ktap, t, requests);
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &after), 0);
	enable_irq(irq);
	EXPECT_EQ(ktap, after.events_lost - before.events_lost, refused - PVIOMMU_EVENT_ENTRIES);
	pvt_expect_first_events(ktap, t, position);
	pvt_works_afterwards(ktap, t, ctx);
	/* these are not leaks */
	t->before.events_lost += refused - PVIOMMU_EVENT_ENTRIES;
out:
	kfree(requests);
	pci_dev_put(pdev);
}

const struct ktap_case pvt_storm_cases[] = {
	PVT_ATTACHED("a storm of faults fills the event ring, and the lost ones are counted",
		     pvt_fault_storm),
};

const unsigned int pvt_nr_storm_cases = ARRAY_SIZE(pvt_storm_cases);
