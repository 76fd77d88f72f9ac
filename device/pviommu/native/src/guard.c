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
};

#define PAGE 4096u	/* memory goes by pages of this size at least */

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

/* Whether a fault at `address`, which may be the beginning of its page, is one of `size` bytes from `start` on. */
static int touches(uintptr_t address, uintptr_t start, uint64_t size)
{
	return address - (start - start % PAGE) < size + start % PAGE;
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	struct copy *copy = current;
	uintptr_t address = (uintptr_t)info->si_addr;

	if (copy && info->si_code > 0 &&
	    (touches(address, copy->from, copy->size) || touches(address, copy->to, copy->size)))
		siglongjmp(copy->way_out, 1);
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

/* memcpy(); 0 if it met a byte that is not there. */
static int try_copy(uint8_t *to, const uint8_t *from, uint64_t size)
{
	struct copy copy = { .to = (uintptr_t)to, .from = (uintptr_t)from, .size = size };

	if (sigsetjmp(copy.way_out, 0)) {
		current = NULL;
		return 0;
	}
	current = &copy;
	atomic_signal_fence(memory_order_seq_cst);
	memcpy(to, from, size);
	atomic_signal_fence(memory_order_seq_cst);
	current = NULL;
	return 1;
}

/*
 * memcpy() once the handler is installed; returns how many bytes come before one that is not there, `size` if all are
 * there. These are copied; of those after it some may be, too.
 *
 * Where a fault was does not tell: memcpy() may begin at the end, and go on by several places at once. So what met one is
 * copied again in order, by parts in each of which all is there or nothing.
 */
uint64_t pv_copy(uint8_t *to, const uint8_t *from, uint64_t size)
{
	uint64_t done = 0;

	if (try_copy(to, from, size))
		return size;
	while (done < size) {
		uint64_t part = PAGE - (uintptr_t)(to + done) % PAGE;

		if (part > PAGE - (uintptr_t)(from + done) % PAGE)
			part = PAGE - (uintptr_t)(from + done) % PAGE;
		if (part > size - done)
			part = size - done;
		if (!try_copy(to + done, from + done, part))
			break;
		done += part;
	}
	return done;
}

/* Both at once. */
PV_EXPORT uint64_t pv_guarded_copy(uint8_t *to, const uint8_t *from, uint64_t size)
{
	pv_guard_install();
	return pv_copy(to, from, size);
}
