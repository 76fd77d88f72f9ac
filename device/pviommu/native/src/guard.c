// SPDX-License-Identifier: MIT
/*
 * Copies that survive a SIGBUS: memory behind a mapping can disappear while it is copied, if the file shrinks, if huge
 * pages run out, or if the hardware reports an error.
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

#define PAGE 4096u	/* memory disappears in pages of at least this size */

/*
 * Static TLS: a handler must not be the first to use TLS that is allocated on demand. Volatile: what a handler reads
 * must be written before the copy begins.
 */
static __thread struct copy *volatile current __attribute__((tls_model("initial-exec")));
static __thread volatile uint32_t is_passing_on __attribute__((tls_model("initial-exec")));
static struct sigaction previous;
static volatile char is_installing;

/* Pass the signal to the previous handler. */
static void pass_on(int number, siginfo_t *info, void *context)
{
	int is_fault = info->si_code > 0;

	/* A handler that was installed later may call this one in turn: then there is no other one left. */
	if (!is_passing_on && previous.sa_flags & SA_SIGINFO) {
		is_passing_on = 1;
		previous.sa_sigaction(number, info, context);
		is_passing_on = 0;
	} else if (!is_passing_on && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
		is_passing_on = 1;
		previous.sa_handler(number);
		is_passing_on = 0;
	} else if (is_passing_on || is_fault || previous.sa_handler == SIG_DFL) {
		/* The access faults again at once. */
		signal(number, SIG_DFL);
		if (!is_fault)
			raise(number);
	}
}

/* Whether a fault at `address`, which may be the beginning of its page, is in the `size` bytes from `start` on. */
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

/* Install the handler if it is not installed: others may install their own at any time. */
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

/* From here to end() a fault of these bytes goes the way out of the copy, which sigsetjmp() has prepared. */
static void begin(struct copy *copy)
{
	current = copy;
	atomic_signal_fence(memory_order_seq_cst);
}

static void end(void)
{
	atomic_signal_fence(memory_order_seq_cst);
	current = NULL;
}

/* memcpy(); 0 if a byte is missing. */
static int try_copy(uint8_t *to, const uint8_t *from, uint64_t size)
{
	struct copy copy = { .to = (uintptr_t)to, .from = (uintptr_t)from, .size = size };

	if (sigsetjmp(copy.way_out, 0)) {
		end();
		return 0;
	}
	begin(&copy);
	memcpy(to, from, size);
	end();
	return 1;
}

/* Read a word, at once, once the handler is installed; 0 if it is missing. */
int pv_try_load(const uint64_t *from, uint64_t *value)
{
	struct copy copy = { .to = (uintptr_t)from, .from = (uintptr_t)from, .size = sizeof(*from) };

	if (sigsetjmp(copy.way_out, 0)) {
		end();
		return 0;
	}
	begin(&copy);
	*value = __atomic_load_n(from, __ATOMIC_ACQUIRE);
	end();
	return 1;
}

/*
 * Replace a word by `after` if it is *found, as one atomic step, once the handler is installed; *found becomes what was
 * there. 0 if it is missing.
 */
int pv_try_exchange(uint64_t *at, uint64_t *found, uint64_t after)
{
	struct copy copy = { .to = (uintptr_t)at, .from = (uintptr_t)at, .size = sizeof(*at) };

	if (sigsetjmp(copy.way_out, 0)) {
		end();
		return 0;
	}
	begin(&copy);
	__atomic_compare_exchange_n(at, found, after, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
	end();
	return 1;
}

/*
 * memcpy() once the handler is installed; returns the number of bytes before the first missing one, `size` if none is
 * missing. These are copied; some after it may be copied, too.
 *
 * The address of the fault is no help: memcpy() may begin at the end, and access several places in turn. So after a
 * fault the bytes are copied again in order, in parts of which all or nothing is there.
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

/* For source and destination at once. */
PV_EXPORT uint64_t pv_guarded_copy(uint8_t *to, const uint8_t *from, uint64_t size)
{
	pv_guard_install();
	return pv_copy(to, from, size);
}

/* The same as pv_try_exchange(), for who has not installed the handler. */
PV_EXPORT int pv_guarded_exchange(uint64_t *at, uint64_t *found, uint64_t after)
{
	pv_guard_install();
	return pv_try_exchange(at, found, after);
}
