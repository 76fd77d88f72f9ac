/*
 * Takes a program's open() of /dev/iommu and /dev/vfio to a server (see server.py), and what it does with what that
 * gives: requests, pread(), pwrite() and mmap(). Each open file is a connection, so that dup, close and the end of a
 * process need nothing here. Processes that share a connection, by fork, exec or a descriptor that is sent, share the
 * locks in a file beside the socket, too; and as one may be killed before it has read its reply, each message has a
 * number, and the reply to it has the same.
 *
 * See server.py for the meaning of messages, and paths.c for what else programs find in /dev and /sys. Everything else
 * goes to the kernel, but never an open() of these paths.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "preload.h"

#define TYPE ';'
#define LOCKS 1024
#define MAX_PATH 64 /* with the end */
#define PAGE 4096UL
#define MOST_DATA 4096 /* of a message */
#define MOST_KNOWN 64 /* bytes of an argument that go with the request */

enum kind { OPEN, REQUEST, IS, CLAIM, COPY, READ, WRITE, MAP, TAKE, PUT };
enum answer { DONE, NEED_FD, OPENED, NEED_COPY, READY };

struct message {
	uint32_t kind, request;
	uint64_t argument, sequence;
};

struct reply {
	uint32_t answer;
	int32_t value;
	uint64_t sequence; /* of the message */
};

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

/* The file beside the socket, which all processes map. It begins as zeros. */
struct shared {
	uint64_t sequence; /* of the last message of all */
	int is_ready;
	pthread_mutex_t locks[LOCKS]; /* a connection has that of its name, modulo LOCKS */
};

/* Those of the C library, at which threads can be cancelled. Found early: signal handlers may call them. */
static ssize_t (*library_read)(int fd, void *buffer, size_t count);
static ssize_t (*library_write)(int fd, const void *buffer, size_t count);

static struct sockaddr_un server; /* its path is empty in a program that is not for us */
static struct shared *shared;
static int problem; /* why there is nothing shared */

static void refuse(const char *path, int why)
{
	dprintf(2, "pviommu: PVIOMMU_VFIO_SOCKET=%s: %s\n", path, strerror(why));
	_exit(127);
}

static void make_locks(struct shared *page)
{
	pthread_mutexattr_t attributes;
	int i;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	for (i = 0; i < LOCKS; i++)
		pthread_mutex_init(&page->locks[i], &attributes);
	page->is_ready = 1;
}

/*
 * Without the file, for the server has ended or is another user's, a program runs, and cannot open anything of ours. It
 * must never get the files of the machine instead.
 */
__attribute__((constructor)) static void begin(void)
{
	char beside[sizeof(server.sun_path) + sizeof(".locks")];
	const char *path = getenv("PVIOMMU_VFIO_SOCKET");
	struct shared *page;
	int fd;

	library_read = dlsym(RTLD_NEXT, "read");
	library_write = dlsym(RTLD_NEXT, "write");
	if (!path || !*path)
		return;
	if (strlen(path) >= sizeof(server.sun_path))
		refuse(path, ENAMETOOLONG);
	server.sun_family = AF_UNIX;
	strcpy(server.sun_path, path);
	begin_paths(path);
	snprintf(beside, sizeof(beside), "%s.locks", path);
	fd = syscall(SYS_openat, AT_FDCWD, beside, O_RDWR | O_CLOEXEC, 0);
	if (fd < 0) {
		problem = errno == ENOENT ? EIO : errno;
		return;
	}
	if (flock(fd, LOCK_EX) || ftruncate(fd, sizeof(*page)))
		refuse(path, errno);
	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		refuse(path, errno);
	if (!page->is_ready)
		make_locks(page);
	shared = page;
	flock(fd, LOCK_UN); /* the mapping would keep it */
	syscall(SYS_close, fd);
}

static void hold(pthread_mutex_t *lock)
{
	if (pthread_mutex_lock(lock) == EOWNERDEAD)
		pthread_mutex_consistent(lock);
}

static int is_ours(int fd)
{
	struct sockaddr_un peer = { .sun_path = "" };
	socklen_t size = sizeof(peer);
	int before = errno, ours;

	ours = shared && !getpeername(fd, (struct sockaddr *)&peer, &size) && peer.sun_family == AF_UNIX &&
	       !strncmp(peer.sun_path, server.sun_path, sizeof(peer.sun_path));
	errno = before;
	return ours;
}

/* What the server knows a connection by: the name that the kernel gave its end here, five hexadecimal digits. */
static unsigned long name_of(int fd)
{
	struct sockaddr_un name = { .sun_path = "" };
	socklen_t size = sizeof(name) - 1;

	return getsockname(fd, (struct sockaddr *)&name, &size) ? 0 : strtoul(name.sun_path + 1, NULL, 16);
}

/* Whether to try again what has just failed. Waits if the descriptor does not block. */
static int is_worth_waiting(int fd, short event)
{
	struct pollfd waiting = { fd, event, 0 };

	if (errno == EAGAIN)
		return poll(&waiting, 1, -1) >= 0 || errno == EINTR;
	return errno == EINTR;
}

/* 0, or an errno. */
static int tell(int fd, const struct exchange *exchange)
{
	struct iovec parts[] = {
		{ (void *)&exchange->message, sizeof(exchange->message) },
		{ (void *)exchange->behind, exchange->size },
	};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = exchange->size ? 2 : 1 };

	if (exchange->given >= 0) {
		memcpy(CMSG_DATA(&control.header), &exchange->given, sizeof(int));
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
	}
	while (sendmsg(fd, &message, MSG_NOSIGNAL) < 0)
		if (!is_worth_waiting(fd, POLLOUT))
			return errno;
	return 0;
}

/* Bytes that came, or -1 with errno. */
static ssize_t hear(int fd, struct exchange *exchange, struct reply *reply)
{
	struct iovec parts[] = { { reply, sizeof(*reply) }, { exchange->into, exchange->room } };
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr message = {
		.msg_iov = parts,
		.msg_iovlen = exchange->room ? 2 : 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;
	ssize_t got;

	do
		got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
	while (got < 0 && is_worth_waiting(fd, POLLIN));
	header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS)
		memcpy(&exchange->got, CMSG_DATA(header), sizeof(int));
	return got;
}

/*
 * Sends a message and waits for the reply. The server's end, or no answer, is EIO; memory that is not there is EFAULT.
 * Replies that somebody else left behind, who was killed, are dropped.
 */
static struct reply ask(int fd, struct exchange *exchange)
{
	struct reply reply, none = { DONE, -EIO, 0 };
	ssize_t got;
	int code;

	exchange->message.sequence = __atomic_add_fetch(&shared->sequence, 1, __ATOMIC_RELAXED);
	exchange->got = -1;
	code = tell(fd, exchange);
	if (code == EFAULT)
		none.value = -EFAULT;
	if (code)
		return none;
	for (;;) {
		got = hear(fd, exchange, &reply);
		if (got < 0 && errno == EFAULT)
			none.value = -EFAULT;
		if (got < (ssize_t)sizeof(reply))
			return none;
		if (reply.sequence == exchange->message.sequence)
			return reply;
		if (exchange->got >= 0)
			syscall(SYS_close, exchange->got);
		exchange->got = -1;
	}
}

static int result(int32_t value)
{
	if (value >= 0)
		return value;
	errno = -value;
	return -1;
}

/* A new connection, on which the message is answered with 0, is a new descriptor. */
static int connect_and_ask(struct exchange *exchange, int flags)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0), 0);
	sa_family_t unnamed = AF_UNIX; /* the kernel chooses a name */
	struct reply reply = { DONE, -EIO, 0 };
	int code;

	if (fd < 0)
		return -1;
	if (!bind(fd, (struct sockaddr *)&unnamed, sizeof(unnamed))) {
		while ((code = connect(fd, (struct sockaddr *)&server, sizeof(server))) && errno == EINTR)
			;
		if (!code)
			reply = ask(fd, exchange);
	}
	if (reply.value < 0)
		syscall(SYS_close, fd);
	return reply.value < 0 ? result(reply.value) : fd;
}

int open_ours(const char *path, int flags)
{
	struct exchange exchange = { .message = { .kind = OPEN }, .behind = path, .size = strlen(path), .given = -1 };

	if (!shared)
		return result(-problem);
	if (exchange.size >= MAX_PATH)
		return result(-ENAMETOOLONG);
	return connect_and_ask(&exchange, flags);
}

/* What the server asked of a descriptor: which connection it is, or the descriptor. */
static struct reply describe(int fd, struct reply asked)
{
	struct exchange exchange = { .given = -1 };
	int other = asked.value;

	exchange.message.kind = asked.answer == NEED_FD ? IS : COPY;
	if (fcntl(other, F_GETFD) < 0)
		exchange.message.request = EBADF;
	else if (asked.answer == NEED_COPY)
		exchange.given = other;
	else if (!is_ours(other))
		exchange.message.request = EBADFD;
	else
		exchange.message.argument = name_of(other);
	return ask(fd, &exchange);
}

/*
 * A file that a request opened is a new connection. Its descriptor is the result, or belongs into the structure that
 * the request is about.
 */
static int claim(const struct reply *reply, unsigned long argument)
{
	struct exchange exchange = { .message = { .kind = CLAIM, .argument = reply->value }, .given = -1 };
	unsigned int field = reply->answer >> 8;
	int fd = connect_and_ask(&exchange, O_CLOEXEC);

	if (fd < 0 || !field)
		return fd;
	memcpy((char *)argument + field, &fd, sizeof(fd));
	return 0;
}

static int request(int fd, unsigned long number, unsigned long argument)
{
	struct exchange exchange = { .message = { REQUEST, number, argument, 0 }, .given = -1 };
	unsigned long left = PAGE - argument % PAGE;
	struct reply reply;

	if (argument >= PAGE) { /* others are numbers */
		exchange.behind = (void *)argument;
		exchange.size = left < MOST_KNOWN ? left : MOST_KNOWN;
	}
	reply = ask(fd, &exchange);
	if (reply.answer == DONE && reply.value == -EFAULT && !reply.sequence) { /* it was not sent: the server says what is wrong */
		exchange.size = 0;
		reply = ask(fd, &exchange);
	}
	while (reply.answer == NEED_FD || reply.answer == NEED_COPY)
		reply = describe(fd, reply);
	if ((reply.answer & 0xff) == OPENED)
		return claim(&reply, argument);
	return result(reply.value);
}

/* One who uses a connection at a time. Handlers of signals wait meanwhile: they may use it, too. */
struct turn {
	pthread_mutex_t *lock;
	sigset_t signals; /* that were blocked before */
};

static struct turn begin_turn(int fd)
{
	struct turn turn = { .lock = &shared->locks[name_of(fd) % LOCKS] };
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &turn.signals);
	hold(turn.lock);
	return turn;
}

static void end_turn(const struct turn *turn)
{
	int before = errno;

	pthread_mutex_unlock(turn->lock);
	pthread_sigmask(SIG_SETMASK, &turn->signals, NULL);
	errno = before;
}

EXPORT int ioctl(int fd, unsigned long number, ...)
{
	unsigned long argument;
	struct turn turn;
	va_list rest;
	int answer;

	va_start(rest, number);
	argument = va_arg(rest, unsigned long);
	va_end(rest);
	if ((number >> 8 & 0xff) != TYPE || !is_ours(fd))
		return syscall(SYS_ioctl, fd, number, argument);
	turn = begin_turn(fd);
	answer = request(fd, number, argument);
	end_turn(&turn);
	return answer;
}

/* As pread() or pwrite(), in as many messages as it takes; less only where the file ends, or after an error. */
static ssize_t transfer(int fd, enum kind kind, void *buffer, size_t count, off_t offset)
{
	struct turn turn = begin_turn(fd);
	size_t done = 0;
	struct reply reply;

	do {
		size_t part = count - done < MOST_DATA ? count - done : MOST_DATA;
		struct exchange exchange = { .message = { kind, part, offset + done, 0 }, .given = -1 };

		if (kind == READ) {
			exchange.into = (char *)buffer + done;
			exchange.room = part;
		} else {
			exchange.behind = (char *)buffer + done;
			exchange.size = part;
		}
		reply = ask(fd, &exchange);
		if (reply.value <= 0)
			break;
		done += reply.value;
		if ((size_t)reply.value < part)
			break;
	} while (done < count);
	end_turn(&turn);
	return done ? (ssize_t)done : result(reply.value);
}

static ssize_t read_at(int fd, void *buffer, size_t count, off_t offset)
{
	return is_ours(fd) ? transfer(fd, READ, buffer, count, offset) : syscall(SYS_pread64, fd, buffer, count, offset);
}

EXPORT ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
{
	return read_at(fd, buffer, count, offset);
}

EXPORT ssize_t pread64(int fd, void *buffer, size_t count, off_t offset)
{
	return read_at(fd, buffer, count, offset);
}

/* What programs call that were compiled with _FORTIFY_SOURCE: they know the size of the buffer. */
void __chk_fail(void) __attribute__((noreturn));

#define CHECKED(name)                                                                                                  \
	EXPORT ssize_t name(int fd, void *buffer, size_t count, off_t offset, size_t size);                            \
	EXPORT ssize_t name(int fd, void *buffer, size_t count, off_t offset, size_t size)                             \
	{                                                                                                              \
		if (count > size)                                                                                      \
			__chk_fail();                                                                                  \
		return read_at(fd, buffer, count, offset);                                                             \
	}

CHECKED(__pread_chk)
CHECKED(__pread64_chk)

#define WRITES(name)                                                                                                   \
	EXPORT ssize_t name(int fd, const void *buffer, size_t count, off_t offset)                                    \
	{                                                                                                              \
		return is_ours(fd) ? transfer(fd, WRITE, (void *)buffer, count, offset) :                              \
				     syscall(SYS_pwrite64, fd, buffer, count, offset);                                 \
	}

WRITES(pwrite)
WRITES(pwrite64)

/* Of queues. Whether there is something to read, poll() knows by itself: see server.py. */
static ssize_t use_queue(int fd, enum kind kind, const void *buffer, size_t count)
{
	struct exchange exchange = { .message = { kind, count < INT32_MAX ? count : INT32_MAX, (uintptr_t)buffer, 0 }, .given = -1 };
	struct turn turn = begin_turn(fd);
	struct reply reply = ask(fd, &exchange);

	end_turn(&turn);
	return result(reply.value);
}

EXPORT ssize_t read(int fd, void *buffer, size_t count)
{
	if (is_ours(fd))
		return use_queue(fd, TAKE, buffer, count);
	if (!library_read)
		library_read = dlsym(RTLD_NEXT, "read");
	return library_read(fd, buffer, count);
}

EXPORT ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size);
EXPORT ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size)
{
	if (count > size)
		__chk_fail();
	return read(fd, buffer, count);
}

EXPORT ssize_t write(int fd, const void *buffer, size_t count)
{
	if (is_ours(fd))
		return use_queue(fd, PUT, buffer, count);
	if (!library_write)
		library_write = dlsym(RTLD_NEXT, "write");
	return library_write(fd, buffer, count);
}

static void *map_ours(void *address, size_t length, int rights, int flags, int fd, off_t offset)
{
	uint64_t size = length, place = 0;
	struct exchange exchange = {
		.message = { .kind = MAP, .argument = offset },
		.behind = &size,
		.size = sizeof(size),
		.given = -1,
		.into = &place,
		.room = sizeof(place),
	};
	struct reply reply;
	struct turn turn;
	void *made;

	if ((flags & MAP_TYPE) == MAP_PRIVATE || offset % PAGE)
		return (void *)(intptr_t)result(-EINVAL);
	turn = begin_turn(fd);
	reply = ask(fd, &exchange);
	end_turn(&turn);
	if (reply.value < 0 || exchange.got < 0)
		return (void *)(intptr_t)result(reply.value < 0 ? reply.value : -EIO);
	made = (void *)syscall(SYS_mmap, address, length, rights, flags, exchange.got, place);
	syscall(SYS_close, exchange.got);
	return made;
}

#define MAPS(name)                                                                                                     \
	EXPORT void *name(void *address, size_t length, int rights, int flags, int fd, off_t offset)                   \
	{                                                                                                              \
		if (fd >= 0 && !(flags & MAP_ANONYMOUS) && is_ours(fd))                                                \
			return map_ours(address, length, rights, flags, fd, offset);                                   \
		return (void *)syscall(SYS_mmap, address, length, rights, flags, fd, offset);                          \
	}

MAPS(mmap)
MAPS(mmap64)
