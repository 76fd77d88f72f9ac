// SPDX-License-Identifier: MIT
/*
 * pviommu_faultrules ADDRESS: says what the fault rules of the PV-IOMMU at this PCI address did so
 * far, as its driver does in debugfs, but without a driver: a rule may have cost the function that.
 * A line "rule HASH PASSED FIRED CLASS" for each, and nothing if there are none.
 *
 * Exit status: 0 done, 1 the page cannot be read, 2 wrong arguments.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../driver/pviommu_abi.h"

/* What a device may have of capabilities, and how often an area or page is read that changes. */
#define MOST	64

enum { FAILED = 1, USAGE = 2 };

static void fail(const char *what)
{
	fprintf(stderr, "pviommu_faultrules: %s\n", what);
	exit(FAILED);
}

/* The shared memory of the function, whoever has it. */
static const volatile uint8_t *shared_memory(const char *address)
{
	char path[PATH_MAX];
	void *shared;
	int bar;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource%d", address,
		 PVIOMMU_SHARED_BAR);
	bar = open(path, O_RDONLY | O_CLOEXEC);
	if (bar < 0)
		fail(strerror(errno));
	shared = mmap(NULL, PVIOMMU_SHARED_BAR_SIZE, PROT_READ, MAP_SHARED, bar, 0);
	if (shared == MAP_FAILED)
		fail(strerror(errno));
	return shared;
}

static uint32_t word(const volatile uint8_t *at)
{
	return le32toh(*(const volatile uint32_t *)at);
}

static uint64_t number(const volatile uint8_t *at)
{
	return le64toh(*(const volatile uint64_t *)at);
}

/* Copies what has a generation in its second word; whether it did not change meanwhile. */
static int copied(const volatile uint8_t *from, size_t size, uint8_t *to)
{
	const size_t generation = offsetof(struct pviommu_fault_page, generation);
	uint32_t before = word(from + generation);
	size_t at;

	for (at = 0; at < size; at += sizeof(uint64_t))
		*(uint64_t *)(to + at) = *(const volatile uint64_t *)(from + at);
	return !(before & 1) && word(from + generation) == before;
}

static void copy(const volatile uint8_t *from, size_t size, uint32_t magic, uint8_t *to)
{
	int tries;

	for (tries = 0; tries < MOST; tries++) {
		if (!copied(from, size, to))
			continue;
		if (word(to) != magic)
			fail("the function does not answer, or has no such page");
		return;
	}
	fail("the page changes all the time");
}

/* Where the page is; 0: the device has no rules. */
static uint32_t find_page(const volatile uint8_t *shared, uint32_t *size)
{
	static uint8_t area[PVIOMMU_CAPABILITY_SIZE] __attribute__((aligned(8)));
	const size_t record = sizeof(struct pviommu_capability_header) +
			      sizeof(struct pviommu_fault_rules);
	uint32_t at, offset, i;

	copy(shared + PVIOMMU_CAPABILITY_OFFSET, sizeof(area), PVIOMMU_CAPABILITY_MAGIC, area);
	at = word(area + offsetof(struct pviommu_capability_area, first));
	for (i = 0; at && at <= sizeof(area) - record && at % 4 == 0 && i < MOST; i++) {
		if ((word(area + at) & 0xffff) == PVIOMMU_CAP_FAULT_RULES) {
			offset = word(area + at + 8);
			*size = word(area + at + 12);
			if (offset % 8 || *size < sizeof(struct pviommu_fault_page) ||
			    *size > PVIOMMU_FAULT_RULES_SIZE ||
			    offset > PVIOMMU_SHARED_BAR_SIZE - *size)
				fail("the page is not in the shared memory");
			return offset;
		}
		at = word(area + at + offsetof(struct pviommu_capability_header, next));
	}
	return 0;
}

int main(int argc, char **argv)
{
	static uint8_t page[PVIOMMU_FAULT_RULES_SIZE] __attribute__((aligned(8)));
	const size_t head = sizeof(struct pviommu_fault_page);
	const volatile uint8_t *shared;
	uint32_t offset, size, count, step, i;
	unsigned long long hash, passed, fired;
	const uint8_t *rule;
	uint32_t flags;

	if (argc != 2 || strchr(argv[1], '/')) {
		fprintf(stderr, "usage: pviommu_faultrules ADDRESS\n");
		return USAGE;
	}
	shared = shared_memory(argv[1]);
	offset = find_page(shared, &size);
	if (!offset)
		return 0;
	copy(shared + offset, size, PVIOMMU_FAULT_PAGE_MAGIC, page);
	count = word(page + offsetof(struct pviommu_fault_page, rules));
	step = word(page + offsetof(struct pviommu_fault_page, record_size));
	if (step < sizeof(struct pviommu_fault_rule) || step % 8 || count > (size - head) / step)
		fail("the page has no sound records");
	for (i = 0; i < count; i++) {
		rule = page + head + i * step;
		hash = number(rule);
		passed = number(rule + offsetof(struct pviommu_fault_rule, passed));
		fired = number(rule + offsetof(struct pviommu_fault_rule, fired));
		flags = word(rule + offsetof(struct pviommu_fault_rule, flags));
		printf("rule %016llx %llu %llu %s\n", hash, passed, fired,
		       flags & PVIOMMU_FAULT_RULE_ADVERSARIAL ? "adversarial" : "conforming");
	}
	return 0;
}
