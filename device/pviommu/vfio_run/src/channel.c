/*
 * Connections to the server, one for each open file, and messages on them. Processes that share a connection, by fork,
 * exec or a descriptor that is sent, share the locks in a file beside the socket, too; and as one may be killed before
 * it has read its reply, each message has a number, and the reply to it has the same.
 *
 * A message that the server waits for is put into the box of the connection (see boxes.h), others go by the socket.
 * Whoever waits for a reply in a box looks there for a moment, and then sleeps at the socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "preload.h"

#define MAX_PATH 64 /* with the end */
#define LOOK_NS 100000 /* in the box, before a process sleeps */
#define TURNS 16 /* between two looks at the clock */
#define MISS 4 /* what a reply costs that did not come while a process looked; one that came pays 1 of it back */
#define MOST_DEBT 16 /* with that, messages go by the socket for a while */
#define FEWEST_SKIPPED 32 /* of such messages, and twice as many each time that it happens again */
#define MOST_SKIPPED 4096
#define HEAD "pviommu-%016llx-" /* of the names of connections, by the socket's path */
#define HEAD_LENGTH 25
#define TAIL "%08x-%08x" /* the number, and that of the device */
#define TAIL_LENGTH 17
#define NAME_SIZE (offsetof(struct sockaddr_un, sun_path) + 1 + HEAD_LENGTH + TAIL_LENGTH)

/* Of one process: it is zeros in a child. */
struct own {
	uint64_t token; /* what the server knows it by; 0: it does not yet */
	pid_t pid; /* by which it is in the memory of whoever shares it */
	/* Whether looking for replies is worth while: on one processor the server stands still meanwhile. */
	int debt, skipped, penalty;
};

static struct sockaddr_un server; /* its path is empty in a program that is not for us */
static char head[HEAD_LENGTH + 1];
static struct shared *shared;
static struct own *own; /* NULL: there are no boxes for this process */
static int problem; /* why there is nothing shared */
static int is_useless; /* `own`: the kernel does not allow what boxes need. Other threads may be using it. */
static __thread int in_turn;

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
	for (i = 0; i < BOXES; i++)
		pthread_mutex_init(&page->locks[i], &attributes);
	page->is_ready = 1;
}

static void make_head(const char *path)
{
	unsigned long long hash = 0xcbf29ce484222325; /* FNV-1a: another server's connections have other names */

	for (; *path; path++)
		hash = (hash ^ (unsigned char)*path) * 0x100000001b3;
	snprintf(head, sizeof(head), HEAD, hash);
}

static void make_own(void)
{
	void *page = (void *)syscall(SYS_mmap, NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page != MAP_FAILED && !madvise(page, PAGE, MADV_WIPEONFORK))
		own = page;
}

/*
 * Without the file, for the server has ended or is another user's, a program runs, and cannot open anything of ours. It
 * must never get the files of the machine instead.
 */
__attribute__((constructor)) static void begin(void)
{
	char beside[sizeof(server.sun_path) + sizeof(".shared")];
	const char *path = getenv("PVIOMMU_VFIO_SOCKET");
	struct shared *page;
	int fd;

	if (!path || !*path)
		return;
	if (strlen(path) >= sizeof(server.sun_path))
		refuse(path, ENAMETOOLONG);
	server.sun_family = AF_UNIX;
	strcpy(server.sun_path, path);
	begin_paths(path);
	snprintf(beside, sizeof(beside), "%s.shared", path);
	fd = syscall(SYS_openat, AT_FDCWD, beside, O_RDWR | O_CLOEXEC, 0);
	if (fd < 0) {
		problem = errno == ENOENT ? EIO : errno;
		return;
	}
	if (flock(fd, LOCK_EX) || ftruncate(fd, sizeof(*page)))
		refuse(path, errno);
	page = (void *)syscall(SYS_mmap, NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		refuse(path, errno);
	if (!page->is_ready)
		make_locks(page);
	make_head(path);
	make_own();
	shared = page;
	flock(fd, LOCK_UN); /* the mapping would keep it */
	syscall(SYS_close, fd);
}

int has_server(void)
{
	return shared != NULL;
}

/* What the name of a connection says behind its head; 0: it is none of ours. Leaves errno alone. */
static uint32_t word_of(int fd, size_t offset)
{
	struct sockaddr_un name;
	socklen_t size = sizeof(name);
	int before = errno;
	uint32_t word = 0;

	if (shared && !getsockname(fd, (struct sockaddr *)&name, &size) && name.sun_family == AF_UNIX &&
	    size == NAME_SIZE && !memcmp(name.sun_path + 1, head, HEAD_LENGTH)) {
		name.sun_path[1 + HEAD_LENGTH + offset + 8] = '\0';
		word = strtoul(name.sun_path + 1 + HEAD_LENGTH + offset, NULL, 16);
	}
	errno = before;
	return word;
}

uint32_t number_of(int fd)
{
	return word_of(fd, 0);
}

uint32_t device_number_of(int fd)
{
	return word_of(fd, TAIL_LENGTH - 8);
}

/* Gives a connection a number that no other one has, and the name with it. 0, or -1 with errno. */
static int give_number(int fd, uint32_t *number, uint32_t device)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	int code;

	do {
		*number = __atomic_add_fetch(&shared->connections, 1, __ATOMIC_RELAXED);
		snprintf(name.sun_path + 1, sizeof(name.sun_path) - 1, "%s" TAIL, head, *number, device);
		code = *number ? bind(fd, (struct sockaddr *)&name, NAME_SIZE) : -1;
	} while (code && (!*number || errno == EADDRINUSE)); /* they have begun again, and some are still there */
	return code;
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

/* Drops a message that has come. */
static void drop(int fd)
{
	char byte;

	recv(fd, &byte, 1, MSG_DONTWAIT);
}

/* The beginning of the next message, and how long that is; -1 with errno. It stays where it is. */
static ssize_t look(int fd, struct reply *reply)
{
	ssize_t got;

	do
		got = recv(fd, reply, sizeof(*reply), MSG_PEEK | MSG_TRUNC);
	while (got < 0 && is_worth_waiting(fd, POLLIN));
	return got;
}

/* What comes with the reply that is the next message: data, a descriptor. 0, or an errno. It stays where it is. */
static int take_rest(int fd, struct exchange *exchange)
{
	struct reply reply;
	struct iovec parts[] = { { &reply, sizeof(reply) }, { exchange->into, exchange->room } };
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
		got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_PEEK);
	while (got < 0 && is_worth_waiting(fd, POLLIN));
	header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS)
		memcpy(&exchange->got, CMSG_DATA(header), sizeof(int));
	return got < 0 ? errno : 0;
}

/*
 * The reply that comes by the socket. Most files can always be read, for poll(): of these the last reply stays there
 * until the next one is awaited. Nothing of the program's is touched before the reply is known to be the right one.
 */
static struct reply await(int fd, struct exchange *exchange)
{
	struct reply reply, none = { DONE, -EIO, exchange->message.sequence };
	int is_kept, code = 0;
	ssize_t got;

	for (;;) {
		got = look(fd, &reply);
		if (got < (ssize_t)sizeof(reply))
			return none;
		if (reply.sequence == exchange->message.sequence)
			break;
		drop(fd);
	}
	is_kept = !!(reply.answer & KEPT);
	reply.answer &= ~KEPT;
	if (got > (ssize_t)sizeof(reply) || (exchange->message.kind & ~WATCH) == MAP)
		code = take_rest(fd, exchange);
	if (!is_kept)
		drop(fd);
	if (!code)
		return reply;
	none.value = code == EFAULT ? -EFAULT : -EIO;
	return none;
}

static struct reply ask_by_socket(int fd, struct exchange *exchange)
{
	struct reply none = { DONE, -EIO, 0 };
	int code;

	drop(fd); /* the last reply, if it stays there */
	code = tell(fd, exchange);
	if (code == EFAULT)
		none.value = -EFAULT;
	return code ? none : await(fd, exchange);
}

static uint64_t next_sequence(void)
{
	return __atomic_add_fetch(&shared->sequence, 1, __ATOMIC_RELAXED);
}

/* Between memory of the program, which may not be there, and a box. Whether all of it was copied. */
static int fetch(void *into, const void *from, size_t size)
{
	struct iovec local = { into, size }, remote = { (void *)from, size };

	return !size || process_vm_readv(own->pid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

static int put(void *into, const void *from, size_t size)
{
	struct iovec local = { (void *)from, size }, remote = { into, size };

	return !size || process_vm_writev(own->pid, &local, 1, &remote, 1, 0) == (ssize_t)size;
}

/* Whether the server knows this process. */
static int is_known(int fd)
{
	struct exchange hello = { .message = { .kind = HELLO, .sequence = next_sequence() }, .given = -1, .got = -1 };
	uint64_t token = 0, copy = 0;
	struct reply reply;

	if (own->token)
		return 1;
	hello.into = &token;
	hello.room = sizeof(token);
	reply = ask_by_socket(fd, &hello);
	own->pid = getpid();
	if (!reply.sequence || reply.value || !fetch(&copy, &token, sizeof(token)) || !put(&token, &copy, sizeof(copy)))
		is_useless = 1;
	else
		own->token = token;
	return own->token != 0;
}

/* Whether to try a box. Threads that do so at once may make this a bit wrong, and nothing else. */
static int is_worth_looking(void)
{
	if (!own || is_useless)
		return 0;
	if (own->debt < MOST_DEBT)
		return 1;
	if (++own->skipped < own->penalty)
		return 0;
	own->skipped = 0;
	own->debt = MOST_DEBT - MISS;
	return 1;
}

static void learn(int was_seen)
{
	if (!was_seen) {
		own->debt += MISS;
		if (own->debt >= MOST_DEBT)
			own->penalty = own->penalty ? own->penalty * 2 : FEWEST_SKIPPED;
		if (own->penalty > MOST_SKIPPED)
			own->penalty = MOST_SKIPPED;
	} else if (own->debt) {
		own->debt--;
	} else {
		own->penalty = 0;
	}
}

/* Whether the message is in the box of the connection, where the server looks for it. */
static int post(const struct turn *turn, const struct exchange *exchange)
{
	const struct exchange ring = { .message = { .kind = RING }, .given = -1 };
	struct box *box = turn->box;

	if (!box || !__atomic_load_n(&box->is_watched, __ATOMIC_ACQUIRE) || exchange->given >= 0 ||
	    exchange->size > ROOM || exchange->room > ROOM || !is_known(turn->fd))
		return 0;
	__atomic_store_n(&box->message.sequence, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	if (!fetch(box->behind, exchange->behind, exchange->size))
		return 0;
	box->message.kind = exchange->message.kind;
	box->message.request = exchange->message.request;
	box->message.argument = exchange->message.argument;
	box->token = own->token;
	box->connection = turn->number;
	box->size = exchange->size;
	box->sleeps = 0;
	__atomic_store_n(&box->message.sequence, exchange->message.sequence, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&box->is_watched, __ATOMIC_SEQ_CST)) /* not any more: perhaps it has not seen this */
		tell(turn->fd, &ring);
	return 1;
}

/* Whether the reply is in the box; else it comes by the socket. */
static int is_answered(struct box *box, uint64_t sequence)
{
	uint64_t end = now() + LOOK_NS;
	unsigned int turns;

	for (turns = 1; __atomic_load_n(&box->reply.sequence, __ATOMIC_ACQUIRE) != sequence; turns++) {
		if (turns % TURNS == 0 && now() >= end) {
			__atomic_store_n(&box->sleeps, sequence, __ATOMIC_SEQ_CST);
			return __atomic_load_n(&box->reply.sequence, __ATOMIC_SEQ_CST) == sequence &&
			       __atomic_exchange_n(&box->sleeps, 0, __ATOMIC_SEQ_CST) == sequence;
		}
		relax();
	}
	return 1;
}

static struct reply take_answer(const struct turn *turn, struct exchange *exchange)
{
	struct box *box = turn->box;
	struct reply reply = { DONE, -EFAULT, exchange->message.sequence };
	int was_seen = is_answered(box, exchange->message.sequence);
	size_t size;

	learn(was_seen);
	if (!was_seen)
		return await(turn->fd, exchange);
	size = box->reply_size < exchange->room ? box->reply_size : exchange->room;
	return put(exchange->into, box->reply_behind, size) ? box->reply : reply;
}

struct reply ask(const struct turn *turn, struct exchange *exchange)
{
	struct reply reply;

	exchange->message.sequence = next_sequence();
	exchange->got = -1;
	if (!is_worth_looking())
		return ask_by_socket(turn->fd, exchange);
	if (post(turn, exchange)) {
		reply = take_answer(turn, exchange);
		if (reply.answer != STRANGER)
			return reply;
		own->token = 0;
		exchange->message.sequence = next_sequence();
	}
	exchange->message.kind |= WATCH;
	return ask_by_socket(turn->fd, exchange);
}

int result(int32_t value)
{
	if (value >= 0)
		return value;
	errno = -value;
	return -1;
}

int connect_and_ask(struct exchange *exchange, int flags, uint32_t device)
{
	struct turn turn = { .fd = socket(AF_UNIX, SOCK_SEQPACKET | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0), 0) };
	struct reply reply = { DONE, -EIO, 0 };
	int code;

	if (turn.fd < 0)
		return -1;
	if (!give_number(turn.fd, &turn.number, device)) {
		while ((code = connect(turn.fd, (struct sockaddr *)&server, sizeof(server))) && errno == EINTR)
			;
		if (!code)
			reply = ask(&turn, exchange);
	}
	if (reply.value < 0)
		syscall(SYS_close, turn.fd);
	return reply.value < 0 ? result(reply.value) : turn.fd;
}

int open_ours(const char *path, int flags, uint32_t device)
{
	struct exchange exchange = { .message = { .kind = OPEN }, .behind = path, .size = strlen(path), .given = -1 };

	if (!shared)
		return result(-problem);
	if (exchange.size >= MAX_PATH)
		return result(-ENAMETOOLONG);
	return connect_and_ask(&exchange, flags, device);
}

struct turn begin_turn(int fd, uint32_t number)
{
	struct turn turn = { fd, number, &shared->locks[number % BOXES], &shared->boxes[number % BOXES], { { 0 } } };
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &turn.signals);
	if (pthread_mutex_lock(turn.lock) == EOWNERDEAD)
		pthread_mutex_consistent(turn.lock);
	in_turn = 1;
	return turn;
}

void end_turn(const struct turn *turn)
{
	int before = errno;

	in_turn = 0;
	pthread_mutex_unlock(turn->lock);
	pthread_sigmask(SIG_SETMASK, &turn->signals, NULL);
	errno = before;
}

int is_in_turn(void)
{
	return in_turn;
}
