// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the event ring. Faults are logged, kept for debugfs and handed to the IOMMU
 * core, which has a tracepoint for them.
 */

#define pr_fmt(fmt) "pv_iommu: " fmt

#include <linux/interrupt.h>
#include <linux/jiffies.h>

#include "pv_iommu.h"

const char *pv_event_reason(u16 reason)
{
	switch (reason) {
	case PVIOMMU_EVENT_NOT_MAPPED:
		return "not-mapped";
	case PVIOMMU_EVENT_PERMISSION:
		return "permission";
	case PVIOMMU_EVENT_OUT_OF_APERTURE:
		return "out-of-aperture";
	case PVIOMMU_EVENT_RESERVED:
		return "reserved";
	case PVIOMMU_EVENT_BLOCKED:
		return "blocked";
	case PVIOMMU_EVENT_NOT_RAM:
		return "not-ram";
	case PVIOMMU_EVENT_POSTED_FAILED:
		return "posted-failed";
	case PVIOMMU_EVENT_RING_BROKEN:
		return "ring-broken";
	default:
		return "unknown";
	}
}

static bool pv_event_is_fault(const struct pviommu_event *event)
{
	return le16_to_cpu(event->reason) < PVIOMMU_EVENT_POSTED_FAILED;
}

static void pv_event_print(struct pv_iommu *pv, const struct pviommu_event *event)
{
	u16 reason = le16_to_cpu(event->reason);
	u32 sbdf = le32_to_cpu(event->sbdf);

	if (pv_event_is_fault(event))
		dev_warn_ratelimited(pv_dev(pv), "DMA refused: %s, %04x:%02x:%02x.%d ctx %u iova %#llx %s\n",
				     pv_event_reason(reason), sbdf >> 16, PCI_BUS_NUM(sbdf),
				     PCI_SLOT(sbdf), PCI_FUNC(sbdf), le16_to_cpu(event->ctx_no),
				     le64_to_cpu(event->iova),
				     event->access & PVIOMMU_ACCESS_WRITE ? "write" : "read");
	else
		dev_warn_ratelimited(pv_dev(pv), "%s: slot %u ctx %u result %d\n",
				     pv_event_reason(reason), le32_to_cpu(event->slot),
				     le16_to_cpu(event->ctx_no), (s32)le32_to_cpu(event->result));
}

static void pv_event_report(struct pv_iommu *pv, const struct pviommu_event *event)
{
	int flags = event->access & PVIOMMU_ACCESS_WRITE ? IOMMU_FAULT_WRITE : IOMMU_FAULT_READ;
	struct pv_endpoint *ep;

	mutex_lock(&pv->lock);
	list_for_each_entry(ep, &pv->endpoints, list) {
		if (ep->stream != le32_to_cpu(event->stream) || !ep->domain)
			continue;
		report_iommu_fault(ep->domain, ep->dev, le64_to_cpu(event->iova), flags);
		break;
	}
	mutex_unlock(&pv->lock);
}

static void pv_event_log(struct pv_iommu *pv, const struct pviommu_event *event)
{
	struct pv_event_ring *ring = &pv->events;
	u32 sequence = le32_to_cpu(event->sequence);
	u32 missing = sequence - ring->sequence;

	spin_lock(&ring->lock);
	ring->log[ring->logged % PV_EVENT_LOG_ENTRIES] = *event;
	ring->lost += missing;
	WRITE_ONCE(ring->logged, ring->logged + 1);
	spin_unlock(&ring->lock);
	ring->sequence = sequence + 1;
	if (missing)
		dev_warn_ratelimited(pv_dev(pv), "%u events lost before event %u\n", missing,
				     sequence);
	wake_up_all(&ring->wait);
}

static void pv_events_drain(struct pv_iommu *pv, u32 producer)
{
	struct pv_event_ring *ring = &pv->events;
	struct pviommu_event event;

	while (ring->consumer != producer) {
		event = ring->records[ring->consumer % PVIOMMU_EVENT_ENTRIES];
		ring->consumer++;
		/* The record is copied; the device may write to it again. */
		virt_store_release(&ring->guest->consumer, cpu_to_le32(ring->consumer));
		/* before it is logged, so that who waited for the event finds the rest done */
		pv_event_print(pv, &event);
		if (pv_event_is_fault(&event))
			pv_event_report(pv, &event);
		pv_event_log(pv, &event);
	}
}

static u32 pv_events_producer(struct pv_event_ring *ring)
{
	/* Pairs with the device, which writes a record before it moves the index past it. */
	return le32_to_cpu(virt_load_acquire(&ring->device->producer));
}

irqreturn_t pv_events_interrupt(int irq, void *data)
{
	struct pv_iommu *pv = data;
	struct pv_event_ring *ring = &pv->events;
	u32 producer = pv_events_producer(ring);

	do {
		if (producer - ring->consumer > PVIOMMU_EVENT_ENTRIES) {
			dev_err_ratelimited(pv_dev(pv), "impossible event index %u after %u\n",
					    producer, ring->consumer);
			return IRQ_HANDLED;
		}
		pv_events_drain(pv, producer);
		WRITE_ONCE(ring->guest->arm, cpu_to_le32(ring->consumer));
		/* The device moves producer, then looks at arm: one side sees the other's store. */
		mb();
		producer = pv_events_producer(ring);
	} while (producer != ring->consumer);
	return IRQ_HANDLED;
}

/*
 * The device is reset and has zeroed the index words: the ring is empty, and the first event raises
 * an interrupt.
 */
void pv_events_init(struct pv_iommu *pv)
{
	struct pv_event_ring *ring = &pv->events;

	spin_lock_init(&ring->lock);
	init_waitqueue_head(&ring->wait);
	ring->guest = pv->shared + PVIOMMU_EVENT_INDEX_OFFSET;
	ring->device = (void *)ring->guest + PVIOMMU_CACHE_LINE;
	ring->records = pv->shared + PVIOMMU_EVENT_OFFSET;
}

u32 pv_event_position(struct pv_iommu *pv)
{
	return READ_ONCE(pv->events.logged);
}

/**
 * pv_next_event - takes an event from the log
 * @pv: the PV-IOMMU
 * @position: which one; moves on. One that the log has dropped already is replaced by the oldest
 * @event: where it goes
 * @timeout_ms: how long to wait for it
 *
 * Return: 0, or -ETIMEDOUT.
 */
int pv_next_event(struct pv_iommu *pv, u32 *position, struct pviommu_event *event,
		  unsigned int timeout_ms)
{
	struct pv_event_ring *ring = &pv->events;

	if (!wait_event_timeout(ring->wait, (s32)(pv_event_position(pv) - *position) > 0,
				msecs_to_jiffies(timeout_ms)))
		return -ETIMEDOUT;
	spin_lock(&ring->lock);
	if (ring->logged - *position > PV_EVENT_LOG_ENTRIES)
		*position = ring->logged - PV_EVENT_LOG_ENTRIES;
	*event = ring->log[*position % PV_EVENT_LOG_ENTRIES];
	++*position;
	spin_unlock(&ring->lock);
	return 0;
}
