// SPDX-License-Identifier: MIT
/*
 * Copies that survive a SIGBUS: memory behind a mapping can go while it is copied, when the file shrinks, when huge pages
 * run out, when the machine finds the memory broken.
 */

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "core.h"

/* The copy in progress in this thread. */
struct copy {
	sigjmp_buf way_out;
	uintptr_t to;
	uintptr_t from;
	uint64_t size;
	uint64_t reached;	/* bytes before the one that is not there */
};

/*
 * In static storage of the thread: a handler may not be the first to ask for storage that is allocated when needed. Volatile:
 * what a handler reads must be written before the copy begins.
 */
static __thread struct copy *volatile current __attribute__((tls_model("initial-exec")));
static __thread volatile uint32_t is_passing_on __attribute__((tls_model("initial-exec")));
static struct sigaction previous;
static volatile char is_installing;

/* What would have happened without this file. */
static void pass_on(int number, siginfo_t *info, void *context)
{
	int is_fault = info->si_code > 0;

	/* A handler that came after this one may call it in turn: nobody is left to ask then. */
	if (!is_passing_on && previous.sa_flags & SA_SIGINFO) {
		is_passing_on = 1;
		previous.sa_sigaction(number, info, context);
		is_passing_on = 0;
	} else if (!is_passing_on && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
		is_passing_on = 1;
		previous.sa_handler(number);
		is_passing_on = 0;
	} else if (is_passing_on || is_fault || previous.sa_handler == SIG_DFL) {
		/* A fault comes again at once, where it came from. */
		signal(number, SIG_DFL);
		if (!is_fault)
			raise(number);
	}
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	struct copy *copy = current;
	uintptr_t address = (uintptr_t)info->si_addr;

	if (copy && info->si_code > 0) {
		uintptr_t start = address - copy->from < copy->size ? copy->from : copy->to;

		if (address - start < copy->size) {
			copy->reached = address - start;
			siglongjmp(copy->way_out, 1);
		}
	}
	pass_on(number, info, context);
}

/* Let the handler be the one of this process, if it is not: others may set their own at any time. */
void pv_guard_install(void)
{
	struct sigaction action, now;

	if (!sigaction(SIGBUS, NULL, &now) && now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_bus_error)
		return;
	while (__sync_lock_test_and_set(&is_installing, 1))
		;
	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_bus_error;
	/* The signal is not blocked in the handler, so a jump out of it need not restore a mask. */
	action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
	sigemptyset(&action.sa_mask);
	if (!sigaction(SIGBUS, NULL, &now) && !(now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_bus_error)) {
		previous = now;
		sigaction(SIGBUS, &action, NULL);
	}
	__sync_lock_release(&is_installing);
}

/* memcpy(); returns how many bytes come before the one that it met and that is not there, `size` if it met none. */
static uint64_t try_copy(uint8_t *to, const uint8_t *from, uint64_t size)
{
	struct copy copy = { .to = (uintptr_t)to, .from = (uintptr_t)from, .size = size, .reached = size };

	if (!sigsetjmp(copy.way_out, 0)) {
		current = &copy;
		atomic_signal_fence(memory_order_seq_cst);
		memcpy(to, from, size);
		atomic_signal_fence(memory_order_seq_cst);
	}
	current = NULL;
	return ((volatile struct copy *)&copy)->reached;
}

/*
 * memcpy() once the handler is installed; returns how many bytes come before one that is not there, `size` if all are
 * there. These are copied; of those after it some may be, too.
 */
uint64_t pv_copy(uint8_t *to, const uint8_t *from, uint64_t size)
{
	uint64_t reached;

	/* memcpy() may go backwards, or by several places at once: of what comes before a fault some may be missing. */
	while ((reached = try_copy(to, from, size)) < size)
		size = reached;
	return size;
}

/* Both at once. */
PV_EXPORT uint64_t pv_guarded_copy(uint8_t *to, const uint8_t *from, uint64_t size)
{
	pv_guard_install();
	return pv_copy(to, from, size);
}
