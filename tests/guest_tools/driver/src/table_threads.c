// SPDX-License-Identifier: MIT
/*
 * Threads at work on one lowest table of the driver's. Each owns a part of its addresses, as users
 * of a domain do; once in each round one of them owns all, and makes or ends a run. Each thread
 * looks at its own addresses only, and must find there what it has put there.
 *
 * usage: table_threads ROUNDS
 */
#include "threads.h"

#include "pviommu_table.c"

#define ENTRIES	512
#define PARTS	16	/* of a thread */
#define PART	(ENTRIES / (THREADS * PARTS + 1))

static struct pviommu_table table;
static atomic_t pages;

/* The parts of a thread lie between those of the others, the last entries are thread 0's. */
static u64 part_of(const struct worker *worker, unsigned int i)
{
	return (u64)(i * THREADS + worker->number) * PART;
}

static u64 frame(unsigned int round, u64 dfn)
{
	return ((u64)round << 20) + 0x10000 + dfn;
}

static void expect_part(struct worker *worker, u64 dfn, unsigned int round, bool mapped)
{
	u64 gfn, i;

	for (i = dfn; i < dfn + PART; i++) {
		expect(worker, pviommu_table_lookup(&table, i, &gfn) == mapped, "found", i);
		expect(worker, gfn == (mapped ? frame(round, i) : 0), "frame", i);
	}
}

static void take_part_out(struct worker *worker, u64 dfn, unsigned int round)
{
	u64 kind, cleared;

	/* without a look first: all begin at the same time, and nothing may come before that */
	cleared = pviommu_table_clear_run(&table, dfn, PART, &kind);
	expect(worker, cleared == PART && kind == PVIOMMU_ENTRY_MAPPED, "cleared", dfn);
	expect_part(worker, dfn, round, false);
}

static void put_part_in(struct worker *worker, u64 dfn, unsigned int round)
{
	u64 value = PVIOMMU_ENTRY_MAPPED | frame(round, dfn);

	expect(worker, !pviommu_table_fill(&table, dfn, PART, value, GFP_KERNEL), "filled", dfn);
	expect_part(worker, dfn, round, true);
}

/* By the one that owns all meanwhile: what there was goes, and a run comes or nothing. */
static void make_run(struct worker *worker, unsigned int round)
{
	u64 i, gfn;

	/* over what is there, as when a map whose pages were claimed has succeeded */
	pviommu_table_set(&table, 0, ENTRIES, PVIOMMU_ENTRY_MAPPED | frame(round, 0));
	if (round % 3 == 0)
		return;
	pviommu_table_clear(&table, 0, ENTRIES);
	for (i = 0; i < ENTRIES; i++)
		expect(worker, !pviommu_table_lookup(&table, i, &gfn), "emptied", i);
	if (round % 3 == 1)
		expect(worker, !pviommu_table_fill(&table, 0, ENTRIES,
						   PVIOMMU_ENTRY_MAPPED | frame(round, 0),
						   GFP_KERNEL), "run", 0);
}

static void *work(void *data)
{
	struct worker *worker = data;
	unsigned int round, part, i;
	bool mapped[PARTS];

	for (round = 0; round < rounds; round++) {
		if (worker->number == round % THREADS)
			make_run(worker, round);
		pthread_barrier_wait(&barrier);
		memset(mapped, round % 3 != 2, sizeof(mapped));
		for (i = 0; i < PARTS; i++) {
			part = rand_r(&worker->seed) % PARTS;
			if (mapped[part])
				take_part_out(worker, part_of(worker, part), round);
			else
				put_part_in(worker, part_of(worker, part), round);
			mapped[part] = !mapped[part];
		}
		for (i = 0; i < PARTS; i++)
			expect_part(worker, part_of(worker, i), round, mapped[i]);
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int ret;

	if (pviommu_table_init(&table, 39, &pages) ||
	    pviommu_table_prepare(&table, 0, ENTRIES, GFP_KERNEL))
		return 2;
	ret = run_workers(argc, argv, work);
	pviommu_table_free(&table);
	if (ret || atomic_read(&pages))
		return 1;
	printf("%u rounds\n", rounds);
	return 0;
}
