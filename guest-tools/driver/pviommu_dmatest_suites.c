// SPDX-License-Identifier: GPL-2.0-only
/*
 * The suites of the DMA tests, by the name that is written to "run". Which of them can pass depends
 * on the type of the engine's domain.
 */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include "pviommu_dmatest_buffer.h"

static const struct {
	const char *name;
	const struct ktap_case *cases;
	const unsigned int *count;
} pvdt_suites[] = {
	{ "all", pvdt_all_cases, &pvdt_nr_all_cases },
	{ "memory", pvdt_all_cases, &pvdt_nr_memory_cases },
	{ "quick", pvdt_quick_cases, &pvdt_nr_quick_cases },
	{ "untranslated", pvdt_plain_cases, &pvdt_nr_plain_cases },
	{ "strict", pvdt_strict_cases, &pvdt_nr_strict_cases },
	{ "lazy", pvdt_lazy_cases, &pvdt_nr_lazy_cases },
	{ "storm", pvdt_storm_cases, &pvdt_nr_storm_cases },
	{ "long-storm", pvdt_long_storm_cases, &pvdt_nr_long_storm_cases },
	{ "paused", pvdt_paused_cases, &pvdt_nr_paused_cases },
	{ "queued", pvdt_queued_cases, &pvdt_nr_queued_cases },
	{ "faulty", pvdt_faulty_cases, &pvdt_nr_faulty_cases },
	{ "glance", pvdt_glance_cases, &pvdt_nr_glance_cases },
	{ "lost", pvdt_lost_cases, &pvdt_nr_lost_cases },
};

int pvdt_tests_run(struct ktap *ktap)
{
	unsigned int i, count;

	for (i = 0; i < ARRAY_SIZE(pvdt_suites); i++) {
		if (strcmp(pvdt_suites[i].name, ktap->suite))
			continue;
		count = *pvdt_suites[i].count;
		ktap_print(ktap, "KTAP version 1\n1..%u\n", count);
		ktap_cases(ktap, pvdt_suites[i].cases, count, 1, ktap->context);
		return 0;
	}
	return -EINVAL;
}
