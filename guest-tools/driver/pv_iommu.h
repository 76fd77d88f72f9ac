/* SPDX-License-Identifier: GPL-2.0-only */
/* Paravirtual IOMMU: what the parts of the driver share. */
#ifndef _PV_IOMMU_H
#define _PV_IOMMU_H

#include <linux/atomic.h>
#include <linux/cache.h>
#include <linux/iommu.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sizes.h>
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
#define PV_RING_ALIGNMENT	SZ_4K
#define PV_EVENT_LOG_ENTRIES	256
#define PV_PENDING_MAPS		16

/* kinds of entries of a table; the rest of an entry is the guest frame */
#define PV_ENTRY_MAPPED		BIT_ULL(63)
#define PV_ENTRY_CLAIMED	BIT_ULL(62)
#define PV_ENTRY_KIND		(PV_ENTRY_MAPPED | PV_ENTRY_CLAIMED)

/**
 * struct pv_answer - a command whose outcome is taken from its slot
 * @command: the command, and later its outcome
 * @index: its index on the ring
 * @taken: whether @command has the outcome
 */
struct pv_answer {
	struct pv_command command;
	u32 index;
	bool taken;
};

/**
 * struct pv_ring - a command ring
 * @lock: serialises submission; protects all fields from @producer to @doorbells
 * @pv: its PV-IOMMU
 * @guest: index words that the driver writes
 * @device: index words that the device writes
 * @slots: the slots, in the shared BAR
 * @doorbell: register to write when the device asks for it
 * @place: first byte of @slots in the shared BAR
 * @entries: number of slots, a power of two
 * @answers: for each slot, who wants its outcome, or NULL
 * @producer: slots submitted; the copy in @guest is never read back
 * @completed: slots completed, when the device's word was last read
 * @notified: slots up to which the device's wish for a doorbell was looked at
 * @posted: commands sent that nobody waits for
 * @waited: commands sent whose outcome is waited for
 * @doorbells: doorbells rung
 * @sleeper: serialises waiters that sleep, because there is one completion_event word
 * @wait: where the sleeping waiter sleeps
 * @name: name of its interrupt
 */
struct pv_ring {
	spinlock_t lock;	/* submission */
	struct pv_iommu *pv;
	struct pviommu_guest_ring_line *guest;
	struct pviommu_device_ring_line *device;
	struct pv_command *slots;
	void __iomem *doorbell;
	u32 place;
	u32 entries;
	struct pv_answer **answers;
	u32 producer;
	u32 completed;
	u32 notified;
	u64 posted;
	u64 waited;
	u64 doorbells;
	struct mutex sleeper;	/* completion_event */
	wait_queue_head_t wait;
	char name[sizeof("pv_iommu-ring") + 10];
} ____cacheline_aligned_in_smp;

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
 * @map: makes the command that maps pages
 * @unmap: makes the command that unmaps pages
 * @mapped: pages that a map has mapped, from its outcome, also on error
 *
 * @init, @alloc, @free and @reattach sleep and return 0 or the negative errno of the device.
 */
struct pv_profile {
	const char *name;
	u32 number;
	u32 feature;
	int (*init)(struct pv_iommu *pv);
	int (*alloc)(struct pv_iommu *pv, u16 *ctx);
	int (*free)(struct pv_iommu *pv, u16 ctx);
	int (*reattach)(struct pv_iommu *pv, u32 sbdf, u16 ctx);
	void (*map)(struct pv_command *command, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages,
		    u32 flags);
	void (*unmap)(struct pv_command *command, u16 ctx, u64 dfn, u32 nr_pages);
	u32 (*mapped)(const struct pv_command *command);
};

/**
 * struct pv_frames - whole pages within ranges of the capability area
 * @nr: entries of @ranges
 * @ranges: frames, the last one included
 */
struct pv_frames {
	unsigned int nr;
	struct pv_range ranges[PV_MAX_RANGES];
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
 * @dfns: device frames that may be mapped
 * @gfns: guest frames that may be mapped to
 * @rings: command rings
 * @nr_rings: how many
 * @given_up: set for good when a command outlived its time
 * @no_reserve: whether the device does not know RESERVE
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
	struct pv_frames dfns;
	struct pv_frames gfns;
	struct pv_ring *rings;
	unsigned int nr_rings;
	bool given_up;
	bool no_reserve;
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
 * @nr: its tables
 * @credit: pages of the device's pool that its context may count on
 * @pages: counts the pages of all tables of the PV-IOMMU
 * @lock: taken to change how a lowest table is kept, see pv_iommu_table.c
 */
struct pv_table {
	u64 *root;
	unsigned int levels;
	atomic_t nr;
	u32 credit;
	atomic_t *pages;
	spinlock_t lock;	/* see above */
};

/**
 * struct pv_pending - a map whose outcome nobody has asked for yet
 * @state: what becomes of it
 * @answer: the command
 * @dfn: first page
 * @gfn: first frame
 * @nr_pages: how many
 */
struct pv_pending {
	enum {
		PV_PENDING_FREE,
		PV_PENDING_SENT,
		PV_PENDING_TAKING,
	} state;
	struct pv_answer answer;
	u64 dfn;
	u64 gfn;
	u32 nr_pages;
};

/**
 * struct pv_domain - a paging domain
 * @domain: what the IOMMU core knows of it
 * @pv: its PV-IOMMU
 * @ctx: its context
 * @ring: the ring of that context
 * @table: what is mapped
 * @lock: protects the credit of @table and what follows
 * @asked: pages that the device was asked for last; never less than before
 * @refused: whether the pool had no pages for the credit
 * @retry: when to ask for it again, in jiffies
 * @nr_pending: entries of @pending that are not free
 * @pending: maps sent, in domains that do not belong to the DMA API
 */
struct pv_domain {
	struct iommu_domain domain;
	struct pv_iommu *pv;
	u16 ctx;
	struct pv_ring *ring;
	struct pv_table table;
	spinlock_t lock;	/* credit and pending maps */
	u32 asked;
	bool refused;
	unsigned long retry;
	unsigned int nr_pending;
	struct pv_pending pending[PV_PENDING_MAPS];
};

static inline u32 pv_sbdf(struct pci_dev *pdev)
{
	return (u32)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev);
}

static inline struct device *pv_dev(struct pv_iommu *pv)
{
	return &pv->pdev->dev;
}

static inline bool pv_given_up(struct pv_iommu *pv)
{
	return READ_ONCE(pv->given_up);
}

/* Whether the device has reserved all the tables that the domain can need for what it has. */
static inline bool pv_table_covered(const struct pv_table *table)
{
	return atomic_read(&table->nr) <= READ_ONCE(table->credit);
}

/* By hand, because what compilers make of memset() takes longer for so few words. */
static inline void pv_command_clear(struct pv_command *command)
{
	u64 *word = (u64 *)command;

	BUILD_BUG_ON(sizeof(*command) != 8 * sizeof(*word));
	word[0] = 0;
	word[1] = 0;
	word[2] = 0;
	word[3] = 0;
	word[4] = 0;
	word[5] = 0;
	word[6] = 0;
	word[7] = 0;
}

/* Whether all pages lie within one of the ranges. */
static inline bool pv_frames_hold(const struct pv_frames *frames, u64 first, u64 nr_pages)
{
	u64 last = first + nr_pages - 1;
	unsigned int i;

	for (i = 0; i < frames->nr; i++)
		if (first >= frames->ranges[i].start && last <= frames->ranges[i].last)
			return last >= first;
	return false;
}

/* pv_iommu_pci.c */
struct pv_iommu *pv_iommu_find(u32 instance);
struct pv_iommu *pv_iommu_get_first(void);
void pv_iommu_put(struct pv_iommu *pv);

/* pv_iommu_rings.c */
int pv_rings_init(struct pv_iommu *pv);
void pv_rings_free(struct pv_iommu *pv);
int pv_rings_start(struct pv_iommu *pv);
void pv_rings_stop(struct pv_iommu *pv);
void pv_rings_wake(struct pv_iommu *pv);
void pv_rings_sync(struct pv_iommu *pv);
struct pv_ring *pv_ring_of(struct pv_iommu *pv, u16 ctx);
int pv_request_irqs(struct pv_iommu *pv);
void pv_free_irqs(struct pv_iommu *pv);

/* pv_iommu_ring.c */
int pv_ring_post_map(struct pv_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags);
int pv_ring_post_unmap(struct pv_domain *own, u64 dfn, u32 nr_pages);
int pv_ring_send(struct pv_ring *ring, struct pv_answer *answer, bool notify);
int pv_ring_take(struct pv_ring *ring, struct pv_answer *answer, enum pv_wait wait);
u32 pv_ring_notify(struct pv_ring *ring);
void pv_ring_sync(struct pv_ring *ring);
u32 pv_ring_in_flight(struct pv_ring *ring);
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
int pv_op_map_send(struct pv_domain *own, struct pv_answer *answer, u64 dfn, u64 gfn,
		   u32 nr_pages, u32 flags);
int pv_op_map_take(struct pv_domain *own, struct pv_answer *answer, u32 nr_pages, u32 *mapped);
void pv_op_sync(struct pv_domain *own);
int pv_op_reserve_send(struct pv_domain *own, struct pv_answer *answer, u32 pages);
int pv_op_reserve_take(struct pv_domain *own, struct pv_answer *answer);
int pv_op_bind(struct pv_iommu *pv, u32 sbdf, u32 stream);
int pv_op_unbind(struct pv_iommu *pv, u32 sbdf);
int pv_op_usage(struct pv_iommu *pv, struct pv_usage *usage);

/* pv_iommu_table.c */
int pv_table_init(struct pv_table *table, unsigned int aperture_bits, atomic_t *pages);
void pv_table_free(struct pv_table *table);
int pv_table_prepare(struct pv_table *table, u64 dfn, u64 nr_pages, gfp_t gfp);
int pv_table_fill(struct pv_table *table, u64 dfn, u64 nr_pages, u64 value, gfp_t gfp);
void pv_table_set(struct pv_table *table, u64 dfn, u64 nr_pages, u64 value);
void pv_table_clear(struct pv_table *table, u64 dfn, u64 nr_pages);
u64 pv_table_clear_run(struct pv_table *table, u64 dfn, u64 nr_pages, u64 *kind);
bool pv_table_lookup(struct pv_table *table, u64 dfn, u64 *gfn);

/* pv_iommu_pending.c */
int pv_pending_map(struct pv_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags, gfp_t gfp);
int pv_pending_collect(struct pv_domain *own, u64 dfn, u64 nr_pages);

/* pv_iommu_domain.c */
struct iommu_domain *pv_domain_alloc_paging(struct device *dev);

/* pv_iommu_device.c */
#ifdef PV_ATTACH_HAS_OLD
#define PV_ATTACH_PARAMETERS \
	struct iommu_domain *domain, struct device *dev, struct iommu_domain *old
#else
#define PV_ATTACH_PARAMETERS	struct iommu_domain *domain, struct device *dev
#endif
extern const struct iommu_ops pv_iommu_ops;
extern const struct iommu_domain_ops pv_domain_ops;
int pv_attach(struct pv_endpoint *ep, struct iommu_domain *domain, u16 ctx);
void pv_release_drivers(struct pv_iommu *pv);

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
