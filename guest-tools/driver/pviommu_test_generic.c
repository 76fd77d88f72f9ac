// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the driver's writer of tables beside the kernel's own, where the kernel has it: after
 * each step of a random history the tables of both are the same, entry by entry. The source under
 * test is included in this file. The seed is the same in each run.
 */

#define pr_fmt(fmt) "pviommu_test: " fmt

#include <linux/prandom.h>

#include "pviommu_test.h"
#include "pviommu_namespace.h"

#ifdef PVIOMMU_HAS_GENERIC_PT
#include <linux/generic_pt/iommu.h>

#undef pr_fmt
#include "pviommu_guest_table.c"

#define PVT_GENERIC_STEPS	300
#define PVT_GENERIC_MAPS	32
#define PVT_GENERIC_BASE	(BIT_ULL(39) - 2ULL * SZ_1G)
#define PVT_GENERIC_SPAN	(4ULL * SZ_1G)

/**
 * struct pvt_map - addresses that were mapped by one call, to be unmapped by one
 * @iova: the first
 * @size: bytes, 0 for none
 */
struct pvt_map {
	u64 iova;
	u64 size;
};

/**
 * struct pvt_twins - two tables with the same content
 * @ours: by the driver
 * @pages: counts its pages
 * @kernel: by the kernel
 * @random: state of the generator
 * @maps: what is mapped
 */
struct pvt_twins {
	struct pviommu_guest_table ours;
	atomic_t pages;
	struct pt_iommu_vtdss kernel;
	struct rnd_state random;
	struct pvt_map maps[PVT_GENERIC_MAPS];
};

/* Nobody walks these tables. */
static void pvt_generic_sync(struct iommu_domain *domain, struct iommu_iotlb_gather *gather)
{
}

static bool pvt_generic_quiesce(struct pviommu_guest_table *table)
{
	return true;
}

static const struct iommu_domain_ops pvt_generic_ops = {
	.iotlb_sync = pvt_generic_sync,
};

static u32 pvt_generic_random(struct pvt_twins *twins, u32 below)
{
	return prandom_u32_state(&twins->random) % below;
}

/*
 * Whether both have the same entries, except for where their tables are. The kernel frees a table
 * that an unmap leaves empty, the driver keeps it.
 */
static bool pvt_generic_same(struct ktap *ktap, const u64 *ours, const u64 *kernel,
			     unsigned int level)
{
	unsigned int i;
	u64 one, other;

	for (i = 0; i < PVIOMMU_SS_ENTRIES; i++) {
		one = ours[i];
		other = kernel ? kernel[i] : 0;
		if (one && !pviommu_ss_is_leaf(one, level)) {
			if (other && !EXPECT_EQ(ktap, one & ~PVIOMMU_SS_ADDRESS,
						other & ~PVIOMMU_SS_ADDRESS))
				return false;
			if (!pvt_generic_same(ktap, pviommu_ss_below(one),
					      other ? pviommu_ss_below(other) : NULL, level - 1))
				return false;
			continue;
		}
		if (!EXPECT_EQ(ktap, one, other)) {
			ktap_print(ktap, "# that was entry %u of level %u\n", i, level);
			return false;
		}
	}
	return true;
}

static bool pvt_generic_is_free(struct pvt_twins *twins, u64 iova, u64 size)
{
	unsigned int i;

	for (i = 0; i < PVT_GENERIC_MAPS; i++)
		if (twins->maps[i].size && iova < twins->maps[i].iova + twins->maps[i].size &&
		    iova + size > twins->maps[i].iova)
			return false;
	return true;
}

/*
 * The kernel's takes any range, and divides it; the IOMMU core does that for the driver, largest
 * leaves first.
 */
static int pvt_generic_map_ours(struct pvt_twins *twins, u64 iova, u64 paddr, u64 size, u64 access)
{
	unsigned int level;
	u64 mapped;
	int ret;

	for (; size; iova += mapped, paddr += mapped, size -= mapped) {
		for (level = 2; level; level--)
			if (IS_ALIGNED(iova | paddr, BIT_ULL(pviommu_ss_shift(level))) &&
			    size >= BIT_ULL(pviommu_ss_shift(level)))
				break;
		mapped = 0;
		ret = pviommu_guest_table_map(&twins->ours, iova, paddr,
					      BIT_ULL(pviommu_ss_shift(level)), level, access,
					      GFP_KERNEL, &mapped);
		if (ret)
			return ret;
	}
	return 0;
}

static bool pvt_generic_map(struct ktap *ktap, struct pvt_twins *twins, struct pvt_map *map)
{
	static const u64 units[] = { SZ_4K, SZ_4K, SZ_2M, SZ_2M, SZ_1G };
	u64 unit = units[pvt_generic_random(twins, ARRAY_SIZE(units))];
	u64 size = unit * (1 + pvt_generic_random(twins, 4)), paddr, iova;
	unsigned int prot = 1 + pvt_generic_random(twins, 3);
	size_t mapped = 0;

	if (pvt_generic_random(twins, 3) == 0)
		size += (u64)SZ_4K * pvt_generic_random(twins, 1200);
	iova = PVT_GENERIC_BASE + unit * pvt_generic_random(twins, PVT_GENERIC_SPAN / unit);
	paddr = BIT_ULL(40) + unit * pvt_generic_random(twins, 2048);
	if (iova + size > PVT_GENERIC_BASE + PVT_GENERIC_SPAN ||
	    !pvt_generic_is_free(twins, iova, size))
		return true;
	map->iova = iova;
	map->size = size;
	return EXPECT_EQ(ktap, twins->kernel.iommu.ops->map_range(&twins->kernel.iommu, iova, paddr,
								  size, prot, GFP_KERNEL, &mapped),
			 0) &&
	       EXPECT_EQ(ktap, mapped, size) &&
	       EXPECT_EQ(ktap, pvt_generic_map_ours(twins, iova, paddr, size, prot), 0);
}

static bool pvt_generic_unmap(struct ktap *ktap, struct pvt_twins *twins, struct pvt_map *map)
{
	struct iommu_iotlb_gather gather;
	u64 size = map->size;

	iommu_iotlb_gather_init(&gather);
	map->size = 0;
	if (!EXPECT_EQ(ktap, twins->kernel.iommu.ops->unmap_range(&twins->kernel.iommu, map->iova,
								  size, &gather), size))
		return false;
	iommu_put_pages_list(&gather.freelist);
	return EXPECT_EQ(ktap, pviommu_guest_table_unmap(&twins->ours, map->iova, size), size);
}

static bool pvt_generic_step(struct ktap *ktap, struct pvt_twins *twins)
{
	struct pvt_map *map = &twins->maps[pvt_generic_random(twins, PVT_GENERIC_MAPS)];
	struct pt_iommu_vtdss_hw_info info;

	if (!(map->size ? pvt_generic_unmap(ktap, twins, map) : pvt_generic_map(ktap, twins, map)))
		return false;
	pt_iommu_vtdss_hw_info(&twins->kernel, &info);
	return pvt_generic_same(ktap, twins->ours.root, phys_to_virt(info.ssptptr),
				PVIOMMU_SS_LEVELS - 1);
}

static void pvt_generic(struct ktap *ktap, void *subject, unsigned long seed)
{
	const struct pt_iommu_vtdss_cfg cfg = {
		.common = {
			.features = BIT(PT_FEAT_FLUSH_RANGE),
			.hw_max_vasz_lg2 = PVIOMMU_SS_ADDRESS_BITS,
			.hw_max_oasz_lg2 = 52,
		},
		.top_level = PVIOMMU_SS_LEVELS - 1,
	};
	struct pvt_twins *twins = kzalloc(sizeof(*twins), GFP_KERNEL);
	unsigned int step, i;

	if (!EXPECT(ktap, twins))
		return;
	prandom_seed_state(&twins->random, seed);
	twins->kernel.iommu.nid = NUMA_NO_NODE;
	twins->kernel.iommu.domain.ops = &pvt_generic_ops;
	if (!EXPECT_EQ(ktap, pt_iommu_vtdss_init(&twins->kernel, &cfg, GFP_KERNEL), 0))
		goto out_free;
	if (!EXPECT_EQ(ktap, pviommu_guest_table_init(&twins->ours, &twins->pages,
						      pvt_generic_quiesce), 0))
		goto out_kernel;
	for (step = 0; step < PVT_GENERIC_STEPS; step++) {
		if (!pvt_generic_step(ktap, twins)) {
			ktap_print(ktap, "# in step %u\n", step);
			break;
		}
		cond_resched();
	}
	for (i = 0; i < PVT_GENERIC_MAPS; i++)
		if (twins->maps[i].size && !ktap->failed)
			pvt_generic_unmap(ktap, twins, &twins->maps[i]);
	pviommu_guest_table_free(&twins->ours);
	EXPECT_EQ(ktap, atomic_read(&twins->pages), 0);
out_kernel:
	pt_iommu_deinit(&twins->kernel.iommu);
out_free:
	kfree(twins);
}

const struct ktap_case pvt_generic_cases[] = {
	{ "the driver writes the tables that the kernel's library writes, seed 1", pvt_generic, 1 },
	{ "the driver writes the tables that the kernel's library writes, seed 2", pvt_generic, 2 },
};

const unsigned int pvt_nr_generic_cases = ARRAY_SIZE(pvt_generic_cases);

PVIOMMU_IMPORT(GENERIC_PT_IOMMU);
#else
const struct ktap_case pvt_generic_cases[] = {};
const unsigned int pvt_nr_generic_cases;
#endif
