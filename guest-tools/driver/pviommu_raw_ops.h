/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the PV-IOMMU driver offers its test module: commands on the ring, events, capabilities.
 *
 * Commands that are sent this way bypass the IOMMU core, so users must use their own contexts only.
 */
#ifndef _PVIOMMU_RAW_OPS_H
#define _PVIOMMU_RAW_OPS_H

#include "pviommu_types.h"

/**
 * struct pviommu_raw_ops - direct access to the first PV-IOMMU
 * @get: a reference to it, or NULL; while one is held, its removal waits
 * @put: gives the reference back
 * @submit: sends a command through ring 0; 0 or the device's negative errno, or -EIO once the
 *	device is given up.
 *	The payload and the sequence are copied back; of a posted command, only the sequence
 * @usage: what is in use
 * @profile: PVIOMMU_PROFILE_* that was selected
 * @has_tables: whether the tables of domains are the guest's
 * @capabilities: the capability area
 * @ring_entries: slots of ring 0
 * @event_position: the position that the next event will have
 * @next_event: the event at a position, which is advanced; waits for it. 0 or -ETIMEDOUT
 */
struct pviommu_raw_ops {
	struct pviommu *(*get)(void);
	void (*put)(struct pviommu *pv);
	int (*submit)(struct pviommu *pv, struct pviommu_command *command, enum pviommu_wait wait);
	int (*usage)(struct pviommu *pv, struct pviommu_usage *usage);
	u32 (*profile)(struct pviommu *pv);
	bool (*has_tables)(struct pviommu *pv);
	const struct pviommu_capabilities *(*capabilities)(struct pviommu *pv);
	u32 (*ring_entries)(struct pviommu *pv);
	u32 (*event_position)(struct pviommu *pv);
	int (*next_event)(struct pviommu *pv, u32 *position, struct pviommu_event *event,
			  unsigned int timeout_ms);
};

extern const struct pviommu_raw_ops pviommu_raw_ops;

#endif /* _PVIOMMU_RAW_OPS_H */
