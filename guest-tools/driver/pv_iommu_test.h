/* SPDX-License-Identifier: GPL-2.0-only */
/* Tests of the PV-IOMMU by raw operations on contexts of their own. */
#ifndef _PV_IOMMU_TEST_H
#define _PV_IOMMU_TEST_H

#include <linux/errno.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "pv_dmatest.h"
#include "pv_iommu_raw.h"
#include "pv_ktap.h"

#define PVT_ORDER	4
#define PVT_PAGES	BIT(PVT_ORDER)
#define PVT_ENGINES	2
#define PVT_GUARD	0xa5
#define PVT_EVENT_MS	2000
/* where the tests map, far from the ends of the aperture and from its holes */
#define PVT_DFN		0x12345ULL
#define PVT_RW		(PVIOMMU_MAP_READABLE | PVIOMMU_MAP_WRITEABLE)
/* what OUT fields hold before an operation that must leave them alone */
#define PVT_UNTOUCHED	0x5a5a5a5a
/* beyond the number of contexts of any configuration of the tests */
#define PVT_NO_CONTEXT	0xfff0
/* a function that does not exist: 0000:ff:1f.7 */
#define PVT_NO_SBDF	0xffff

/**
 * struct pvt - what the tests work on
 * @pv: the PV-IOMMU
 * @caps: its capabilities
 * @engine: DMA test engines behind it
 * @sbdf: their addresses
 * @stream: their streams
 * @home: the contexts they were found in
 * @memory: contiguous pages, all guard bytes at the start of each test
 * @gfn: frame of the first of them
 * @before: what was in use when the run began
 */
struct pvt {
	struct pv_iommu *pv;
	const struct pv_capabilities *caps;
	struct pvdt *engine[PVT_ENGINES];
	u32 sbdf[PVT_ENGINES];
	u32 stream[PVT_ENGINES];
	u16 home[PVT_ENGINES];
	u8 *memory;
	u64 gfn;
	struct pv_usage before;
};

/* A test that gets a context; engine 0 may be attached to it. */
typedef void (*pvt_body)(struct pv_ktap *ktap, struct pvt *t, u16 ctx);

#define PVT_CONTEXT(name, body)		{ name, pvt_with_context, (unsigned long)(body) }
#define PVT_ATTACHED(name, body)	{ name, pvt_with_engine, (unsigned long)(body) }

static inline u8 *pvt_page(struct pvt *t, unsigned int page)
{
	return t->memory + page * PAGE_SIZE;
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
	return pvt_holds(t->memory, PVT_GUARD, PVT_PAGES * PAGE_SIZE);
}

/* pv_iommu_test_space.c: one function an operation; 0 or the device's negative errno */
struct pv_command pvt_xen(u16 subop, u16 ctx, u32 flags);
struct pv_command pvt_own(u8 op, u32 sbdf, u32 stream);
struct pv_command pvt_map_command(u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags);
struct pv_command pvt_unmap_command(u16 ctx, u64 dfn, u32 nr_pages);
int pvt_submit(struct pvt *t, struct pv_command *command);
int pvt_post(struct pvt *t, struct pv_command command);
int pvt_alloc(struct pvt *t, u32 flags, u16 *ctx);
int pvt_free(struct pvt *t, u16 ctx, u32 flags);
int pvt_reattach(struct pvt *t, u32 sbdf, u16 ctx);
int pvt_map(struct pvt *t, u16 ctx, u64 dfn, u64 gfn, u32 nr_pages, u32 flags, u32 *mapped);
int pvt_unmap(struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages, u32 *unmapped);
int pvt_lookup(struct pvt *t, u16 ctx, u64 dfn, u64 *gfn);
int pvt_endpoint(struct pvt *t, u32 sbdf, u32 *stream, u16 *ctx);
int pvt_event(struct pvt *t, u32 *position, struct pviommu_event *event);

/* pv_iommu_test_space.c: expectations; true when they hold */
bool pvt_expect_mapped(struct pv_ktap *ktap, struct pvt *t, u16 ctx, u64 dfn, u64 gfn,
		       u32 nr_pages);
bool pvt_expect_nothing(struct pv_ktap *ktap, struct pvt *t, u16 ctx, u64 dfn, u32 nr_pages);
bool pvt_expect_fill(struct pv_ktap *ktap, struct pvt *t, unsigned int engine, u64 iova, u32 length,
		     u8 byte);
bool pvt_expect_fault(struct pv_ktap *ktap, struct pvt *t, unsigned int engine,
		      struct pvdt_request *request, u64 iova, u16 reason, u8 access, u16 ctx);
struct pvdt_request pvt_fill(u64 iova, u32 length, u8 byte);
struct pvdt_request pvt_read(u64 iova, u32 length);

/* pv_iommu_test_space.c: what cases begin and end with */
void pvt_with_context(struct pv_ktap *ktap, void *subject, unsigned long body);
void pvt_with_engine(struct pv_ktap *ktap, void *subject, unsigned long body);

extern const struct pv_ktap_case pvt_op_cases[];
extern const unsigned int pvt_nr_op_cases;
extern const struct pv_ktap_case pvt_context_cases[];
extern const unsigned int pvt_nr_context_cases;
extern const struct pv_ktap_case pvt_fault_cases[];
extern const unsigned int pvt_nr_fault_cases;
extern const struct pv_ktap_case pvt_ring_cases[];
extern const unsigned int pvt_nr_ring_cases;

#endif /* _PV_IOMMU_TEST_H */
