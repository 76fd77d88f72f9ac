// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravirtual IOMMU: the event ring. Faults are logged, kept for debugfs and reported to the IOMMU
 * core, which has a tracepoint for them.
 */

#define pr_fmt(fmt) "pviommu: " fmt

#include <linux/interrupt.h>
#include <linux/jiffies.h>

#include "pviommu.h"

const char *pviommu_event_reason(u16 reason)
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
	case PVIOMMU_EVENT_ABORTED:
		return "aborted";
	case PVIOMMU_EVENT_POSTED_FAILED:
		return "posted-failed";
	case PVIOMMU_EVENT_RING_BROKEN:
		return "ring-broken";
	default:
		return "unknown";
	}
}

static bool pviommu_event_is_fault(const struct pviommu_event *event)
{
	return le16_to_cpu(event->reason) < PVIOMMU_EVENT_POSTED_FAILED;
}

static void pviommu_event_print(struct pviommu *pv, const struct pviommu_event *event)
{
	u16 reason = le16_to_cpu(event->reason);
	u32 sbdf = le32_to_cpu(event->sbdf);

	if (pviommu_event_is_fault(event))
		dev_warn_ratelimited(pviommu_dev(pv), "DMA refused: %s, %04x:%02x:%02x.%d ctx %u iova %#llx %s\n",
				     pviommu_event_reason(reason), sbdf >> 16, PCI_BUS_NUM(sbdf),
				     PCI_SLOT(sbdf), PCI_FUNC(sbdf), le16_to_cpu(event->ctx_no),
				     le64_to_cpu(event->iova),
				     event->access & PVIOMMU_ACCESS_WRITE ? "write" : "read");
	else
		dev_warn_ratelimited(pviommu_dev(pv), "%s: slot %u ctx %u result %d\n",
				     pviommu_event_reason(reason), le32_to_cpu(event->slot),
				     le16_to_cpu(event->ctx_no), (s32)le32_to_cpu(event->result));
}

static void pviommu_event_report(struct pviommu *pv, const struct pviommu_event *event)
{
	int flags = event->access & PVIOMMU_ACCESS_WRITE ? IOMMU_FAULT_WRITE : IOMMU_FAULT_READ;
	struct pviommu_endpoint *ep;

	mutex_lock(&pv->lock);
	list_for_each_entry(ep, &pv->endpoints, list) {
		if (ep->stream != le32_to_cpu(event->stream) || !ep->domain)
			continue;
		report_iommu_fault(ep->domain, ep->dev, le64_to_cpu(event->iova), flags);
		break;
	}
	mutex_unlock(&pv->lock);
}

static void pviommu_event_log(struct pviommu *pv, const struct pviommu_event *event)
{
	struct pviommu_event_ring *ring = &pv->events;
	u32 sequence = le32_to_cpu(event->sequence);
	u32 missing = sequence - ring->sequence;

	spin_lock(&ring->lock);
	ring->log[ring->logged % PVIOMMU_EVENT_LOG_ENTRIES] = *event;
	ring->lost += missing;
	WRITE_ONCE(ring->logged, ring->logged + 1);
	spin_unlock(&ring->lock);
	ring->sequence = sequence + 1;
	if (missing)
		dev_warn_ratelimited(pviommu_dev(pv), "%u events lost before event %u\n", missing,
				     sequence);
	wake_up_all(&ring->wait);
}

static void pviommu_events_drain(struct pviommu *pv, u32 producer)
{
	struct pviommu_event_ring *ring = &pv->events;
	struct pviommu_event event;

	while (ring->consumer != producer) {
		event = ring->records[ring->consumer % PVIOMMU_EVENT_ENTRIES];
		ring->consumer++;
		/* The record is copied; the device may now overwrite it. */
		virt_store_release(&ring->guest->consumer, cpu_to_le32(ring->consumer));
		/* before it is logged, so that all this is done when a waiter sees the event */
		pviommu_event_print(pv, &event);
		if (pviommu_event_is_fault(&event))
			pviommu_event_report(pv, &event);
		pviommu_event_log(pv, &event);
	}
}

static u32 pviommu_events_producer(struct pviommu_event_ring *ring)
{
	/* Pairs with the device, which writes a record before it moves the index past it. */
	return le32_to_cpu(virt_load_acquire(&ring->device->producer));
}

irqreturn_t pviommu_events_interrupt(int irq, void *data)
{
	struct pviommu *pv = data;
	struct pviommu_event_ring *ring = &pv->events;
	u32 producer = pviommu_events_producer(ring);

	do {
		if (producer - ring->consumer > PVIOMMU_EVENT_ENTRIES) {
			dev_err_ratelimited(pviommu_dev(pv), "impossible event index %u after %u\n",
					    producer, ring->consumer);
			return IRQ_HANDLED;
		}
		pviommu_events_drain(pv, producer);
		WRITE_ONCE(ring->guest->arm, cpu_to_le32(ring->consumer));
		/*
		 * The device writes producer, then reads arm: at least one side sees the other's
		 * store.
		 */
		mb();
		producer = pviommu_events_producer(ring);
	} while (producer != ring->consumer);
	return IRQ_HANDLED;
}

/*
 * The device is reset and has zeroed the index words: the ring is empty, and the first event raises
 * an interrupt.
 */
void pviommu_events_init(struct pviommu *pv)
{
	struct pviommu_event_ring *ring = &pv->events;

	spin_lock_init(&ring->lock);
	init_waitqueue_head(&ring->wait);
	ring->guest = pv->shared + PVIOMMU_EVENT_INDEX_OFFSET;
	ring->device = (void *)ring->guest + PVIOMMU_CACHE_LINE;
	ring->records = pv->shared + PVIOMMU_EVENT_OFFSET;
}

u32 pviommu_event_position(struct pviommu *pv)
{
	return READ_ONCE(pv->events.logged);
}

/**
 * pviommu_next_event - takes an event from the log
 * @pv: the PV-IOMMU
 * @position: which one; advanced. If the log has dropped that one, the oldest is taken
 * @event: where it goes
 * @timeout_ms: how long to wait for it
 *
 * Return: 0, or -ETIMEDOUT.
 */
int pviommu_next_event(struct pviommu *pv, u32 *position, struct pviommu_event *event,
		       unsigned int timeout_ms)
{
	struct pviommu_event_ring *ring = &pv->events;

	if (!wait_event_timeout(ring->wait, (s32)(pviommu_event_position(pv) - *position) > 0,
				msecs_to_jiffies(timeout_ms)))
		return -ETIMEDOUT;
	spin_lock(&ring->lock);
	if (ring->logged - *position > PVIOMMU_EVENT_LOG_ENTRIES)
		*position = ring->logged - PVIOMMU_EVENT_LOG_ENTRIES;
	*event = ring->log[*position % PVIOMMU_EVENT_LOG_ENTRIES];
	++*position;
	spin_unlock(&ring->lock);
	return 0;
}
