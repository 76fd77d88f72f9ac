// SPDX-License-Identifier: MIT
/*
 * Threads at work on one lowest table that a device walks meanwhile, which is a thread too. Each
 * worker has a part of the addresses, as users of a domain do, and must find there what it has put
 * there. Once in each round one of them owns all: it puts a large leaf in the place of the table,
 * whose page is freed, and splits it again. Time and again it is not told that the device's walks
 * have ended, and has to try once more. The device writes through whatever it finds, and keeps to
 * the protocol of the in-flight line, on which the waiting for its walks rests.
 *
 * usage: guest_table_threads ROUNDS
 */
#include "threads.h"

#include "pviommu_guest_table.c"

#define PAGES	512
#define LARGE	(PAGES * 4096ULL)
#define BASE	(1ULL << 30)
#define FRAMES	(1ULL << 40)
#define RW	(PVIOMMU_SS_READ | PVIOMMU_SS_WRITE)

static struct pviommu_guest_table table;
static atomic_t pages;
static unsigned int step;
static bool over;
/* set by the one that owns all */
static bool lost;

/* A step that goes on may have read an entry as it was. */
static bool quiesce(struct pviommu_guest_table *ignored)
{
	unsigned int seen;

	(void)ignored;
	if (lost)
		return false;
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

static void expect_page(struct worker *worker, unsigned int round, u64 page, bool mapped)
{
	u64 paddr;

	expect(worker, pviommu_guest_table_lookup(&table, BASE + page * 4096, &paddr) == mapped,
	       "found", page);
	expect(worker, paddr == (mapped ? frame(round, page) : 0), "address", page);
}

/* By the one that owns all meanwhile: what there was goes, and a large leaf comes or nothing. */
static void own_all(struct worker *worker, unsigned int round)
{
	u64 mapped = 0;

	for (u64 page = 0; page < PAGES; page++)
		pviommu_guest_table_unmap(&table, BASE + page * 4096, 4096);
	if (round % 2)
		return;
	lost = round && round % 4 == 0; /* in round 0 there is no table yet */
	if (lost)
		expect(worker, pviommu_guest_table_map(&table, BASE, frame(round, 0), LARGE, 1, RW,
						       GFP_KERNEL, &mapped) == -EIO && !mapped,
		       "lost", 0);
	lost = false;
	expect(worker, !pviommu_guest_table_map(&table, BASE, frame(round, 0), LARGE, 1, RW,
						GFP_KERNEL, &mapped) && mapped == LARGE,
	       "large", 0);
	/* split, so that all others find their pages */
	expect(worker, pviommu_guest_table_unmap(&table, BASE, 4096) == 4096, "split", 0);
	mapped = 0;
	expect(worker, !pviommu_guest_table_map(&table, BASE, frame(round, 0), 4096, 0, RW,
						GFP_KERNEL, &mapped), "first", 0);
}

static void *work(void *data)
{
	struct worker *worker = data;
	bool mapped[PAGES];
	u64 page, done;

	for (unsigned int round = 0; round < rounds; round++) {
		if (worker->number == round % THREADS)
			own_all(worker, round);
		pthread_barrier_wait(&barrier);
		memset(mapped, round % 2 == 0, sizeof(mapped));
		for (unsigned int i = 0; i < 60; i++) {
			page = rand_r(&worker->seed) % (PAGES / THREADS) * THREADS + worker->number;
			done = 0;
			if (mapped[page])
				expect(worker, pviommu_guest_table_unmap(&table, BASE + page * 4096,
									 4096) == 4096,
				       "unmapped", page);
			else
				expect(worker, !pviommu_guest_table_map(&table, BASE + page * 4096,
									frame(round, page), 4096, 0,
									RW, GFP_KERNEL, &done),
				       "mapped", page);
			mapped[page] = !mapped[page];
			expect_page(worker, round, page, mapped[page]);
		}
		for (page = worker->number; page < PAGES / THREADS * THREADS; page += THREADS)
			expect_page(worker, round, page, mapped[page]);
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t device;
	int ret;

	if (pviommu_guest_table_init(&table, &pages, quiesce) ||
	    pthread_create(&device, NULL, walk, NULL))
		return 2;
	ret = run_workers(argc, argv, work);
	__atomic_store_n(&over, true, __ATOMIC_RELEASE);
	pthread_join(device, NULL);
	pviommu_guest_table_free(&table);
	if (ret || atomic_read(&pages))
		return 1;
	printf("%u rounds\n", rounds);
	return 0;
}
