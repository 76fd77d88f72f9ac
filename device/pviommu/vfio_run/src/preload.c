/*
 * Takes a program's open() of /dev/iommu and /dev/vfio to a server (see server.py), and its requests on what that
 * gives. Each open file is a connection, so that dup, fork, exec, close and the end of a process need nothing here.
 *
 * Messages are pairs and quadruples of integers, see server.py for their meaning. Everything else goes to the kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define TYPE ';'

enum kind { OPEN, REQUEST, IS, CLAIM };
enum answer { DONE, NEED_FD, OPENED };

struct message {
	uint32_t kind, request;
	uint64_t argument;
};

struct reply {
	uint32_t answer;
	int32_t value;
};

static struct sockaddr_un server;
static pthread_mutex_t *lock; /* shared with forked processes, for they share connections */

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("PVIOMMU_VFIO_SOCKET");
	pthread_mutexattr_t attributes;
	void *page;

	if (!path || strlen(path) >= sizeof(server.sun_path))
		return;
	page = mmap(NULL, sizeof(*lock), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(page, &attributes);
	lock = page;
	server.sun_family = AF_UNIX;
	strcpy(server.sun_path, path);
}

static void hold(void)
{
	if (pthread_mutex_lock(lock) == EOWNERDEAD)
		pthread_mutex_consistent(lock);
}

static int is_ours(int fd)
{
	struct sockaddr_un peer = { .sun_path = "" };
	socklen_t size = sizeof(peer);
	int before = errno, ours;

	ours = lock && !getpeername(fd, (struct sockaddr *)&peer, &size) && peer.sun_family == AF_UNIX &&
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

/* Sends a message and waits for the reply. The server's end, or no answer, is EIO. */
static struct reply ask(int fd, const void *data, size_t size)
{
	struct reply reply = { DONE, -EIO };
	ssize_t got;

	while (send(fd, data, size, MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return reply;
	do
		got = recv(fd, &reply, sizeof(reply), 0);
	while (got < 0 && errno == EINTR);
	if (got != sizeof(reply))
		reply = (struct reply){ DONE, -EIO };
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
static int connect_and_ask(const void *data, size_t size, int flags)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0), 0);
	sa_family_t unnamed = AF_UNIX; /* the kernel chooses a name */
	struct reply reply = { DONE, -EIO };

	if (fd < 0)
		return -1;
	if (!bind(fd, (struct sockaddr *)&unnamed, sizeof(unnamed)) &&
	    !connect(fd, (struct sockaddr *)&server, sizeof(server)))
		reply = ask(fd, data, size);
	if (reply.value < 0)
		syscall(SYS_close, fd);
	return reply.value < 0 ? result(reply.value) : fd;
}

static int open_ours(const char *path, int flags)
{
	struct {
		struct message message;
		char path[64];
	} data = { .message = { .kind = OPEN } };

	strncpy(data.path, path, sizeof(data.path) - 1);
	return connect_and_ask(&data, sizeof(data.message) + strlen(data.path), flags);
}

static int request(int fd, unsigned long number, unsigned long argument)
{
	struct message message = { REQUEST, number, argument };
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
	unsigned long argument;
	va_list rest;
	int answer, problem;

	va_start(rest, number);
	argument = va_arg(rest, unsigned long);
	va_end(rest);
	if ((number >> 8 & 0xff) != TYPE || !is_ours(fd))
		return syscall(SYS_ioctl, fd, number, argument);
	hold();
	answer = request(fd, number, argument);
	problem = errno;
	pthread_mutex_unlock(lock);
	errno = problem;
	return answer;
}

static int opens(int folder, const char *path, int flags, mode_t mode)
{
	if (lock && path && (!strcmp(path, "/dev/iommu") || !strncmp(path, "/dev/vfio/", 10)) && strlen(path) < 64)
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
