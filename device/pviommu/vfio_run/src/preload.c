/*
 * Takes a program's open() of /dev/iommu and /dev/vfio to a server (see server.py), and its requests on what that
 * gives. Each open file is a connection, so that dup, close and the end of a process need nothing here. Processes that
 * share a connection, by fork, exec or a descriptor that is sent, share the locks in a file beside the socket, too; and
 * as one may be killed before it has read its reply, each message has a number, and the reply to it has the same.
 *
 * See server.py for the meaning of messages. Everything else goes to the kernel, but never an open() of these paths.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
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

#define EXPORT __attribute__((visibility("default")))
#define TYPE ';'
#define LOCKS 1024
#define MAX_PATH 64 /* with the end */

enum kind { OPEN, REQUEST, IS, CLAIM };
enum answer { DONE, NEED_FD, OPENED };

struct message {
	uint32_t kind, request;
	uint64_t argument, sequence;
};

struct reply {
	uint32_t answer;
	int32_t value;
	uint64_t sequence; /* of the message */
};

/* The file beside the socket, which all processes map. It begins as zeros. */
struct shared {
	uint64_t sequence; /* of the last message of all */
	int is_ready;
	pthread_mutex_t locks[LOCKS]; /* a connection has that of its name, modulo LOCKS */
};

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

	if (!path || !*path)
		return;
	if (strlen(path) >= sizeof(server.sun_path))
		refuse(path, ENAMETOOLONG);
	server.sun_family = AF_UNIX;
	strcpy(server.sun_path, path);
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

/*
 * Sends a message and waits for the reply. The server's end, or no answer, is EIO. Replies that somebody else left behind,
 * who was killed, are dropped.
 */
static struct reply ask(int fd, struct message *message, size_t size)
{
	struct reply reply, none = { DONE, -EIO, 0 };
	ssize_t got;

	message->sequence = __atomic_add_fetch(&shared->sequence, 1, __ATOMIC_RELAXED);
	while (send(fd, message, size, MSG_NOSIGNAL) < 0)
		if (!is_worth_waiting(fd, POLLOUT))
			return none;
	do {
		do
			got = recv(fd, &reply, sizeof(reply), 0);
		while (got < 0 && is_worth_waiting(fd, POLLIN));
		if (got != sizeof(reply))
			return none;
	} while (reply.sequence != message->sequence);
	return reply;
}

static int result(int32_t value)
{
	if (value >= 0)
		return value;
	errno = -value;
	return -1;
}

/* A new connection, on which the message is answered with 0, is a new descriptor. */
static int connect_and_ask(struct message *message, size_t size, int flags)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0), 0);
	sa_family_t unnamed = AF_UNIX; /* the kernel chooses a name */
	struct reply reply = { DONE, -EIO, 0 };

	if (fd < 0)
		return -1;
	if (!bind(fd, (struct sockaddr *)&unnamed, sizeof(unnamed)) &&
	    !connect(fd, (struct sockaddr *)&server, sizeof(server)))
		reply = ask(fd, message, size);
	if (reply.value < 0)
		syscall(SYS_close, fd);
	return reply.value < 0 ? result(reply.value) : fd;
}

static int open_ours(const char *path, int flags)
{
	struct {
		struct message message;
		char path[MAX_PATH];
	} data = { .message = { .kind = OPEN } };

	if (!shared)
		return result(-problem);
	if (strlen(path) >= sizeof(data.path))
		return result(-ENAMETOOLONG);
	strcpy(data.path, path);
	return connect_and_ask(&data.message, sizeof(data.message) + strlen(data.path), flags);
}

static int request(int fd, unsigned long number, unsigned long argument)
{
	struct message message = { REQUEST, number, argument, 0 };
	struct reply reply = ask(fd, &message, sizeof(message));

	while (reply.answer == NEED_FD) {
		struct message is = { .kind = IS };
		int other = reply.value;

		if (fcntl(other, F_GETFD) < 0)
			is.request = EBADF;
		else if (!is_ours(other))
			is.request = EBADFD;
		else
			is.argument = name_of(other);
		reply = ask(fd, &is, sizeof(is));
	}
	if (reply.answer == OPENED) {
		struct message claim = { .kind = CLAIM, .argument = reply.value };

		return connect_and_ask(&claim, sizeof(claim), O_CLOEXEC);
	}
	return result(reply.value);
}

EXPORT int ioctl(int fd, unsigned long number, ...)
{
	pthread_mutex_t *lock;
	unsigned long argument;
	va_list rest;
	int answer, before;

	va_start(rest, number);
	argument = va_arg(rest, unsigned long);
	va_end(rest);
	if ((number >> 8 & 0xff) != TYPE || !is_ours(fd))
		return syscall(SYS_ioctl, fd, number, argument);
	lock = &shared->locks[name_of(fd) % LOCKS];
	hold(lock);
	answer = request(fd, number, argument);
	before = errno;
	pthread_mutex_unlock(lock);
	errno = before;
	return answer;
}

static int opens(int folder, const char *path, int flags, mode_t mode)
{
	if (*server.sun_path && path && (!strcmp(path, "/dev/iommu") || !strncmp(path, "/dev/vfio/", 10)))
		return open_ours(path, flags);
	return syscall(SYS_openat, folder, path, flags, mode);
}

static mode_t mode_of(int flags, va_list rest)
{
	return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPENS(name)                                                                                                    \
	EXPORT int name(int folder, const char *path, int flags, ...)                                                    \
	{                                                                                                              \
		va_list rest;                                                                                          \
		mode_t mode;                                                                                           \
                                                                                                                       \
		va_start(rest, flags);                                                                                 \
		mode = mode_of(flags, rest);                                                                           \
		va_end(rest);                                                                                          \
		return opens(folder, path, flags, mode);                                                               \
	}

OPENS(openat)
OPENS(openat64)

#undef OPENS
#define OPENS(name)                                                                                                    \
	EXPORT int name(const char *path, int flags, ...)                                                               \
	{                                                                                                              \
		va_list rest;                                                                                          \
		mode_t mode;                                                                                           \
                                                                                                                       \
		va_start(rest, flags);                                                                                 \
		mode = mode_of(flags, rest);                                                                           \
		va_end(rest);                                                                                          \
		return opens(AT_FDCWD, path, flags, mode);                                                             \
	}

OPENS(open)
OPENS(open64)

EXPORT int __open_2(const char *path, int flags)
{
	return opens(AT_FDCWD, path, flags, 0);
}

EXPORT int __open64_2(const char *path, int flags)
{
	return opens(AT_FDCWD, path, flags, 0);
}
