// SPDX-License-Identifier: MIT
/* A program that closes, or dies, leaves nothing behind. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ktap.h"
#include "memory.h"
#include "tests.h"

#define RW	(SPACE_READ | SPACE_WRITE)
#define PAGES	256
#define STRIDES	8
#define CLOSINGS	4
#define FAULTS	16

static bool nothing_is_left(struct fixture *f)
{
	struct usage now;

	return read_usage(&now) && same_usage(&now, &f->before);
}

/* Maps memory and uses it. */
static bool use(struct fixture *f)
{
	unsigned int i;

	if (!maps(f, f->memory, GIB, PAGES * PAGE, RW))
		return false;
	for (i = 0; i < STRIDES; i++)
		if (!maps(f, f->memory, 4 * GIB + i * HUGE, PAGE, RW))
			return false;
	return engine_fills(&f->engine, GIB, 0, PAGES * PAGE) &&
	       mapped_pages_are(f, PAGES + STRIDES);
}

static bool closing(struct fixture *f)
{
	bool used = use(f);

	fixture_close(f);
	return used && nothing_is_left(f);
}

/* Mappings of a space without an engine must not keep anything of the IOMMU's. */
static bool engine_closed_first(struct fixture *f)
{
	bool used = fixture_open(f) && use(f);

	engine_close(&f->engine);
	return used && nothing_is_left(f);
}

static bool killing(struct fixture *f)
{
	struct usage with_child;
	bool used, taken;
	int ends[2];
	pid_t child;
	char byte;

	if (pipe(ends))
		return complain("no pipe: %s", strerror(errno));
	child = fork();
	if (child < 0)
		return complain("no child: %s", strerror(errno));
	if (!child) {
		if (fixture_open(f) && use(f) && write(ends[1], "", 1) == 1)
			pause();
		_exit(1);
	}
	close(ends[1]);
	taken = read(ends[0], &byte, 1) == 1;
	close(ends[0]);
	used = read_usage(&with_child) && with_child.contexts > f->before.contexts &&
	       with_child.mapped_pages > f->before.mapped_pages;
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return (taken || complain("the child has not taken the engines")) &&
	       (used || complain("the child's mappings are not to be seen")) && nothing_is_left(f);
}

/* The driver reports faults to the domain, which is freed at the same time. */
static bool closing_under_faults(struct fixture *f)
{
	unsigned int i;

	for (i = 0; i < CLOSINGS; i++) {
		if (!fixture_open(f))
			return false;
		engine_queue_writes(&f->engine, GIB, FAULTS);
		if (!engine_write_faults(&f->engine, 2 * GIB, 8, 2 * GIB))
			return false;
		engine_queue_writes(&f->engine, GIB, FAULTS);
		fixture_close(f);
	}
	return nothing_is_left(f);
}

const struct test lifetime_tests[] = {
	{ "closing the descriptors leaves nothing behind", closing },
	{ "an address space without an engine keeps nothing", engine_closed_first },
	{ "closing while faults are reported does no harm", closing_under_faults },
	{ "a killed process leaves nothing behind", killing },
	{}
};
