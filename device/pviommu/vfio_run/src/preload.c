/*
 * Takes a program's open() of /dev/iommu and /dev/vfio to a server (see server.py), and what it does with what that
 * gives: requests, reading, writing and mmap(). Each open file is a connection, so that dup, close and the end of a
 * process need nothing here.
 *
 * See server.py for the meaning of messages, channel.c for how they go, registers.c for memory of devices that is none,
 * and paths.c for what else programs find in /dev and /sys. Everything else goes to the kernel, but never an open() of
 * these paths.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "preload.h"

#define TYPE ';'
#define MOST_DATA 4096 /* of a message */
#define MOST_KNOWN 64 /* bytes of an argument that go with the request */

/* Those of the C library, at which threads can be cancelled. Found early: signal handlers may call them. */
static ssize_t (*library_read)(int fd, void *buffer, size_t count);
static ssize_t (*library_write)(int fd, const void *buffer, size_t count);

__attribute__((constructor)) static void begin(void)
{
	library_read = dlsym(RTLD_NEXT, "read");
	library_write = dlsym(RTLD_NEXT, "write");
}

/* Requests */

/* What the server asked of a descriptor: which connection it is, or the descriptor. */
static struct reply describe(const struct turn *turn, struct reply asked)
{
	struct exchange exchange = { .given = -1 };
	int other = asked.value;

	exchange.message.kind = asked.answer == NEED_FD ? IS : COPY;
	if (fcntl(other, F_GETFD) < 0)
		exchange.message.request = EBADF;
	else if (asked.answer == NEED_COPY)
		exchange.given = other;
	else if (!(exchange.message.argument = number_of(other)))
		exchange.message.request = EBADFD;
	return ask(turn, &exchange);
}

/*
 * A file that a request opened is a new connection. Its descriptor is the result, or belongs into the structure that
 * the request is about.
 */
static int claim(const struct reply *reply, unsigned long argument)
{
	struct exchange exchange = { .message = { CLAIM, 0, reply->value, 0 }, .given = -1 };
	unsigned int field = reply->answer >> 8;
	int fd = connect_and_ask(&exchange, O_CLOEXEC, 0);

	if (fd < 0 || !field)
		return fd;
	memcpy((char *)argument + field, &fd, sizeof(fd));
	return 0;
}

static int request(const struct turn *turn, unsigned long number, unsigned long argument)
{
	struct exchange exchange = { .message = { REQUEST, number, argument, 0 }, .given = -1 };
	unsigned long left = PAGE - argument % PAGE;
	struct reply reply;

	if (argument >= PAGE) { /* others are numbers */
		exchange.behind = (void *)argument;
		exchange.size = left < MOST_KNOWN ? left : MOST_KNOWN;
		exchange.into = (void *)argument; /* what is written back comes with the answer, if the server likes */
		exchange.room = ROOM;
	}
	reply = ask(turn, &exchange);
	if (reply.answer == DONE && reply.value == -EFAULT && !reply.sequence) {
		/* It was not sent: the server says what is wrong. */
		exchange.size = 0;
		reply = ask(turn, &exchange);
	}
	while (reply.answer == NEED_FD || reply.answer == NEED_COPY)
		reply = describe(turn, reply);
	if ((reply.answer & 0xff) == OPENED)
		return claim(&reply, argument);
	return result(reply.value);
}

EXPORT int ioctl(int fd, unsigned long number, ...)
{
	unsigned long argument;
	uint32_t connection;
	struct turn turn;
	va_list rest;
	int answer;

	va_start(rest, number);
	argument = va_arg(rest, unsigned long);
	va_end(rest);
	if ((number >> 8 & 0xff) != TYPE || !(connection = number_of(fd)))
		return syscall(SYS_ioctl, fd, number, argument);
	turn = begin_turn(fd, connection);
	answer = request(&turn, number, argument);
	end_turn(&turn);
	return answer;
}

/* Reading and writing */

/*
 * As pread() or pwrite(), or as read() or write() without an offset: that of the file. In as many messages as it takes;
 * less only where the file ends, or after an error.
 */
ssize_t transfer(int fd, uint32_t connection, enum kind kind, void *buffer, size_t count, uint64_t offset)
{
	struct turn turn = begin_turn(fd, connection);
	size_t done = 0;
	struct reply reply;

	do {
		size_t part = count - done < MOST_DATA ? count - done : MOST_DATA;
		struct exchange exchange = { .message = { kind, part, offset + done, 0 }, .given = -1 };

		if (part > ROOM && count <= 2 * ROOM)
			exchange.message.request = part = ROOM; /* two boxes are faster than a message */
		if (kind == READ) {
			exchange.into = (char *)buffer + done;
			exchange.room = part;
		} else {
			exchange.behind = (char *)buffer + done;
			exchange.size = part;
		}
		reply = ask(&turn, &exchange);
		if (reply.value <= 0)
			break;
		done += reply.value;
		if ((size_t)reply.value < part)
			break;
	} while (done < count);
	end_turn(&turn);
	return done ? (ssize_t)done : result(reply.value);
}

/* The offset is the server's; of queues there is none. Whether there is something to read, poll() knows. */
static ssize_t stream(int fd, uint32_t connection, enum kind kind, const void *buffer, size_t count)
{
	struct exchange exchange = {
		.message = { kind, count < INT32_MAX ? count : INT32_MAX, (uintptr_t)buffer, 0 },
		.given = -1,
	};
	struct turn turn = begin_turn(fd, connection);
	struct reply reply = ask(&turn, &exchange);

	end_turn(&turn);
	return result(reply.value);
}

/* What programs call that were compiled with _FORTIFY_SOURCE: they know the size of the buffer. */
void __chk_fail(void) __attribute__((noreturn));

static void check(size_t count, size_t size)
{
	if (count > size)
		__chk_fail();
}

#define READS_AT(name)                                                                                                 \
	EXPORT ssize_t name(int fd, void *buffer, size_t count, off_t offset)                                          \
	{                                                                                                              \
		uint32_t connection = number_of(fd);                                                                   \
                                                                                                                       \
		return connection ? transfer(fd, connection, READ, buffer, count, offset) :                            \
				    syscall(SYS_pread64, fd, buffer, count, offset);                                   \
	}

READS_AT(pread)
READS_AT(pread64)

#define CHECKED(name)                                                                                                  \
	EXPORT ssize_t name(int fd, void *buffer, size_t count, off_t offset, size_t size);                            \
	EXPORT ssize_t name(int fd, void *buffer, size_t count, off_t offset, size_t size)                             \
	{                                                                                                              \
		check(count, size);                                                                                    \
		return pread(fd, buffer, count, offset);                                                               \
	}

CHECKED(__pread_chk)
CHECKED(__pread64_chk)

#define WRITES_AT(name)                                                                                                \
	EXPORT ssize_t name(int fd, const void *buffer, size_t count, off_t offset)                                    \
	{                                                                                                              \
		uint32_t connection = number_of(fd);                                                                   \
                                                                                                                       \
		return connection ? transfer(fd, connection, WRITE, (void *)buffer, count, offset) :                   \
				    syscall(SYS_pwrite64, fd, buffer, count, offset);                                  \
	}

WRITES_AT(pwrite)
WRITES_AT(pwrite64)

EXPORT ssize_t read(int fd, void *buffer, size_t count)
{
	uint32_t connection = number_of(fd);

	if (connection)
		return stream(fd, connection, TAKE, buffer, count);
	if (!library_read)
		library_read = dlsym(RTLD_NEXT, "read");
	return library_read(fd, buffer, count);
}

EXPORT ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size);
EXPORT ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size)
{
	check(count, size);
	return read(fd, buffer, count);
}

EXPORT ssize_t write(int fd, const void *buffer, size_t count)
{
	uint32_t connection = number_of(fd);

	if (connection)
		return stream(fd, connection, PUT, buffer, count);
	if (!library_write)
		library_write = dlsym(RTLD_NEXT, "write");
	return library_write(fd, buffer, count);
}

/* One piece of memory after the other, as the kernel does it where a file knows nothing better. */
static ssize_t each(int fd, uint32_t connection, int writes, const struct iovec *parts, int count, off_t offset)
{
	ssize_t done = 0, got = 0;
	int i;

	if (count < 0 || count > 1024)
		return result(-EINVAL);
	for (i = 0; i < count; i++) {
		if (!parts[i].iov_len)
			continue;
		if (offset < 0)
			got = stream(fd, connection, writes ? PUT : TAKE, parts[i].iov_base, parts[i].iov_len);
		else
			got = transfer(fd, connection, writes ? WRITE : READ, parts[i].iov_base, parts[i].iov_len,
				       offset + done);
		if (got > 0)
			done += got;
		if (got < (ssize_t)parts[i].iov_len)
			break;
	}
	return done ? done : got;
}

#define VECTOR(name, writes)                                                                                           \
	EXPORT ssize_t name(int fd, const struct iovec *parts, int count)                                              \
	{                                                                                                              \
		uint32_t connection = number_of(fd);                                                                   \
                                                                                                                       \
		return connection ? each(fd, connection, writes, parts, count, -1) : syscall(SYS_##name, fd, parts, count); \
	}

VECTOR(readv, 0)
VECTOR(writev, 1)

/* On x86-64 and AArch64 the offset is one word, and the other one that the kernel takes is 0. */
#define VECTOR_AT(name, number, writes)                                                                                \
	EXPORT ssize_t name(int fd, const struct iovec *parts, int count, off_t offset)                                \
	{                                                                                                              \
		uint32_t connection = number_of(fd);                                                                   \
                                                                                                                       \
		if (!connection)                                                                                       \
			return syscall(number, fd, parts, count, offset, 0L);                                          \
		return offset < 0 ? result(-EINVAL) : each(fd, connection, writes, parts, count, offset);              \
	}

VECTOR_AT(preadv, SYS_preadv, 0)
VECTOR_AT(preadv64, SYS_preadv, 0)
VECTOR_AT(pwritev, SYS_pwritev, 1)
VECTOR_AT(pwritev64, SYS_pwritev, 1)

/* With flags, which files without read_iter() do not take. An offset of -1 is that of the file. */
#define VECTOR_FLAGS(name, number, writes)                                                                             \
	EXPORT ssize_t name(int fd, const struct iovec *parts, int count, off_t offset, int flags)                     \
	{                                                                                                              \
		uint32_t connection = number_of(fd);                                                                   \
                                                                                                                       \
		if (!connection)                                                                                       \
			return syscall(number, fd, parts, count, offset, 0L, flags);                                   \
		if (flags & ~RWF_HIPRI)                                                                                \
			return result(-EOPNOTSUPP);                                                                    \
		return offset < -1 ? result(-EINVAL) : each(fd, connection, writes, parts, count, offset);             \
	}

VECTOR_FLAGS(preadv2, SYS_preadv2, 0)
VECTOR_FLAGS(preadv64v2, SYS_preadv2, 0)
VECTOR_FLAGS(pwritev2, SYS_pwritev2, 1)
VECTOR_FLAGS(pwritev64v2, SYS_pwritev2, 1)

/* Memory of devices */

#define MAPS(name)                                                                                                     \
	EXPORT void *name(void *address, size_t length, int rights, int flags, int fd, off_t offset)                   \
	{                                                                                                              \
		uint32_t connection = fd >= 0 && !(flags & MAP_ANONYMOUS) ? number_of(fd) : 0;                         \
                                                                                                                       \
		if (connection)                                                                                        \
			return map_device(address, length, rights, flags, fd, connection, offset);                     \
		return map_other(address, length, rights, flags, fd, offset);                                          \
	}

MAPS(mmap)
MAPS(mmap64)
