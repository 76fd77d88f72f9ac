/* SPDX-License-Identifier: MIT */
/*
 * What the driver's own tables need of the kernel, in user space. Pages are counted, and the test
 * says which allocation fails.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <errno.h>
#include <linux/types.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;
typedef unsigned int gfp_t;

#define GFP_KERNEL		0u
#define GFP_KERNEL_ACCOUNT	0u
#define GFP_ATOMIC		0u
#define U64_MAX			(~0ULL)
#define BIT(n)			(1UL << (n))
#define BIT_ULL(n)		(1ULL << (n))
#define GENMASK_ULL(high, low)	((~0ULL >> (63 - (high))) & (~0ULL << (low)))
#define DIV_ROUND_UP(n, d)	(((n) + (d) - 1) / (d))
#define round_down(n, power)	((n) & ~((u64)(power) - 1))
#define min(a, b)		((a) < (b) ? (a) : (b))
#define max(a, b)		((a) > (b) ? (a) : (b))
#define likely(condition)	(condition)
#define unlikely(condition)	(condition)
#define noinline		__attribute__((noinline))
#define IS_ERR(pointer)		((uintptr_t)(pointer) > (uintptr_t)-4096)
#define ERR_PTR(error)		((void *)(intptr_t)(error))
#define PTR_ERR(pointer)	((int)(intptr_t)(pointer))

/* Guest addresses are those of this process. */
#define virt_to_phys(address)	((u64)(uintptr_t)(address))
#define phys_to_virt(address)	((void *)(uintptr_t)(address))

/* The kernel keeps what depends on a read by its value in order. Compilers know no such promise. */
#define READ_ONCE(place)	__atomic_load_n(&(place), __ATOMIC_CONSUME)
#define WRITE_ONCE(place, value) __atomic_store_n(&(place), value, __ATOMIC_RELAXED)
#define smp_load_acquire(place)	__atomic_load_n(place, __ATOMIC_ACQUIRE)
#define smp_store_release(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
#define smp_rmb()		__atomic_thread_fence(__ATOMIC_ACQUIRE)
#define smp_wmb()		__atomic_thread_fence(__ATOMIC_RELEASE)

static inline u64 cmpxchg(u64 *place, u64 old, u64 new)
{
	__atomic_compare_exchange_n(place, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return old;
}

#define sync_cmpxchg		cmpxchg

static inline void sync_clear_bit(unsigned int bit, unsigned long *place)
{
	__atomic_fetch_and(place, ~(1UL << bit), __ATOMIC_RELAXED);
}

typedef struct {
	int value;
} atomic_t;

#define atomic_read(atomic)	__atomic_load_n(&(atomic)->value, __ATOMIC_RELAXED)
#define atomic_inc(atomic)	__atomic_fetch_add(&(atomic)->value, 1, __ATOMIC_RELAXED)
#define atomic_dec(atomic)	__atomic_fetch_sub(&(atomic)->value, 1, __ATOMIC_RELAXED)

typedef pthread_mutex_t spinlock_t;

#define spin_lock_init(lock)	pthread_mutex_init(lock, NULL)
#define spin_lock_irqsave(lock, flags) ((void)((flags) = 0), pthread_mutex_lock(lock))
#define spin_unlock_irqrestore(lock, flags) ((void)(flags), pthread_mutex_unlock(lock))

/* allocations that succeed before all fail; below 0 none fails */
static int pages_left = -1;

void table_fail_after(int nr)
{
	pages_left = nr;
}

static inline unsigned long get_zeroed_page(gfp_t gfp)
{
	void *page;

	(void)gfp;
	if (!pages_left)
		return 0;
	if (pages_left > 0)
		pages_left--;
	page = aligned_alloc(4096, 4096);
	if (page)
		memset(page, 0, 4096);
	return (unsigned long)page;
}

static inline void free_page(unsigned long page)
{
	free((void *)page);
}

#endif
