/* What the parts of the preloaded library share. */
#ifndef PRELOAD_H
#define PRELOAD_H

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "boxes.h"

#define EXPORT __attribute__((visibility("default")))
#define PAGE 4096UL

/* The C library's own function of a name. */
#define REAL(name)                                                                                                     \
	({                                                                                                             \
		static __typeof__(name) *real;                                                                         \
		if (!real)                                                                                             \
			real = dlsym(RTLD_NEXT, #name);                                                                \
		real;                                                                                                  \
	})

/* A message, its reply, and what goes with either. */
struct exchange {
	struct message message;
	const void *behind; /* what follows the message */
	size_t size;
	int given; /* a descriptor that goes with it; -1: none */
	void *into; /* where to put what follows the reply */
	size_t room;
	int got; /* a descriptor that came with it; -1: none */
};

/* One who uses a connection at a time. Handlers of signals wait meanwhile: they may use it, too. */
struct turn {
	int fd;
	uint32_t number; /* of the connection */
	pthread_mutex_t *lock;
	struct box *box; /* NULL: messages go by the socket */
	sigset_t signals; /* that were blocked before */
};

/* channel.c */

/* The number of the connection that a descriptor stands for; 0: it is none of ours. Leaves errno alone. */
uint32_t number_of(int fd);

/* The number of its device, as stat() has it; 0: it is no device, or none of ours. */
uint32_t device_number_of(int fd);

struct turn begin_turn(int fd, uint32_t number);
void end_turn(const struct turn *turn);

/* Whether this thread is between these two. */
int is_in_turn(void);

/*
 * Sends a message and waits for the reply. The server's end, or no answer, is EIO; memory that is not there is EFAULT.
 * Replies that somebody else left behind, who was killed, are dropped.
 */
struct reply ask(const struct turn *turn, struct exchange *exchange);

/* A new connection, on which the message is answered with 0, is a new descriptor. `device`: its number, or 0. */
int connect_and_ask(struct exchange *exchange, int flags, uint32_t device);

/* A descriptor of a file of ours, or -1 with errno. */
int open_ours(const char *path, int flags, uint32_t device);

/* What a function returns: a value, or -1 with errno for minus an errno. */
int result(int32_t value);

/* Whether this program was started for a server. */
int has_server(void);

/* preload.c: as pread() or pwrite(), by READ or WRITE. */
ssize_t transfer(int fd, uint32_t connection, enum kind kind, void *buffer, size_t count, uint64_t offset);

/* registers.c: mmap() of a file of ours, and of another one. */
void *map_device(void *address, size_t length, int rights, int flags, int fd, uint32_t connection, off_t offset);
void *map_other(void *address, size_t length, int rights, int flags, int fd, off_t offset);

/* paths.c: paths are ours from now on, if programs have that socket. */
void begin_paths(const char *socket);

/* In nanoseconds. */
static inline uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* Between two looks at memory that another processor writes. */
static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#else
	__asm__ volatile("" ::: "memory");
#endif
}

#endif
