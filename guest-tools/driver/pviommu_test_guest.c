// SPDX-License-Identifier: GPL-2.0-only
/* Tests of domains whose tables are the guest's: what they cost, and what was written. */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <uapi/linux/iommufd.h>

#include "pviommu_test.h"

#define PVT_GUEST_ROUNDS	200
#define PVT_GUEST_DFN		0x40000ULL
#define PVT_GUEST_LARGE_DFN	(PVT_GUEST_DFN + 0x1000ULL)

static struct iommu_domain *pvt_guest_domain(struct pvt *t, u32 flags)
{
	const struct iommu_ops *ops = pvt_dev(t)->iommu->iommu_dev->ops;
	struct iommu_domain *domain;

#ifdef PVIOMMU_ALLOC_HAS_PARENT
	domain = ops->domain_alloc_user(pvt_dev(t), flags, NULL, NULL);
#else
	domain = ops->domain_alloc_paging_flags(pvt_dev(t), flags, NULL);
#endif
	/* as iommufd does */
	if (!IS_ERR(domain))
		domain->owner = ops;
	return domain;
}

/* Maps and unmaps, also those that are waited for, are not told to the device. */
static void pvt_guest_silent(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pviommu_usage before, after;
	struct pvt *t = subject;
	struct iommu_domain *domain;
	unsigned int i;

	domain = pvt_guest_domain(t, 0);
	if (!EXPECT(ktap, !IS_ERR(domain)))
		return;
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &before), 0);
	for (i = 0; i < PVT_GUEST_ROUNDS; i++) {
		EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(PVT_DFN), pvt_iova(t->gfn),
					  PVT_PAGE_SIZE, PVT_DOMAIN_RW, GFP_KERNEL), 0);
		EXPECT_EQ(ktap, iommu_unmap(domain, pvt_iova(PVT_DFN), PVT_PAGE_SIZE),
			  PVT_PAGE_SIZE);
	}
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &after), 0);
	EXPECT_EQ(ktap, after.posted, before.posted);
	/* the second query, and a FLUSH where the processor was taken from the device in a step */
	EXPECT(ktap, after.waited - before.waited <= 1 + PVT_GUEST_ROUNDS / 64);
	EXPECT_EQ(ktap, after.pool_used, before.pool_used);
	iommu_domain_free(domain);
}

/* The pages that were written of those from @dfn on, from the first to the last, or nothing. */
static bool pvt_expect_dirty_of(struct ktap *ktap, struct iommu_domain *domain, u64 dfn,
				u64 nr_pages, unsigned long flags, u64 first, u64 last)
{
	struct iommu_iotlb_gather gather;
	struct iommu_dirty_bitmap dirty = { .gather = &gather };

	iommu_iotlb_gather_init(&gather);
	if (!EXPECT_EQ(ktap, domain->dirty_ops->read_and_clear_dirty(domain, pvt_iova(dfn),
								     nr_pages * PVT_PAGE_SIZE,
								     flags, &dirty), 0))
		return false;
	domain->ops->iotlb_sync(domain, &gather);
	if (first > last)
		return EXPECT(ktap, gather.start > gather.end);
	return EXPECT_EQ(ktap, gather.start, pvt_iova(PVT_GUEST_DFN + first)) &&
	       EXPECT_EQ(ktap, gather.end, pvt_iova(PVT_GUEST_DFN + last + 1) - 1);
}

static bool pvt_expect_dirty(struct ktap *ktap, struct iommu_domain *domain, unsigned long flags,
			     u64 first, u64 last)
{
	return pvt_expect_dirty_of(ktap, domain, PVT_GUEST_DFN, PVT_PAGES, flags, first, last);
}

/* A leaf of 2 MiB: who asks for a part of it does not take it from who asks for the rest. */
static void pvt_guest_writes_large(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	struct page *pages = alloc_pages(GFP_KERNEL, get_order(SZ_2M));
	const u64 first = PVT_GUEST_LARGE_DFN, nr = SZ_2M / PVT_PAGE_SIZE;
	u64 iova = pvt_iova(first);

	if (!EXPECT(ktap, pages))
		return;
	EXPECT_EQ(ktap, iommu_map(domain, iova, page_to_phys(pages), SZ_2M, PVT_DOMAIN_RW,
				  GFP_KERNEL), 0);
	pvt_expect_dirty_of(ktap, domain, first, nr, 0, 1, 0);
	pvt_expect_fill(ktap, t, 0, iova + 300 * PVT_PAGE_SIZE, 8, 0x24);
	pvt_expect_dirty_of(ktap, domain, first + 3, 5, 0, first + 3 - PVT_GUEST_DFN,
			    first + 7 - PVT_GUEST_DFN);
	pvt_expect_dirty_of(ktap, domain, first, nr, 0, first - PVT_GUEST_DFN,
			    first + nr - 1 - PVT_GUEST_DFN);
	pvt_expect_dirty_of(ktap, domain, first, nr, 0, 1, 0);
	/* each page of a leaf that was written before it was divided counts as written */
	pvt_expect_fill(ktap, t, 0, iova, 8, 0x25);
	EXPECT_EQ(ktap, iommu_unmap(domain, iova, PVT_PAGE_SIZE), PVT_PAGE_SIZE);
	pvt_expect_dirty_of(ktap, domain, first, nr, 0, first + 1 - PVT_GUEST_DFN,
			    first + nr - 1 - PVT_GUEST_DFN);
	pvt_expect_dirty_of(ktap, domain, first, nr, 0, 1, 0);
	EXPECT_EQ(ktap, iommu_unmap(domain, iova + PVT_PAGE_SIZE, (nr - 1) * PVT_PAGE_SIZE),
		  (nr - 1) * PVT_PAGE_SIZE);
	__free_pages(pages, get_order(SZ_2M));
}

static void pvt_guest_writes(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	struct pvdt_request read = pvt_read(pvt_iova(PVT_GUEST_DFN), PVT_PAGES * PVT_PAGE_SIZE);

	EXPECT_EQ(ktap, domain->dirty_ops->set_dirty_tracking(domain, true), 0);
	pvt_expect_dirty(ktap, domain, 0, 1, 0);
	EXPECT_EQ(ktap, pvdt_client_ops.run(t->engine[0], &read, PVDT_POLL), 0);
	EXPECT_EQ(ktap, read.status, PVDT_STATUS_DONE);
	pvt_expect_dirty(ktap, domain, 0, 1, 0);
	/* the last byte of one page and the first of the next but one */
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_GUEST_DFN + 4) - 1, PVT_PAGE_SIZE + 2, 0x22);
	pvt_expect_dirty(ktap, domain, IOMMU_DIRTY_NO_CLEAR, 3, 5);
	pvt_expect_dirty(ktap, domain, 0, 3, 5);
	pvt_expect_dirty(ktap, domain, 0, 1, 0);
	/* what was forgotten is noted again */
	pvt_expect_fill(ktap, t, 0, pvt_iova(PVT_GUEST_DFN + 5), 8, 0x23);
	pvt_expect_dirty(ktap, domain, 0, 5, 5);
	pvt_guest_writes_large(ktap, t, domain);
	EXPECT_EQ(ktap, domain->dirty_ops->set_dirty_tracking(domain, false), 0);
}

static void pvt_guest_dirty(struct ktap *ktap, void *subject, unsigned long param)
{
	size_t size = PVT_PAGES * PVT_PAGE_SIZE;
	struct pvt *t = subject;
	struct iommu_domain *domain;

	memset(t->memory, PVT_GUARD, size);
	EXPECT(ktap, device_iommu_capable(pvt_dev(t), IOMMU_CAP_DIRTY_TRACKING));
	domain = pvt_guest_domain(t, IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
	if (!EXPECT(ktap, !IS_ERR(domain)))
		return;
	EXPECT(ktap, domain->dirty_ops);
	EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(PVT_GUEST_DFN), pvt_iova(t->gfn), size,
				  PVT_DOMAIN_RW, GFP_KERNEL), 0);
	if (EXPECT_EQ(ktap, iommu_attach_device(domain, pvt_dev(t)), 0)) {
		pvt_guest_writes(ktap, t, domain);
		iommu_detach_device(domain, pvt_dev(t));
	}
	EXPECT_EQ(ktap, iommu_unmap(domain, pvt_iova(PVT_GUEST_DFN), size), size);
	iommu_domain_free(domain);
}

/* What the device would refuse, if it were asked. */
static void pvt_guest_refuses(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pvt *t = subject;
	struct iommu_domain *domain;
	size_t mapped = 0;
	u64 end;

	domain = pvt_guest_domain(t, 0);
	if (!EXPECT(ktap, !IS_ERR(domain)))
		return;
	end = domain->geometry.aperture_end + 1;
	EXPECT_EQ(ktap, iommu_map(domain, end, pvt_iova(t->gfn), PVT_PAGE_SIZE, PVT_DOMAIN_RW,
				  GFP_KERNEL), -ERANGE);
	EXPECT_EQ(ktap, iommu_map(domain, end - PVT_PAGE_SIZE, pvt_iova(t->gfn), 2 * PVT_PAGE_SIZE,
				  PVT_DOMAIN_RW, GFP_KERNEL), -ERANGE);
	EXPECT_EQ(ktap, iommu_iova_to_phys(domain, end - PVT_PAGE_SIZE), 0);
	EXPECT_EQ(ktap, iommu_iova_to_phys(domain, end), 0);
	EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(PVT_DFN), pvt_iova(pvt_ram_end(t, 1) + 1),
				  PVT_PAGE_SIZE, PVT_DOMAIN_RW, GFP_KERNEL), -EFAULT);
	/* memory that begins with the last page there can be does not go on with the first */
	EXPECT_EQ(ktap, domain->ops->map_pages(domain, pvt_iova(PVT_DFN), -(u64)PVT_PAGE_SIZE,
					       PVT_PAGE_SIZE, 2, IOMMU_READ, GFP_KERNEL, &mapped),
		  -EFAULT);
	EXPECT_EQ(ktap, mapped, 0);
	EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(PVT_DFN), pvt_iova(t->gfn), PVT_PAGE_SIZE,
				  PVT_DOMAIN_RW, GFP_KERNEL), 0);
	EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(PVT_DFN), pvt_iova(t->gfn + 1), PVT_PAGE_SIZE,
				  PVT_DOMAIN_RW, GFP_KERNEL), -EADDRINUSE);
	/* an address of more bits than tables have is no other one */
	EXPECT_EQ(ktap, iommu_unmap(domain, BIT_ULL(48) + pvt_iova(PVT_DFN), PVT_PAGE_SIZE), 0);
	EXPECT_EQ(ktap, iommu_iova_to_phys(domain, pvt_iova(PVT_DFN)), pvt_iova(t->gfn));
	EXPECT_EQ(ktap, iommu_unmap(domain, pvt_iova(PVT_DFN), PVT_PAGE_SIZE), PVT_PAGE_SIZE);
	EXPECT_EQ(ktap, PTR_ERR_OR_ZERO(pvt_guest_domain(t, IOMMU_HWPT_ALLOC_NEST_PARENT)),
		  -EOPNOTSUPP);
	iommu_domain_free(domain);
}

const struct ktap_case pvt_guest_cases[] = {
	{ "maps and unmaps in tables of the guest send nothing", pvt_guest_silent },
	{ "tables of the guest refuse what the device would refuse", pvt_guest_refuses },
	{ "what is written is noted in the tables of the guest, page by page", pvt_guest_dirty },
};

const unsigned int pvt_nr_guest_cases = ARRAY_SIZE(pvt_guest_cases);
