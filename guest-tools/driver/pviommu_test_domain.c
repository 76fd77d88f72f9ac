// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of domains such as VFIO and iommufd have, through the IOMMU core, with no device attached:
 * their users choose the addresses.
 */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/iommu.h>
#include <linux/pci.h>

#include "pviommu_test.h"

/* as the kernel maps the page of an interrupt controller */
#define PVT_DOMAIN_MSI		(IOMMU_WRITE | IOMMU_NOEXEC | IOMMU_MMIO)
/* pages on either side of a border; a window may have one page only */
#define PVT_AROUND		1

static bool pvt_expect_pages(struct ktap *ktap, struct pvt *t, u64 want)
{
	struct pviommu_usage now;

	return EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &now), 0) &&
	       EXPECT_EQ(ktap, now.mapped_pages, t->before.mapped_pages + want);
}

static void pvt_with_domain(struct ktap *ktap, void *subject, unsigned long body)
{
	struct pvt *t = subject;
	struct iommu_domain *domain;

	domain = iommu_paging_domain_alloc(pvt_dev(t));
	if (!EXPECT(ktap, !IS_ERR_OR_NULL(domain)))
		return;
	((pvt_domain_body)body)(ktap, t, domain);
	iommu_domain_free(domain);
	pvt_expect_pages(ktap, t, 0);
}

/* The first page of a window that is reserved for all devices, or 0. */
static u64 pvt_window(struct pvt *t)
{
	unsigned int i;

	for (i = 0; i < t->caps->nr_reserved; i++)
		if (t->caps->reserved[i].stream == PVIOMMU_GLOBAL_STREAM)
			return t->caps->reserved[i].range.start >> PVIOMMU_PAGE_SHIFT;
	return 0;
}

bool pvt_expect_translates(struct ktap *ktap, struct iommu_domain *domain, u64 dfn, u64 gfn,
			   unsigned int nr_pages)
{
	unsigned int i;

	for (i = 0; i < nr_pages; i++)
		if (!EXPECT_EQ(ktap, iommu_iova_to_phys(domain, pvt_iova(dfn + i)),
			       gfn ? pvt_iova(gfn + i) : 0))
			return false;
	return true;
}

/* As IOMMU_HWPT_ALLOC does for an IOAS without any device. */
static void pvt_domain_window(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	u64 dfn = pvt_window(t) - PVT_AROUND;
	size_t size = 2 * PVT_AROUND * PVT_PAGE_SIZE;

	if (!EXPECT(ktap, pvt_window(t)))
		return;
	if (!EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(dfn), pvt_iova(t->gfn), size,
				       PVT_DOMAIN_RW, GFP_KERNEL), 0))
		return;
	pvt_expect_pages(ktap, t, PVT_AROUND);
	pvt_expect_translates(ktap, domain, dfn, t->gfn, 2 * PVT_AROUND);
	/* it cannot be mapped a second time, in the window or not */
	EXPECT(ktap, iommu_map(domain, pvt_iova(dfn + PVT_AROUND), pvt_iova(t->gfn), PVT_PAGE_SIZE,
			       PVT_DOMAIN_RW, GFP_KERNEL) < 0);
	EXPECT(ktap, iommu_map(domain, pvt_iova(dfn), pvt_iova(t->gfn), PVT_PAGE_SIZE,
			       PVT_DOMAIN_RW, GFP_KERNEL) < 0);
	EXPECT_EQ(ktap, iommu_unmap(domain, pvt_iova(dfn), size), size);
	pvt_expect_pages(ktap, t, 0);
	pvt_expect_translates(ktap, domain, dfn, 0, 2 * PVT_AROUND);
}

/* A map from memory into what is none leaves nothing, and earlier maps stay. */
static void pvt_domain_undone(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	u64 last = pvt_ram_end(t, PVT_AROUND), beside = PVT_DFN + 2 * PVT_AROUND;
	size_t size = 2 * PVT_AROUND * PVT_PAGE_SIZE;

	EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(beside), pvt_iova(t->gfn), PVT_PAGE_SIZE,
				  PVT_DOMAIN_RW, GFP_KERNEL), 0);
	EXPECT(ktap, iommu_map(domain, pvt_iova(PVT_DFN), pvt_iova(last), size,
			       PVT_DOMAIN_RW, GFP_KERNEL) < 0);
	pvt_expect_pages(ktap, t, 1);
	pvt_expect_translates(ktap, domain, PVT_DFN, 0, 2 * PVT_AROUND);
	pvt_expect_translates(ktap, domain, beside, t->gfn, 1);
	EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(PVT_DFN), pvt_iova(t->gfn), size,
				  PVT_DOMAIN_RW, GFP_KERNEL), 0);
	pvt_expect_pages(ktap, t, 1 + 2 * PVT_AROUND);
	EXPECT_EQ(ktap, iommu_unmap(domain, pvt_iova(PVT_DFN), size + PVT_PAGE_SIZE),
		  size + PVT_PAGE_SIZE);
}

static const struct iommu_domain_ops *pvt_ops_before;
static unsigned int pvt_syncs;

static void pvt_counted_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather)
{
	pvt_syncs++;
	pvt_ops_before->iotlb_sync(domain, gather);
}

/* Otherwise the device may use, after an unmap, what it has read before. */
static void pvt_domain_syncs(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	size_t size = 2 * PVT_AROUND * PVT_PAGE_SIZE;
	struct iommu_domain_ops ops = *domain->ops;
	struct iommu_iotlb_gather gather;
	u64 iova = pvt_iova(PVT_DFN);

	pvt_ops_before = domain->ops;
	pvt_syncs = 0;
	ops.iotlb_sync = pvt_counted_sync;
	domain->ops = &ops;
	EXPECT_EQ(ktap, iommu_map(domain, iova, pvt_iova(t->gfn), size, PVT_DOMAIN_RW, GFP_KERNEL),
		  0);
	EXPECT_EQ(ktap, iommu_unmap(domain, iova, PVT_PAGE_SIZE), PVT_PAGE_SIZE);
	EXPECT_EQ(ktap, pvt_syncs, 1);
	iommu_iotlb_gather_init(&gather);
	EXPECT_EQ(ktap, iommu_unmap_fast(domain, iova + PVT_PAGE_SIZE, size - PVT_PAGE_SIZE,
					 &gather), size - PVT_PAGE_SIZE);
	EXPECT_EQ(ktap, pvt_syncs, 1);
	iommu_iotlb_sync(domain, &gather);
	EXPECT_EQ(ktap, pvt_syncs, 2);
	domain->ops = pvt_ops_before;
}

/* Maps that cannot fail are not waited for, except for the tables of the first one. */
static void pvt_domain_posts(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	struct pviommu_usage before, after;
	unsigned int i;

	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &before), 0);
	for (i = 0; i < PVT_PAGES; i++)
		EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(PVT_DFN + 2 * i), pvt_iova(t->gfn + i),
					  PVT_PAGE_SIZE, PVT_DOMAIN_RW, GFP_KERNEL), 0);
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &after), 0);
	EXPECT_EQ(ktap, after.mapped_pages, before.mapped_pages + PVT_PAGES);
	EXPECT(ktap, after.posted - before.posted >= PVT_PAGES);
	/* RESERVE, and the query of the usage */
	EXPECT(ktap, after.waited - before.waited <= 2);
	for (i = 0; i < PVT_PAGES; i++)
		EXPECT_EQ(ktap, iommu_unmap(domain, pvt_iova(PVT_DFN + 2 * i), PVT_PAGE_SIZE),
			  PVT_PAGE_SIZE);
	/* with the last one the reserve goes back to the pool */
	EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &after), 0);
	EXPECT_EQ(ktap, after.pool_used, before.pool_used);
}

/* Messages go where the MSI-X table says, so a page that is elsewhere would lose them. */
static void pvt_domain_messages(struct ktap *ktap, struct pvt *t, struct iommu_domain *domain)
{
	u64 dfn = pvt_window(t);

	if (!EXPECT(ktap, dfn))
		return;
	EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(dfn), pvt_iova(dfn), PVT_PAGE_SIZE,
				  PVT_DOMAIN_MSI, GFP_KERNEL), 0);
	EXPECT_EQ(ktap, iommu_map(domain, pvt_iova(PVT_DFN), pvt_iova(dfn), PVT_PAGE_SIZE,
				  PVT_DOMAIN_MSI, GFP_KERNEL), -EADDRNOTAVAIL);
	pvt_expect_pages(ktap, t, 0);
	pvt_expect_translates(ktap, domain, PVT_DFN, 0, 1);
}

#define PVT_DOMAIN(name, body)	{ name, pvt_with_domain, (unsigned long)(body) }

const struct ktap_case pvt_domain_cases[] = {
	PVT_DOMAIN("a domain notes pages of the reserved window and maps those beside it",
		   pvt_domain_window),
	PVT_DOMAIN("a map from memory into what is none is undone whole", pvt_domain_undone),
	PVT_DOMAIN("pages of interrupt controllers keep their addresses", pvt_domain_messages),
	PVT_DOMAIN("the device is waited for after each unmap that is not deferred",
		   pvt_domain_syncs),
};

const unsigned int pvt_nr_domain_cases = ARRAY_SIZE(pvt_domain_cases);

const struct ktap_case pvt_ring_domain_cases[] = {
	PVT_DOMAIN("maps of a domain that cannot fail are posted, and its pool pages come back",
		   pvt_domain_posts),
};

const unsigned int pvt_nr_ring_domain_cases = ARRAY_SIZE(pvt_ring_domain_cases);
