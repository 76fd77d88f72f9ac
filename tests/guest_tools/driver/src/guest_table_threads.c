// SPDX-License-Identifier: MIT
/*
 * Threads at work on one lowest table that a device walks meanwhile, which is a thread too. Each
 * owner has a part of the addresses, as users of a domain do, and must find there what it has put
 * there. Once in each round one of them owns all: it puts a large leaf in the place of the table,
 * whose page is freed, and splits it again. The device writes through whatever it finds, and keeps
 * to the protocol of the in-flight line, on which the waiting for its walks rests.
 *
 * usage: guest_table_threads ROUNDS
 */
#include <stdio.h>

#include "kernel.h"

#include "pviommu_guest_table.c"

#define OWNERS	3
#define PAGES	512
#define LARGE	(PAGES * 4096ULL)
#define BASE	(1ULL << 30)
#define FRAMES	(1ULL << 40)
#define RW	(PVIOMMU_SS_READ | PVIOMMU_SS_WRITE)

int pages_left = -1;

static struct pviommu_guest_table table;
static pthread_barrier_t barrier;
static atomic_t pages;
static unsigned int rounds, step;
static bool over;

struct owner {
	pthread_t thread;
	unsigned int number;
	unsigned int failures;
	unsigned int seed;
};

static void expect(struct owner *owner, bool holds, const char *what, u64 page)
{
	if (!holds && !owner->failures++)
		printf("thread %u: %s at %llu\n", owner->number, what, page);
}

/* A step that goes on may have read an entry as it was. */
static bool quiesce(struct pviommu_guest_table *ignored)
{
	unsigned int seen;

	(void)ignored;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	seen = __atomic_load_n(&step, __ATOMIC_ACQUIRE);
	while (seen & 1 && __atomic_load_n(&step, __ATOMIC_ACQUIRE) == seen)
		;
	return true;
}

/* One write of the device: the accessed and the dirty bit of the leaf, if there is one. */
static void write_through(u64 iova)
{
	u64 *at = table.root, entry, *place;

	for (unsigned int shift = 39;; shift -= 9) {
		place = &at[iova >> shift & 511];
		entry = __atomic_load_n(place, __ATOMIC_CONSUME);
		if (!(entry & 3))
			return;
		if (shift == 12 || entry & 1 << 7)
			break;
		at = (u64 *)(uintptr_t)(entry & 0xffffffffff000);
	}
	/* if it has changed, the write is refused or done anew */
	cmpxchg(place, entry, entry | 0x300);
}

static void *walk(void *data)
{
	unsigned int seed = 99;

	(void)data;
	while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&step, step + 1, __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		write_through(BASE + rand_r(&seed) % PAGES * 4096);
		__atomic_store_n(&step, step + 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static u64 frame(unsigned int round, u64 page)
{
	return FRAMES + ((u64)round % 100 * PAGES + page) * 4096;
}

static void expect_page(struct owner *owner, unsigned int round, u64 page, bool mapped)
{
	u64 paddr;

	expect(owner, pviommu_guest_table_lookup(&table, BASE + page * 4096, &paddr) == mapped,
	       "found", page);
	expect(owner, paddr == (mapped ? frame(round, page) : 0), "address", page);
}

/* By the one that owns all meanwhile: what there was goes, and a large leaf comes or nothing. */
static void own_all(struct owner *owner, unsigned int round)
{
	u64 mapped = 0;

	for (u64 page = 0; page < PAGES; page++)
		pviommu_guest_table_unmap(&table, BASE + page * 4096, 4096);
	if (round % 2)
		return;
	expect(owner, !pviommu_guest_table_map(&table, BASE, frame(round, 0), LARGE, 1, RW,
					       GFP_KERNEL, &mapped) && mapped == LARGE, "large", 0);
	/* split, so that all others find their pages */
	expect(owner, pviommu_guest_table_unmap(&table, BASE, 4096) == 4096, "split", 0);
	mapped = 0;
	expect(owner, !pviommu_guest_table_map(&table, BASE, frame(round, 0), 4096, 0, RW,
					       GFP_KERNEL, &mapped), "first", 0);
}

static void *work(void *data)
{
	struct owner *owner = data;
	bool mapped[PAGES];
	u64 page, done;

	for (unsigned int round = 0; round < rounds; round++) {
		if (owner->number == round % OWNERS)
			own_all(owner, round);
		pthread_barrier_wait(&barrier);
		memset(mapped, round % 2 == 0, sizeof(mapped));
		for (unsigned int i = 0; i < 60; i++) {
			page = rand_r(&owner->seed) % (PAGES / OWNERS) * OWNERS + owner->number;
			done = 0;
			if (mapped[page])
				expect(owner, pviommu_guest_table_unmap(&table, BASE + page * 4096,
									4096) == 4096,
				       "unmapped", page);
			else
				expect(owner, !pviommu_guest_table_map(&table, BASE + page * 4096,
								       frame(round, page), 4096, 0,
								       RW, GFP_KERNEL, &done),
				       "mapped", page);
			mapped[page] = !mapped[page];
			expect_page(owner, round, page, mapped[page]);
		}
		for (page = owner->number; page < PAGES / OWNERS * OWNERS; page += OWNERS)
			expect_page(owner, round, page, mapped[page]);
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct owner owners[OWNERS] = {};
	unsigned int i, failures = 0;
	pthread_t device;

	rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
	if (pviommu_guest_table_init(&table, &pages, quiesce) ||
	    pthread_create(&device, NULL, walk, NULL))
		return 2;
	pthread_barrier_init(&barrier, NULL, OWNERS);
	for (i = 0; i < OWNERS; i++) {
		owners[i].number = i;
		owners[i].seed = i + 1;
		if (pthread_create(&owners[i].thread, NULL, work, &owners[i]))
			return 2;
	}
	for (i = 0; i < OWNERS; i++) {
		pthread_join(owners[i].thread, NULL);
		failures += owners[i].failures;
	}
	__atomic_store_n(&over, true, __ATOMIC_RELEASE);
	pthread_join(device, NULL);
	pviommu_guest_table_free(&table);
	if (failures || atomic_read(&pages))
		return 1;
	printf("%u rounds\n", rounds);
	return 0;
}
