// SPDX-License-Identifier: GPL-2.0-only
/*
 * A storm: on every CPU, one thread per engine maps buffers of random size, copies between them and
 * unmaps them. Every byte is checked, those around the copy too.
 */

#define pr_fmt(fmt) "pviommu_dmatest: " fmt

#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/kthread.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "pviommu_dmatest_buffer.h"

#define PVDT_STORM_ROUNDS	64
#define PVDT_LONG_STORM_ROUNDS	256
#define PVDT_STORM_ENGINES	8
/* once in so many rounds a copy is long, and a DMA goes where nothing is ever mapped */
#define PVDT_STORM_LONG		32
#define PVDT_STORM_ASTRAY	16
/* addresses are given out from the top, so this one never is */
#define PVDT_STORM_NOWHERE	0x10000

/**
 * struct pvdt_storm - the work of one thread, and its results
 * @engine: the engine that copies for it
 * @task: the thread
 * @rounds: how often
 * @random: state of the generator
 * @bytes: copied and checked
 * @maps: buffers mapped
 * @refused: DMA requests that were refused as they must be
 * @wrong: line of the first check that failed, 0 for none
 * @done: the thread has ended its work
 */
struct pvdt_storm {
	struct pvdt *engine;
	struct task_struct *task;
	unsigned int rounds;
	u32 random;
	u64 bytes;
	unsigned int maps;
	unsigned int refused;
	unsigned int wrong;
	struct completion done;
};

/* The first failure ends the work of its thread, once the round has freed what it has. */
#define PVDT_STORM_CHECK(storm, condition) \
	pvdt_storm_check(storm, condition, __LINE__)

static bool pvdt_storm_check(struct pvdt_storm *storm, bool holds, unsigned int line)
{
	if (!holds && !storm->wrong)
		storm->wrong = line;
	return holds;
}

static u32 pvdt_storm_below(struct pvdt_storm *storm, u32 limit)
{
	storm->random ^= storm->random << 13;
	storm->random ^= storm->random >> 17;
	storm->random ^= storm->random << 5;
	return storm->random % limit;
}

static bool pvdt_storm_copied(struct pvdt_buffer *src, struct pvdt_buffer *dst, size_t from,
			      size_t to, size_t length)
{
	return !memcmp(dst->cpu + to, src->cpu + from, length) && pvdt_guarded(dst->cpu, to) &&
	       pvdt_guarded(dst->cpu + to + length, dst->size - to - length);
}

static void pvdt_storm_copy(struct pvdt_storm *storm, u32 most)
{
	size_t length = 1 + pvdt_storm_below(storm, most);
	size_t from = pvdt_storm_below(storm, PAGE_SIZE), to = pvdt_storm_below(storm, PAGE_SIZE);
	struct pvdt_request request = { .op = PVDT_OP_COPY, .length = length };
	struct pvdt *engine = storm->engine;
	struct pvdt_buffer src, dst;
	int ret;

	ret = pvdt_buffer_map(engine, &src, from + length, DMA_TO_DEVICE);
	if (!PVDT_STORM_CHECK(storm, !ret))
		return;
	ret = pvdt_buffer_map(engine, &dst, to + length + PAGE_SIZE, DMA_BIDIRECTIONAL);
	if (!PVDT_STORM_CHECK(storm, !ret))
		goto out;
	pvdt_scribble(src.cpu + from, length, storm->random);
	pvdt_to_device(engine, &src);
	pvdt_to_device(engine, &dst);
	request.src = src.iova + from;
	request.dst = dst.iova + to;
	ret = pvdt_run(engine, &request, PVDT_POLL);
	if (PVDT_STORM_CHECK(storm, !ret && request.status == PVDT_STATUS_DONE)) {
		pvdt_to_cpu(engine, &dst);
		PVDT_STORM_CHECK(storm, pvdt_storm_copied(&src, &dst, from, to, length));
		storm->bytes += length;
	}
	storm->maps += 2;
	pvdt_buffer_unmap(engine, &dst);
out:
	pvdt_buffer_unmap(engine, &src);
}

static void pvdt_storm_astray(struct pvdt_storm *storm)
{
	u64 iova = PVDT_STORM_NOWHERE + pvdt_storm_below(storm, PAGE_SIZE);
	struct pvdt_request request = { .op = PVDT_OP_FILL, .length = 64, .dst = iova };
	int ret = pvdt_run(storm->engine, &request, PVDT_POLL);
	bool refused = !ret && request.status == PVDT_STATUS_FAULT && request.detail == iova;

	if (PVDT_STORM_CHECK(storm, refused))
		storm->refused++;
}

static int pvdt_storm_thread(void *data)
{
	struct pvdt_storm *storm = data;
	unsigned int i;

	for (i = 1; i <= storm->rounds && !storm->wrong; i++) {
		pvdt_storm_copy(storm, i % PVDT_STORM_LONG ? SZ_32K : SZ_1M);
		if (i % PVDT_STORM_ASTRAY == 0)
			pvdt_storm_astray(storm);
		cond_resched();
	}
	complete(&storm->done);
	return 0;
}

static bool pvdt_storm_start(struct ktap *ktap, struct pvdt_storm *storm, unsigned int cpu)
{
	struct task_struct *task;

	init_completion(&storm->done);
	task = kthread_create(pvdt_storm_thread, storm, "pviommu_dmatest/%u", cpu);
	if (!EXPECT(ktap, !IS_ERR(task)))
		return false;
	/* the thread may end before it is stopped */
	storm->task = get_task_struct(task);
	kthread_bind(task, cpu);
	wake_up_process(task);
	return true;
}

static void pvdt_storm_end(struct ktap *ktap, struct pvdt_storm *storm, struct pvdt_storm *sum)
{
	wait_for_completion(&storm->done);
	kthread_stop(storm->task);
	put_task_struct(storm->task);
	if (!EXPECT_EQ(ktap, storm->wrong, 0))
		ktap_print(ktap, "# %s: line %u\n", pci_name(pvdt_pci_dev(storm->engine)),
			   storm->wrong);
	EXPECT(ktap, storm->bytes > 0);
	EXPECT_EQ(ktap, storm->refused, storm->rounds / PVDT_STORM_ASTRAY);
	sum->bytes += storm->bytes;
	sum->maps += storm->maps;
	sum->refused += storm->refused;
}

static unsigned int pvdt_storm_engines(struct pvdt **engines)
{
	unsigned int count = 0;

	while (count < PVDT_STORM_ENGINES) {
		engines[count] = pvdt_client_ops.get(count);
		if (!engines[count])
			break;
		count++;
	}
	return count;
}

static void pvdt_test_storm(struct ktap *ktap, void *subject, unsigned long rounds)
{
	struct pvdt *engines[PVDT_STORM_ENGINES];
	unsigned int nr_engines = pvdt_storm_engines(engines), started = 0, cpu, i;
	struct pvdt_storm *storms, sum = {};

	storms = kcalloc(array_size(nr_engines, num_possible_cpus()), sizeof(*storms), GFP_KERNEL);
	if (!EXPECT(ktap, storms))
		goto out;
	cpus_read_lock();
	for_each_online_cpu(cpu) {
		for (i = 0; i < nr_engines; i++) {
			storms[started].engine = engines[i];
			storms[started].rounds = rounds;
			storms[started].random = started + 1;
			if (!pvdt_storm_start(ktap, &storms[started], cpu))
				break;
			started++;
		}
	}
	cpus_read_unlock();
	for (i = 0; i < started; i++)
		pvdt_storm_end(ktap, &storms[i], &sum);
	ktap_print(ktap, "# %u threads, %u engines: %u maps, %llu bytes checked, %u refused\n",
		   started, nr_engines, sum.maps, sum.bytes, sum.refused);
	kfree(storms);
out:
	for (i = 0; i < nr_engines; i++)
		pvdt_client_ops.put(engines[i]);
}

const struct ktap_case pvdt_storm_cases[] = {
	{ "a storm on all CPUs and engines copies every byte to its place", pvdt_test_storm,
	  PVDT_STORM_ROUNDS },
};

const unsigned int pvdt_nr_storm_cases = ARRAY_SIZE(pvdt_storm_cases);

const struct ktap_case pvdt_long_storm_cases[] = {
	{ "a long storm on all CPUs and engines copies every byte to its place", pvdt_test_storm,
	  PVDT_LONG_STORM_ROUNDS },
};

const unsigned int pvdt_nr_long_storm_cases = ARRAY_SIZE(pvdt_long_storm_cases);
