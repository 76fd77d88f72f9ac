/* SPDX-License-Identifier: MIT */
/* Threads at work on one table, each of which has addresses of its own and looks at no others. */
#ifndef THREADS_H
#define THREADS_H

#include <stdio.h>

#include "kernel.h"

#define THREADS	3

struct worker {
	pthread_t thread;
	unsigned int number;
	unsigned int failures;
	unsigned int seed;
};

/* All of them wait here, at the beginning and at the end of what they do at the same time. */
static pthread_barrier_t barrier;
static unsigned int rounds;

static void expect(struct worker *worker, bool holds, const char *what, u64 place)
{
	if (!holds && !worker->failures++)
		printf("thread %u: %s at %llu\n", worker->number, what, place);
}

/* Has all work for as many rounds as the program was told to; 0, or -1 when one has failed. */
static int run_workers(int argc, char **argv, void *(*work)(void *worker))
{
	struct worker workers[THREADS] = {};
	unsigned int i, failures = 0;

	rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
	pthread_barrier_init(&barrier, NULL, THREADS);
	for (i = 0; i < THREADS; i++) {
		workers[i].number = i;
		workers[i].seed = i + 1;
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			exit(2);
	}
	for (i = 0; i < THREADS; i++) {
		pthread_join(workers[i].thread, NULL);
		failures += workers[i].failures;
	}
	return failures ? -1 : 0;
}

#endif
