// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the PV-IOMMU by raw operations: /sys/kernel/debug/pviommu_test/{run,ktap}.
 *
 * The tests use their own contexts. DMA test engines are moved there without the IOMMU core's
 * knowledge and moved back, so nothing else may use the engines meanwhile.
 */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/module.h>
#include <linux/pci.h>

#include "pviommu_test.h"
#include "pviommu_namespace.h"

static struct ktap pvt_ktap;
static struct dentry *pvt_debugfs;

static bool pvt_expect_home(struct ktap *ktap, struct pvt *t, unsigned int engine)
{
	u32 stream;
	u16 ctx;

	return !t->engine[engine] ||
	       (EXPECT_EQ(ktap, pvt_endpoint(t, t->sbdf[engine], &stream, &ctx), 0) &&
		EXPECT_EQ(ktap, ctx, t->home[engine]));
}

static void pvt_no_leak(struct ktap *ktap, void *subject, unsigned long param)
{
	struct pviommu_usage after;
	struct pvt *t = subject;
	unsigned int i;

	for (i = 0; i < PVT_ENGINES; i++)
		pvt_expect_home(ktap, t, i);
	if (!EXPECT_EQ(ktap, pviommu_raw_ops.usage(t->pv, &after), 0))
		return;
	EXPECT_EQ(ktap, after.contexts, t->before.contexts);
	EXPECT_EQ(ktap, after.bindings, t->before.bindings);
	EXPECT_EQ(ktap, after.pool_used, t->before.pool_used);
	EXPECT_EQ(ktap, after.mapped_pages, t->before.mapped_pages);
	EXPECT_EQ(ktap, after.events_lost, t->before.events_lost);
	EXPECT_EQ(ktap, after.domains, t->before.domains);
	EXPECT_EQ(ktap, after.table_pages, t->before.table_pages);
	EXPECT_EQ(ktap, after.endpoints, t->before.endpoints);
	EXPECT_EQ(ktap, after.slots_in_flight, t->before.slots_in_flight);
}

static const struct ktap_case pvt_last_cases[] = {
	{ "nothing leaked and the engines are back", pvt_no_leak },
};

static int pvt_find_engines(struct pvt *t)
{
	struct pci_dev *pdev;
	unsigned int i;
	int ret;

	for (i = 0; i < PVT_ENGINES; i++) {
		t->engine[i] = pvdt_client_ops.get(i);
		if (!t->engine[i])
			break;
		pdev = pvdt_client_ops.pci_dev(t->engine[i]);
		t->sbdf[i] = (u32)pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev);
		ret = pvt_endpoint(t, t->sbdf[i], &t->stream[i], &t->home[i]);
		if (ret) {
			pci_err(pdev, "is not behind the PV-IOMMU: %pe\n", ERR_PTR(ret));
			return ret;
		}
	}
	if (!i)
		pr_err("no DMA test engine\n");
	return i ? 0 : -ENODEV;
}

static void pvt_put_engines(struct pvt *t)
{
	unsigned int i;

	for (i = 0; i < PVT_ENGINES; i++)
		if (t->engine[i])
			pvdt_client_ops.put(t->engine[i]);
}

static const struct pvt_profile *pvt_find_profile(u32 number)
{
	static const struct pvt_profile *const profiles[] = { &pvt_xen_2024, &pvt_xen_v7 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(profiles); i++)
		if (profiles[i]->number == number)
			return profiles[i];
	pr_err("no tests for profile %u\n", number);
	return NULL;
}

/* A separate suite, because it needs the driver's debug_doorbell_us. */
static void pvt_run_doorbell(struct ktap *ktap, struct pvt *t)
{
	ktap_print(ktap, "KTAP version 1\n1..%u\n", pvt_nr_doorbell_cases);
	ktap_cases(ktap, pvt_doorbell_cases, pvt_nr_doorbell_cases, 1, t);
}

static void pvt_run_all(struct ktap *ktap, struct pvt *t)
{
	const bool has_tables = pviommu_raw_ops.has_tables(t->pv);
	const struct {
		const struct ktap_case *cases;
		unsigned int count;
	} parts[] = {
		{ pvt_fault_cases, pvt_nr_fault_cases },
		{ pvt_op_cases, pvt_nr_op_cases },
		{ pvt_context_cases, pvt_nr_context_cases },
		{ pvt_table_cases, pvt_nr_table_cases },
		{ pvt_domain_cases, pvt_nr_domain_cases },
		{ pvt_ring_domain_cases, has_tables ? 0 : pvt_nr_ring_domain_cases },
		{ pvt_guest_cases, has_tables ? pvt_nr_guest_cases : 0 },
		{ pvt_generic_cases, pvt_nr_generic_cases },
		{ pvt_attached_cases, pvt_nr_attached_cases },
		{ pvt_pool_cases, pvt_nr_pool_cases },
		{ pvt_ring_cases, pvt_nr_ring_cases },
		{ pvt_batch_cases, pvt_nr_batch_cases },
		{ t->profile->cases, *t->profile->nr_cases },
		{ pvt_storm_cases, pvt_nr_storm_cases },
		{ pvt_last_cases, ARRAY_SIZE(pvt_last_cases) },
	};
	unsigned int i, total = 0, first = 1;

	for (i = 0; i < ARRAY_SIZE(parts); i++)
		total += parts[i].count;
	ktap_print(ktap, "KTAP version 1\n1..%u\n", total);
	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		ktap_cases(ktap, parts[i].cases, parts[i].count, first, t);
		first += parts[i].count;
	}
}

static int pvt_run(struct ktap *ktap)
{
	const unsigned int order = get_order(PVT_PAGES * PVT_PAGE_SIZE);
	struct page *pages;
	struct pvt *t;
	int ret;

	t = kzalloc(sizeof(*t), GFP_KERNEL);
	if (!t)
		return -ENOMEM;
	ret = -ENODEV;
	t->pv = pviommu_raw_ops.get();
	if (!t->pv) {
		pr_err("no PV-IOMMU\n");
		goto out_free;
	}
	t->caps = pviommu_raw_ops.capabilities(t->pv);
	t->profile = pvt_find_profile(pviommu_raw_ops.profile(t->pv));
	if (!t->profile)
		goto out_put;
	ret = -ENOMEM;
	pages = alloc_pages(GFP_KERNEL, order);
	if (!pages)
		goto out_put;
	t->memory = page_address(pages);
	t->gfn = page_to_phys(pages) >> PVIOMMU_PAGE_SHIFT;
	ret = pvt_find_engines(t);
	if (ret)
		goto out_engines;
	ret = pviommu_raw_ops.usage(t->pv, &t->before);
	if (ret)
		goto out_engines;
	if (!strcmp(ktap->suite, "doorbell"))
		pvt_run_doorbell(ktap, t);
	else
		pvt_run_all(ktap, t);

out_engines:
	pvt_put_engines(t);
	__free_pages(pages, order);
out_put:
	pviommu_raw_ops.put(t->pv);
out_free:
	kfree(t);
	return ret;
}

static int __init pvt_init(void)
{
	int ret = ktap_init(&pvt_ktap, pvt_run, NULL);

	if (ret)
		return ret;
	pvt_debugfs = debugfs_create_dir(KBUILD_MODNAME, NULL);
	ktap_files(&pvt_ktap, pvt_debugfs);
	return 0;
}
module_init(pvt_init);

static void __exit pvt_exit(void)
{
	debugfs_remove_recursive(pvt_debugfs);
	ktap_free(&pvt_ktap);
}
module_exit(pvt_exit);

MODULE_DESCRIPTION("Tests of the paravirtual IOMMU");
MODULE_LICENSE("GPL");
PVIOMMU_IMPORT(PVIOMMU);
PVIOMMU_IMPORT(PVIOMMU_DMATEST);
