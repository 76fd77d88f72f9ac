/* SPDX-License-Identifier: GPL-2.0-only */
/* Paravirtual IOMMU: declarations that the parts of the driver share. */
#ifndef _PVIOMMU_IOMMU_H
#define _PVIOMMU_IOMMU_H

#include <linux/atomic.h>
#include <linux/cache.h>
#include <linux/completion.h>
#include <linux/iommu.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/refcount.h>
#include <linux/sizes.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "pviommu_guest_table.h"
#include "pviommu_table.h"
#include "pviommu_types.h"

#define PVIOMMU_RING_ENTRIES		1024
#define PVIOMMU_RING_ALIGNMENT	SZ_4K
#define PVIOMMU_EVENT_LOG_ENTRIES	256

/**
 * struct pviommu_answer - a command whose outcome is copied from its slot
 * @command: the command, and later its outcome
 * @index: its index on the ring
 * @taken: whether @command has the outcome
 */
struct pviommu_answer {
	struct pviommu_command command;
	u32 index;
	bool taken;
};

/**
 * struct pviommu_ring - a command ring
 * @lock: serialises submission; protects all fields from @producer to @rescues
 * @pv: its PV-IOMMU
 * @guest: index words that the driver writes
 * @device: index words that the device writes
 * @slots: the slots, in the shared BAR
 * @doorbell: register to write when the device asks for it
 * @place: first byte of @slots in the shared BAR
 * @entries: number of slots, a power of two
 * @answers: for each slot, where its outcome is copied to, or NULL
 * @producer: slots submitted; the copy in @guest is never read back
 * @completed: slots completed, when the device's word was last read
 * @rung: the event index that a doorbell was rung for last, if it lies before @producer and not
 *	before @completed
 * @awaited: the index that a waiter polls for, as last written for the device
 * @posted: commands sent that nobody waits for
 * @waited: commands sent whose outcome is waited for
 * @doorbells: doorbells rung
 * @rescues: doorbells that a waiter rang again because one was lost
 * @usual: rounds that a wait usually polls; written without the lock, since it is only an
 *	estimate
 * @sleeper: serialises waiters that sleep, because there is only one completion_event word
 * @wait: where the sleeping waiter sleeps
 * @name: name of its interrupt
 */
struct pviommu_ring {
	spinlock_t lock;	/* submission */
	struct pviommu *pv;
	struct pviommu_guest_ring_line *guest;
	struct pviommu_device_ring_line *device;
	struct pviommu_command *slots;
	void __iomem *doorbell;
	u32 place;
	u32 entries;
	struct pviommu_answer **answers;
	u32 producer;
	u32 completed;
	u32 rung;
	u32 awaited;
	u64 posted;
	u64 waited;
	u64 doorbells;
	u64 rescues;
	u32 usual;
	struct mutex sleeper;	/* completion_event */
	wait_queue_head_t wait;
	char name[sizeof("pviommu-ring") + 10];
} ____cacheline_aligned_in_smp;

/**
 * struct pviommu_event_ring - the event ring and the log that it is drained to
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
struct pviommu_event_ring {
	struct pviommu_guest_event_line *guest;
	struct pviommu_device_event_line *device;
	struct pviommu_event *records;
	u32 consumer;
	u32 sequence;
	spinlock_t lock;	/* the log */
	struct pviommu_event log[PVIOMMU_EVENT_LOG_ENTRIES];
	u32 logged;
	u32 lost;
	wait_queue_head_t wait;
};

/**
 * struct pviommu_profile - an interface of the device: how operations are encoded in slots
 * @name: its name in the module parameter
 * @number: PVIOMMU_PROFILE_*
 * @feature: PVIOMMU_FEATURE_* that says whether the device has it
 * @init: sends what the device needs before anything else, or NULL
 * @alloc: allocates an empty context
 * @free: frees a context to which nothing is attached
 * @reattach: moves a function to a context
 * @map: makes the command that maps pages
 * @unmap: makes the command that unmaps pages
 * @mapped: pages that a map has mapped, from its outcome, also on error
 * @not_backed: the errno of a map of frames that no device may reach
 *
 * @init, @alloc, @free and @reattach sleep and return 0 or the negative errno of the device.
 */
struct pviommu_profile {
	const char *name;
	u32 number;
	u32 feature;
	int (*init)(struct pviommu *pv);
	int (*alloc)(struct pviommu *pv, u16 *ctx);
	int (*free)(struct pviommu *pv, u16 ctx);
	int (*reattach)(struct pviommu *pv, u32 sbdf, u16 ctx);
	void (*map)(struct pviommu_command *command, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages,
		    u32 flags);
	void (*unmap)(struct pviommu_command *command, u16 ctx, u64 dfn, u32 nr_pages);
	u32 (*mapped)(const struct pviommu_command *command);
	int not_backed;
};

/**
 * struct pviommu_frames - whole pages within ranges of the capability area
 * @nr: entries of @ranges
 * @room: entries that @ranges has room for
 * @ranges: frames, the last one included
 */
struct pviommu_frames {
	unsigned int nr;
	unsigned int room;
	struct pviommu_range *ranges;
};

/**
 * struct pviommu - one PV-IOMMU function
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
 * @given_up: set for good when a command has timed out
 * @reset: set when the device was reset after that, so that no DMA goes on
 * @closed: set when the hypervisor has closed the function, which is reset when the device
 *	resumes
 * @reset_work: resets it
 * @no_reserve: whether the device does not know RESERVE
 * @has_tables: whether domains have tables of the guest
 * @in_flight: line 0 of those that say whether DMA by such tables is in flight
 * @guest_lock: protects the following two
 * @guest_domains: paging domains whose tables are the guest's
 * @guest_kept: those that are gone, but for their tables, which the device may still walk
 * @events: event ring
 * @lock: protects @endpoints and the domain of each
 * @bars_lock: also held while @endpoints changes, so that it can be read where sleeping is not
 *	allowed
 * @endpoints: functions that the IOMMU core has probed
 * @nr_endpoints: how many
 * @nr_domains: paging domains
 * @domains_lock: protects @domains; held only briefly
 * @domains: paging domains
 * @nr_tables: pages of their tables
 * @nr_probing: functions that the IOMMU core is probing
 * @probed: woken when @nr_probing falls to 0
 * @users: references: one of its driver, one for each endpoint, domain and function that is
 *	being probed, and those of the raw operations
 * @unused: completed when @users falls to 0
 * @debugfs: its debugfs folder
 */
struct pviommu {
	struct iommu_device iommu;
	struct pci_dev *pdev;
	struct list_head list;
	const struct pviommu_profile *profile;
	void __iomem *regs;
	void *shared;
	u32 instance;
	struct pviommu_capabilities caps;
	struct pviommu_frames dfns;
	struct pviommu_frames gfns;
	struct pviommu_ring *rings;
	unsigned int nr_rings;
	u64 msi_page;	/* where its own messages go, which nothing translates */
	bool given_up;
	bool reset;
	bool closed;
	struct work_struct reset_work;
	bool no_reserve;
	bool has_tables;
	void *in_flight;
	struct mutex guest_lock;	/* guest_domains, guest_kept */
	struct list_head guest_domains;
	struct list_head guest_kept;
	struct pviommu_event_ring events;
	struct mutex lock;	/* endpoints */
	spinlock_t bars_lock;	/* changes of endpoints */
	struct list_head endpoints;
	atomic_t nr_endpoints;
	atomic_t nr_domains;
	spinlock_t domains_lock;	/* domains */
	struct list_head domains;
	atomic_t nr_tables;
	atomic_t nr_probing;
	wait_queue_head_t probed;
	refcount_t users;
	struct completion unused;
	struct dentry *debugfs;
};

/**
 * struct pviommu_endpoint - a PCI function behind the PV-IOMMU
 * @list: in the list of its PV-IOMMU
 * @pv: its PV-IOMMU, to which it has a reference
 * @dev: the function
 * @stream: stream id from its vendor capability
 * @sbdf: segment, bus, device and function
 * @domain: the domain it is attached to, or NULL
 * @confined: whether a reset of the device is sure to leave it blocked, since it is in a context
 *	other than 0, or blocked already
 * @locked: in the list of those that are locked until they are released, or empty
 * @probing: bit 0 is set while the IOMMU core is probing it
 */
struct pviommu_endpoint {
	struct list_head list;
	struct pviommu *pv;
	struct device *dev;
	u32 stream;
	u32 sbdf;
	struct iommu_domain *domain;
	bool confined;
	struct list_head locked;
	unsigned long probing;
};

#include "pviommu_pending.h"

/**
 * struct pviommu_paging - what paging domains of both kinds have in common
 * @domain: what the IOMMU core knows of it
 * @pv: its PV-IOMMU, to which it has a reference
 * @ctx: its context
 */
struct pviommu_paging {
	struct iommu_domain domain;
	struct pviommu *pv;
	u16 ctx;
};

/**
 * struct pviommu_domain - a paging domain whose tables the device has
 * @paging: what all have
 * @list: in the list of its PV-IOMMU
 * @pins: users that have found it in @list; it is not freed meanwhile
 * @ring: the ring of its context
 * @table: what is mapped
 * @asked: pages of the pool in the last request to the device, and @asked_at the index of
 *	that command; the ring's lock protects these and the credit of @table
 * @reported: pages that were reported to the core as mapped, in domains that do not belong
 *	to the DMA API
 * @lock: protects what follows
 * @refused: whether the pool had no pages for the credit
 * @retry: when to ask again, in jiffies
 * @nr_pending: entries of @pending that are not free
 * @pending: outstanding maps, in domains that do not belong to the DMA API
 */
struct pviommu_domain {
	struct pviommu_paging paging;
	struct list_head list;
	atomic_t pins;
	struct pviommu_ring *ring;
	struct pviommu_table table;
	u32 asked;
	u32 asked_at;
	atomic64_t reported;
	spinlock_t lock;	/* what follows */
	bool refused;
	unsigned long retry;
	unsigned int nr_pending;
	struct pviommu_pending pending[PVIOMMU_PENDING_MAPS];
};

/* The core sets the type after the allocation, so it is read only when needed. */
static inline bool pviommu_paging_is_dma(const struct pviommu_paging *own)
{
	return own->domain.type & __IOMMU_DOMAIN_DMA_API;
}

static inline u32 pviommu_sbdf(struct pci_dev *pdev)
{
	return (u32)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev);
}

static inline struct device *pviommu_dev(struct pviommu *pv)
{
	return &pv->pdev->dev;
}

static inline bool pviommu_given_up(struct pviommu *pv)
{
	return READ_ONCE(pv->given_up);
}

/* Whether nothing that was mapped can be reached any more, now or when the device resumes. */
static inline bool pviommu_is_reset(struct pviommu *pv)
{
	return READ_ONCE(pv->reset) || READ_ONCE(pv->closed);
}

/* Open-coded, because memset() takes longer for so few words. */
static inline void pviommu_command_clear(struct pviommu_command *command)
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
static inline bool pviommu_frames_hold(const struct pviommu_frames *frames, u64 first, u64 nr_pages)
{
	u64 last = first + nr_pages - 1;
	unsigned int i;

	for (i = 0; i < frames->nr; i++)
		if (first >= frames->ranges[i].start && last <= frames->ranges[i].last)
			return last >= first;
	return false;
}

/* pviommu_pci.c */
struct pviommu *pviommu_probe_begin(u32 instance);
void pviommu_probe_end(struct pviommu *pv);
struct pviommu *pviommu_get_first(void);
void pviommu_put(struct pviommu *pv);

/* pviommu_rings.c */
int pviommu_rings_init(struct pviommu *pv);
void pviommu_rings_free(struct pviommu *pv);
int pviommu_rings_start(struct pviommu *pv);
void pviommu_rings_stop(struct pviommu *pv);
void pviommu_rings_settle(struct pviommu *pv);
void pviommu_rings_wake(struct pviommu *pv);
void pviommu_rings_sync(struct pviommu *pv);
struct pviommu_ring *pviommu_ring_of(struct pviommu *pv, u16 ctx);
int pviommu_request_irqs(struct pviommu *pv);
void pviommu_free_irqs(struct pviommu *pv);

/* pviommu_send.c */
int pviommu_ring_post_map(struct pviommu_domain *own, u64 dfn, u64 gfn, u32 nr_pages, u32 flags);
int pviommu_ring_post_unmap(struct pviommu_domain *own, u64 dfn, u32 nr_pages);
int pviommu_op_map_send(struct pviommu_domain *own, struct pviommu_answer *answer, u64 dfn, u64 gfn,
			u32 nr_pages, u32 flags);
int pviommu_op_map_wait(struct pviommu_domain *own, struct pviommu_answer *answer, u32 nr_pages,
			u32 *mapped, enum pviommu_wait wait);
void pviommu_op_sync(struct pviommu_domain *own);
int pviommu_op_reserve_send(struct pviommu_domain *own, struct pviommu_answer *answer, u32 *pages);
int pviommu_op_reserve_take(struct pviommu_domain *own, struct pviommu_answer *answer, u32 pages,
			    enum pviommu_wait wait);
void pviommu_op_unreserve(struct pviommu_domain *own);

/* pviommu_giveup.c */
void pviommu_give_up_init(struct pviommu *pv);
bool pviommu_give_up(struct pviommu *pv);
bool pviommu_reset(struct pviommu *pv, u32 how);
void pviommu_give_up_finish(struct pviommu *pv);
bool pviommu_has_ended(struct pviommu *pv);
int pviommu_attach_given_up(struct pviommu_endpoint *ep, struct iommu_domain *domain);

/* pviommu_ring.c */
int pviommu_ring_send(struct pviommu_ring *ring, struct pviommu_answer *answer);
int pviommu_ring_take(struct pviommu_ring *ring, struct pviommu_answer *answer,
		      enum pviommu_wait wait);
void pviommu_ring_sync(struct pviommu_ring *ring);
u32 pviommu_ring_in_flight(struct pviommu_ring *ring);
int pviommu_submit(struct pviommu *pv, struct pviommu_command *command, enum pviommu_wait wait);

/* pviommu_xen_2024.c, pviommu_xen_v7.c */
extern const struct pviommu_profile pviommu_xen_2024;
extern const struct pviommu_profile pviommu_xen_v7;

/* pviommu_ops.c */
const struct pviommu_profile *pviommu_profile_find(const char *name);
int pviommu_op_init(struct pviommu *pv);
int pviommu_op_alloc_context(struct pviommu *pv, u16 *ctx);
int pviommu_op_free_context(struct pviommu *pv, u16 ctx);
int pviommu_op_reattach(struct pviommu *pv, u32 sbdf, u16 ctx);
int pviommu_op_bind(struct pviommu *pv, u32 sbdf, u32 stream);
int pviommu_op_unbind(struct pviommu *pv, u32 sbdf);
int pviommu_op_block(struct pviommu *pv, u32 sbdf);
int pviommu_op_usage(struct pviommu *pv, struct pviommu_usage *usage);
int pviommu_op_alloc_tables(struct pviommu *pv, u64 root, u32 flags, unsigned int bits, u16 *ctx,
			    u32 *line);
int pviommu_op_flush(struct pviommu *pv, u16 ctx);

/* pviommu_paging.c */
#ifdef PVIOMMU_ATTACH_HAS_OLD
#define PVIOMMU_ATTACH_PARAMETERS \
	struct iommu_domain *domain, struct device *dev, struct iommu_domain *old
int pviommu_domain_attach(struct iommu_domain *domain, struct device *dev,
			  struct iommu_domain *old);
#else
#define PVIOMMU_ATTACH_PARAMETERS	struct iommu_domain *domain, struct device *dev
int pviommu_domain_attach(struct iommu_domain *domain, struct device *dev);
#endif
#ifdef PVIOMMU_ALLOC_HAS_PARENT
#define PVIOMMU_ALLOC_OP	domain_alloc_user
#define PVIOMMU_ALLOC_PARAMETERS \
	struct device *dev, u32 flags, struct iommu_domain *parent, \
	const struct iommu_user_data *user_data
#else
#define PVIOMMU_ALLOC_OP	domain_alloc_paging_flags
#define PVIOMMU_ALLOC_PARAMETERS \
	struct device *dev, u32 flags, const struct iommu_user_data *user_data
#endif
struct iommu_domain *pviommu_domain_alloc_flags(PVIOMMU_ALLOC_PARAMETERS);
struct iommu_domain *pviommu_domain_alloc_paging(struct device *dev);
void pviommu_paging_begin(struct pviommu_paging *own, struct pviommu *pv,
			  const struct iommu_domain_ops *ops, unsigned long page_sizes,
			  unsigned int bits);
/* what the kernel maps the page of an interrupt controller with, and nothing else */
#define PVIOMMU_PROT_MSI	(IOMMU_WRITE | IOMMU_NOEXEC | IOMMU_MMIO)
int pviommu_paging_map_msi(unsigned long iova, phys_addr_t paddr, size_t size, size_t *mapped);
int pviommu_paging_free_context(struct pviommu_paging *own);
void pviommu_paging_end(struct pviommu_paging *own);
void pviommu_paging_no_context(struct pviommu *pv, int error);

/* pviommu_domain.c */
struct iommu_domain *pviommu_ring_domain_alloc(struct pviommu *pv);

/* pviommu_guest_domain.c */
int pviommu_guest_choose(struct pviommu *pv);
struct iommu_domain *pviommu_guest_domain_alloc(struct pviommu *pv, bool dirty);
void pviommu_guest_end(struct pviommu *pv);
u64 pviommu_guest_mapped_pages(struct pviommu *pv);

/* pviommu_device.c */
extern const struct iommu_ops pviommu_ops;
int pviommu_attach(struct pviommu_endpoint *ep, struct iommu_domain *domain, u16 ctx);
void pviommu_forget_domain(struct pviommu *pv, struct iommu_domain *domain);
void pviommu_lock_endpoints(struct pviommu *pv, struct list_head *locked);
void pviommu_unlock_endpoints(struct pviommu *pv, struct list_head *locked);
void pviommu_free_endpoints(struct list_head *locked);

/* pviommu_capabilities.c */
int pviommu_capabilities_read(struct pviommu *pv);
void pviommu_capabilities_free(struct pviommu *pv);
const struct pviommu_fault_page *pviommu_fault_page(struct pviommu *pv, u32 *size);
int pviommu_endpoint_capability(struct pci_dev *pdev, u32 *instance, u32 *stream);

/* pviommu_events.c */
void pviommu_events_init(struct pviommu *pv);
irqreturn_t pviommu_events_interrupt(int irq, void *data);
u32 pviommu_event_position(struct pviommu *pv);
int pviommu_next_event(struct pviommu *pv, u32 *position, struct pviommu_event *event,
		       unsigned int timeout_ms);
const char *pviommu_event_reason(u16 reason);

/* pviommu_debugfs.c */
void pviommu_debugfs_init(void);
void pviommu_debugfs_exit(void);
void pviommu_debugfs_add(struct pviommu *pv);
void pviommu_debugfs_remove(struct pviommu *pv);

#endif /* _PVIOMMU_IOMMU_H */
