/* SPDX-License-Identifier: GPL-2.0-only */
/* Paravirtual IOMMU: what the parts of the driver share. */
#ifndef _PV_IOMMU_H
#define _PV_IOMMU_H

#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/iommu.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "pv_iommu_raw.h"

/*
 * The floor variant shows what the kernel itself costs: it maps and unmaps in its own tables and
 * leaves the ring store out. DMA does not work with it.
 */
#ifdef PV_IOMMU_FLOOR
#define PV_FLOOR	true
#else
#define PV_FLOOR	false
#endif

#define PV_RING_ENTRIES		1024
#define PV_EVENT_LOG_ENTRIES	256
#define PV_VECTORS		2	/* events, ring 0 */

/**
 * struct pv_ring - command ring 0
 * @lock: serialises submission and protects @producer and @taken
 * @guest: index words that the driver writes
 * @device: index words that the device writes
 * @slots: the slots, in the shared BAR
 * @doorbell: register to write when the device asks for it
 * @entries: number of slots, a power of two
 * @producer: slots submitted; the copy in @guest is never read back
 * @busy: slots whose waiter has not taken the result yet
 * @sleeper: serialises waiters that sleep, because there is one completion_event word
 * @wait: where the sleeping waiter sleeps
 * @broken: set for good when a command outlived its time
 */
struct pv_ring {
	spinlock_t lock;	/* submission */
	struct pviommu_guest_ring_line *guest;
	struct pviommu_device_ring_line *device;
	struct pv_command *slots;
	void __iomem *doorbell;
	u32 entries;
	u32 producer;
	DECLARE_BITMAP(busy, PV_RING_ENTRIES);
	struct mutex sleeper;	/* completion_event */
	wait_queue_head_t wait;
	bool broken;
};

/**
 * struct pv_event_ring - the event ring and the log that it is drained to
 * @guest: index words that the driver writes
 * @device: index words that the device writes
 * @records: the records, in the shared BAR
 * @consumer: events taken
 * @sequence: sequence that the next event should have
 * @lock: protects the log
 * @log: the last events
 * @logged: events logged since probe; also the position of the next one
 * @lost: events that a gap of the sequence showed to be missing
 * @wait: woken after each event
 */
struct pv_event_ring {
	struct pviommu_guest_event_line *guest;
	struct pviommu_device_event_line *device;
	struct pviommu_event *records;
	u32 consumer;
	u32 sequence;
	spinlock_t lock;	/* the log */
	struct pviommu_event log[PV_EVENT_LOG_ENTRIES];
	u32 logged;
	u32 lost;
	wait_queue_head_t wait;
};

/**
 * struct pv_profile - an interface of the device: how operations are put into slots
 * @name: what the module parameter calls it
 * @number: PVIOMMU_PROFILE_*
 * @feature: PVIOMMU_FEATURE_* that says whether the device has it
 * @init: what the device wants to be told before anything else, or NULL
 * @alloc: allocates an empty context
 * @free: frees a context to which nothing is attached
 * @reattach: moves a function to a context
 * @map: maps pages; @mapped counts them, also on error
 * @unmap: unmaps pages; @unmapped counts them, also on error
 *
 * Each returns 0 or the negative errno of the device. @map and @unmap do not sleep.
 */
struct pv_profile {
	const char *name;
	u32 number;
	u32 feature;
	int (*init)(struct pv_iommu *pv);
	int (*alloc)(struct pv_iommu *pv, u16 *ctx);
	int (*free)(struct pv_iommu *pv, u16 ctx);
	int (*reattach)(struct pv_iommu *pv, u32 sbdf, u16 ctx);
	int (*map)(struct pv_iommu *pv, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
		   u32 *mapped);
	int (*unmap)(struct pv_iommu *pv, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped);
};

/**
 * struct pv_iommu - one PV-IOMMU function
 * @iommu: what the IOMMU core knows of it
 * @pdev: its PCI function
 * @list: in the list of all PV-IOMMUs
 * @profile: the interface that was selected
 * @regs: trapped registers
 * @shared: shared memory
 * @instance: instance number; its endpoints carry the same
 * @caps: its capabilities
 * @ring: command ring
 * @events: event ring
 * @blocked_ctx: the empty context behind the blocked domain
 * @lock: protects @endpoints and the domain of each
 * @endpoints: functions that the IOMMU core handed over
 * @nr_endpoints: how many
 * @nr_domains: paging domains
 * @nr_tables: pages of their tables
 * @users: references that the raw operations hold
 * @idle: woken when @users falls to 0
 * @debugfs: its debugfs folder
 */
struct pv_iommu {
	struct iommu_device iommu;
	struct pci_dev *pdev;
	struct list_head list;
	const struct pv_profile *profile;
	void __iomem *regs;
	void *shared;
	u32 instance;
	struct pv_capabilities caps;
	struct pv_ring ring;
	struct pv_event_ring events;
	u16 blocked_ctx;
	struct mutex lock;	/* endpoints */
	struct list_head endpoints;
	atomic_t nr_endpoints;
	atomic_t nr_domains;
	atomic_t nr_tables;
	unsigned int users;
	wait_queue_head_t idle;
	struct dentry *debugfs;
};

/**
 * struct pv_endpoint - a PCI function behind the PV-IOMMU
 * @list: in the list of its PV-IOMMU
 * @pv: its PV-IOMMU
 * @dev: the function
 * @stream: stream id from its vendor capability
 * @sbdf: segment, bus, device and function
 * @domain: the domain it is attached to, or NULL
 */
struct pv_endpoint {
	struct list_head list;
	struct pv_iommu *pv;
	struct device *dev;
	u32 stream;
	u32 sbdf;
	struct iommu_domain *domain;
};

/**
 * struct pv_table - radix table of a domain, from frames of the device to frames of the guest
 * @root: the table of the highest level
 * @levels: levels, 9 bits each
 * @pages: counts the pages of all tables of the PV-IOMMU
 */
struct pv_table {
	u64 *root;
	unsigned int levels;
	atomic_t *pages;
};

/**
 * struct pv_domain - a paging domain
 * @domain: what the IOMMU core knows of it
 * @pv: its PV-IOMMU
 * @ctx: its context
 * @table: what is mapped
 */
struct pv_domain {
	struct iommu_domain domain;
	struct pv_iommu *pv;
	u16 ctx;
	struct pv_table table;
};

static inline u32 pv_sbdf(struct pci_dev *pdev)
{
	return (u32)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev);
}

static inline struct device *pv_dev(struct pv_iommu *pv)
{
	return &pv->pdev->dev;
}

/* pv_iommu_pci.c */
struct pv_iommu *pv_iommu_find(u32 instance);
struct pv_iommu *pv_iommu_get_first(void);
void pv_iommu_put(struct pv_iommu *pv);

/* pv_iommu_ring.c */
int pv_ring_init(struct pv_iommu *pv);
int pv_ring_start(struct pv_iommu *pv);
void pv_ring_stop(struct pv_iommu *pv);
irqreturn_t pv_ring_interrupt(int irq, void *data);
u32 pv_ring_in_flight(struct pv_iommu *pv);
int pv_submit(struct pv_iommu *pv, struct pv_command *command, enum pv_wait wait);

/* pv_iommu_xen_2024.c, pv_iommu_xen_v7.c */
extern const struct pv_profile pv_xen_2024;
extern const struct pv_profile pv_xen_v7;

/* pv_iommu_ops.c */
const struct pv_profile *pv_profile_find(const char *name);
int pv_op_init(struct pv_iommu *pv);
int pv_op_alloc_context(struct pv_iommu *pv, u16 *ctx);
int pv_op_free_context(struct pv_iommu *pv, u16 ctx);
int pv_op_reattach(struct pv_iommu *pv, u32 sbdf, u16 ctx);
int pv_op_map(struct pv_iommu *pv, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags, u32 *mapped);
int pv_op_unmap(struct pv_iommu *pv, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped);
int pv_op_bind(struct pv_iommu *pv, u32 sbdf, u32 stream);
int pv_op_unbind(struct pv_iommu *pv, u32 sbdf);
int pv_op_usage(struct pv_iommu *pv, struct pv_usage *usage);

/* pv_iommu_table.c */
int pv_table_init(struct pv_table *table, unsigned int aperture_bits, atomic_t *pages);
void pv_table_free(struct pv_table *table);
int pv_table_prepare(struct pv_table *table, u64 dfn, u64 nr_pages, gfp_t gfp);
void pv_table_set(struct pv_table *table, u64 dfn, u64 gfn, u64 nr_pages);
void pv_table_clear(struct pv_table *table, u64 dfn, u64 nr_pages);
bool pv_table_lookup(struct pv_table *table, u64 dfn, u64 *gfn);
u64 pv_table_run(struct pv_table *table, u64 dfn, u64 nr_pages);

/* pv_iommu_domain.c */
extern const struct iommu_ops pv_iommu_ops;

/* pv_iommu_capabilities.c */
int pv_capabilities_read(struct pv_iommu *pv);
int pv_endpoint_capability(struct pci_dev *pdev, u32 *instance, u32 *stream);

/* pv_iommu_events.c */
void pv_events_init(struct pv_iommu *pv);
irqreturn_t pv_events_interrupt(int irq, void *data);
u32 pv_event_position(struct pv_iommu *pv);
int pv_next_event(struct pv_iommu *pv, u32 *position, struct pviommu_event *event,
		  unsigned int timeout_ms);
const char *pv_event_reason(u16 reason);

/* pv_iommu_debugfs.c */
void pv_debugfs_init(void);
void pv_debugfs_exit(void);
void pv_debugfs_add(struct pv_iommu *pv);
void pv_debugfs_remove(struct pv_iommu *pv);

#endif /* _PV_IOMMU_H */
