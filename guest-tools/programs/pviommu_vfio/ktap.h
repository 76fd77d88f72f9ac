/* SPDX-License-Identifier: MIT */
/* A KTAP report on standard output: a plan and a line for each test, with diagnostics before it. */
#ifndef PVIOMMU_VFIO_KTAP_H
#define PVIOMMU_VFIO_KTAP_H

#include <stdbool.h>
#include <stdint.h>

void ktap_plan(unsigned int tests);
void ktap_result(bool passed, const char *name);
/* number of tests that failed so far */
unsigned int ktap_failures(void);

/* A line of diagnostics. Returns false, so that a check can end with it. */
bool complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether a call gave what it must: 0, or a negative errno. */
bool gives(const char *what, int got, int want);
/* Whether two numbers are the same. */
bool same(const char *what, uint64_t got, uint64_t want);

#endif
