/* SPDX-License-Identifier: GPL-2.0-only */
/* Tests of the PV-IOMMU by raw operations on contexts of their own. */
#ifndef _PVIOMMU_IOMMU_TEST_H
#define _PVIOMMU_IOMMU_TEST_H

#include <linux/errno.h>
#include <linux/iommu.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "pviommu_dmatest.h"
#include "pviommu_raw_ops.h"
#include "ktap.h"

/* The device's pages, of which one of the kernel's may be several. */
#define PVT_PAGE_SIZE	BIT(PVIOMMU_PAGE_SHIFT)
#define PVT_PAGES	16
#define PVT_ENGINES	2
#define PVT_GUARD	0xa5
#define PVT_EVENT_MS	2000
/* where the tests map, far from the ends of the aperture and from reserved regions */
#define PVT_DFN		0x12345ULL
#define PVT_RW		(PVIOMMU_MAP_READABLE | PVIOMMU_MAP_WRITEABLE)
#define PVT_DOMAIN_RW	(IOMMU_READ | IOMMU_WRITE)
/* the value of OUT fields before an operation that must not change them */
#define PVT_UNTOUCHED	0x5a5a5a5a
/* beyond the number of contexts of any configuration of the tests */
#define PVT_NO_CONTEXT	0xfff0
/* a function that does not exist: 0000:ff:1f.7 */
#define PVT_NO_SBDF	0xffff

struct pvt;

/**
 * struct pvt_profile - how the tests use a profile, and its results where profiles differ
 * @number: PVIOMMU_PROFILE_*
 * @other_class: PVIOMMU_CLASS_* of the other profile
 * @unknown_operation: result of an operation that does not exist
 * @unknown_function: result of reattach of a function that is not bound
 * @not_ram: result of a map to a frame that is not memory
 * @reserved: result of a map in a reserved region
 * @untouched: the count of @map and @unmap when the device does not write it
 * @command: an operation by its number, with a zeroed structure; noop is 0 in all profiles
 * @map_command: map_pages, with a count of 0
 * @unmap_command: unmap_pages, with a count of 0
 * @mapped: the count in a structure of map_pages
 * @alloc: alloc_context; @ctx is what the OUT field holds before and after
 * @free: free_context
 * @reattach: reattach_device
 * @map: map_pages; @mapped counts the pages
 * @unmap: unmap_pages; @unmapped counts the pages
 * @expect_mapped: whether exactly these frames are mapped, readable and writeable
 * @expect_nothing: whether nothing is mapped
 * @cases: tests that only this profile has
 * @nr_cases: their number, in the file of @cases
 *
 * Operations return 0 or the device's negative errno.
 */
struct pvt_profile {
	u32 number;
	u8 other_class;
	int unknown_operation;
	int unknown_function;
	int not_ram;
	int reserved;
	u32 untouched;
	struct pviommu_command (*command)(u8 op);
	struct pviommu_command (*map_command)(u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags);
	struct pviommu_command (*unmap_command)(u16 ctx, u64 dfn, u32 nr_pages);
	u32 (*mapped)(const struct pviommu_command *command);
	int (*alloc)(struct pvt *t, u32 flags, u16 *ctx);
	int (*free)(struct pvt *t, u16 ctx, u32 flags);
	int (*reattach)(struct pvt *t, u32 sbdf, u16 ctx);
	int (*map)(struct pvt *t, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags, u32 *mapped);
	int (*unmap)(struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped);
	bool (*expect_mapped)(struct ktap *ktap, struct pvt *t, u16 ctx, u64 dfn, u64 gfn,
			      u32 nr_pages);
	bool (*expect_nothing)(struct ktap *ktap, struct pvt *t, u16 ctx, u64 dfn,
			       u32 nr_pages);
	const struct ktap_case *cases;
	const unsigned int *nr_cases;
};

/**
 * struct pvt - what the tests work on
 * @profile: the profile that the driver has selected
 * @pv: the PV-IOMMU
 * @caps: its capabilities
 * @engine: DMA test engines behind it
 * @sbdf: their addresses
 * @stream: their streams
 * @home: the contexts that they were in at first
 * @memory: contiguous pages, filled with guard bytes at the start of each test
 * @gfn: frame of the first of them
 * @before: what was in use when the run began
 */
struct pvt {
	const struct pvt_profile *profile;
	struct pviommu *pv;
	const struct pviommu_capabilities *caps;
	struct pvdt *engine[PVT_ENGINES];
	u32 sbdf[PVT_ENGINES];
	u32 stream[PVT_ENGINES];
	u16 home[PVT_ENGINES];
	u8 *memory;
	u64 gfn;
	struct pviommu_usage before;
};

/* A test that gets a context; engine 0 may be attached to it. */
typedef void (*pvt_body)(struct ktap *ktap, struct pvt *t, u16 ctx);

/* The same with a domain of the IOMMU core. */
typedef void (*pvt_domain_body)(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain);

#define PVT_CONTEXT(name, body)		{ name, pvt_with_context, (unsigned long)(body) }
#define PVT_ATTACHED(name, body)	{ name, pvt_with_engine, (unsigned long)(body) }

/* The function of engine 0. */
static inline struct device *pvt_dev(struct pvt *t)
{
	return &pvdt_client_ops.pci_dev(t->engine[0])->dev;
}

static inline u8 *pvt_page(struct pvt *t, unsigned int page)
{
	return t->memory + page * PVT_PAGE_SIZE;
}

static inline u64 pvt_iova(u64 dfn)
{
	return dfn << PVIOMMU_PAGE_SHIFT;
}

static inline bool pvt_holds(const u8 *data, u8 byte, size_t size)
{
	return !memchr_inv(data, byte, size);
}

static inline bool pvt_unchanged(struct pvt *t)
{
	return pvt_holds(t->memory, PVT_GUARD, PVT_PAGES * PVT_PAGE_SIZE);
}

/* Operations of both profiles, by the one that is selected. */
static inline int pvt_alloc(struct pvt *t, u32 flags, u16 *ctx)
{
	return t->profile->alloc(t, flags, ctx);
}

static inline int pvt_free(struct pvt *t, u16 ctx, u32 flags)
{
	return t->profile->free(t, ctx, flags);
}

static inline int pvt_reattach(struct pvt *t, u32 sbdf, u16 ctx)
{
	return t->profile->reattach(t, sbdf, ctx);
}

static inline int pvt_map(struct pvt *t, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags,
			  u32 *mapped)
{
	return t->profile->map(t, ctx, dfn, gfn, nr_pages, flags, mapped);
}

static inline int pvt_unmap(struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped)
{
	return t->profile->unmap(t, ctx, dfn, nr_pages, unmapped);
}

static inline bool pvt_expect_mapped(struct ktap *ktap, struct pvt *t, u16 ctx, u64 dfn,
				     u64 gfn, u32 nr_pages)
{
	return t->profile->expect_mapped(ktap, t, ctx, dfn, gfn, nr_pages);
}

static inline bool pvt_expect_nothing(struct ktap *ktap, struct pvt *t, u16 ctx, u64 dfn,
				      u32 nr_pages)
{
	return t->profile->expect_nothing(ktap, t, ctx, dfn, nr_pages);
}

/* pviommu_test_space.c: operations of all profiles; 0 or the device's negative errno */
struct pviommu_command pvt_vendor(u8 op, u32 sbdf, u32 stream);
int pvt_submit(struct pvt *t, struct pviommu_command *command);
int pvt_post(struct pvt *t, struct pviommu_command command);
int pvt_endpoint(struct pvt *t, u32 sbdf, u32 *stream, u16 *ctx);
int pvt_event(struct pvt *t, u32 *position, struct pviommu_event *event);

/* pviommu_test_space.c: places */
u64 pvt_last_dfn(struct pvt *t);
u64 pvt_ram_of(struct pvt *t, u64 pages);
u64 pvt_ram_end(struct pvt *t, u64 pages);

/* pviommu_test_space.c: expectations; true when they hold */
bool pvt_expect_fill(struct ktap *ktap, struct pvt *t, unsigned int engine, u64 iova, u32 length,
		     u8 byte);
bool pvt_expect_fault(struct ktap *ktap, struct pvt *t, unsigned int engine,
		      struct pvdt_request *request, u64 iova, u16 reason, u8 access, u16 ctx);
struct pvdt_request pvt_fill(u64 iova, u32 length, u8 byte);
struct pvdt_request pvt_read(u64 iova, u32 length);

/* pviommu_test_domain.c */
bool pvt_expect_translates(struct ktap *ktap, struct iommu_domain *domain, u64 dfn, u64 gfn,
			   unsigned int nr_pages);

#ifdef PVIOMMU_HAS_GENERIC_PT
/* exported to drivers with tables of this kind; its header is not among those for other modules */
void iommu_put_pages_list(struct iommu_pages_list *list);
#endif

/* pviommu_test_space.c: what cases begin and end with */
void pvt_with_context(struct ktap *ktap, void *subject, unsigned long body);
void pvt_with_engine(struct ktap *ktap, void *subject, unsigned long body);

extern const struct pvt_profile pvt_xen_2024;
extern const struct pvt_profile pvt_xen_v7;
extern const struct ktap_case pvt_v7_cases[];
extern const unsigned int pvt_nr_v7_cases;
extern const struct ktap_case pvt_batch_cases[];
extern const unsigned int pvt_nr_batch_cases;
extern const struct ktap_case pvt_op_cases[];
extern const unsigned int pvt_nr_op_cases;
extern const struct ktap_case pvt_context_cases[];
extern const unsigned int pvt_nr_context_cases;
extern const struct ktap_case pvt_domain_cases[];
extern const unsigned int pvt_nr_domain_cases;
extern const struct ktap_case pvt_ring_domain_cases[];
extern const unsigned int pvt_nr_ring_domain_cases;
extern const struct ktap_case pvt_attached_cases[];
extern const unsigned int pvt_nr_attached_cases;
extern const struct ktap_case pvt_guest_cases[];
extern const unsigned int pvt_nr_guest_cases;
extern const struct ktap_case pvt_generic_cases[];
extern const unsigned int pvt_nr_generic_cases;
extern const struct ktap_case pvt_table_cases[];
extern const unsigned int pvt_nr_table_cases;
extern const struct ktap_case pvt_pool_cases[];
extern const unsigned int pvt_nr_pool_cases;
extern const struct ktap_case pvt_storm_cases[];
extern const unsigned int pvt_nr_storm_cases;
extern const struct ktap_case pvt_fault_cases[];
extern const unsigned int pvt_nr_fault_cases;
extern const struct ktap_case pvt_ring_cases[];
extern const unsigned int pvt_nr_ring_cases;
extern const struct ktap_case pvt_doorbell_cases[];
extern const unsigned int pvt_nr_doorbell_cases;

#endif /* _PVIOMMU_IOMMU_TEST_H */
