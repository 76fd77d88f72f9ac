/*
 * Memory of devices in a program. Parts of it are files of the server, which are mapped; others are registers, where
 * each access does something. There the program has pages that it must not touch, and what an instruction that does so
 * would read or write is carried out as pread() or pwrite() of the device, in the handler of SIGSEGV, if it is one that
 * compilers make for a volatile access (see decode.c). Such a page has a descriptor of its own: as in Linux the file is
 * open as long as something of it is mapped.
 *
 * The program's own handler of SIGSEGV gets what is none of this. The signal is never blocked, as the kernel would end
 * a thread that blocks it and touches such a page.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#include "decode.h"
#include "preload.h"

#define MOST_MAPPINGS 256
#define FIRST_DESCRIPTOR 512 /* of those that mappings have, if there can be so many */

/* Pages of registers. */
struct mapping {
	uintptr_t first, end; /* equal: none */
	uint64_t offset; /* in the device's file */
	int fd, rights;
	uint32_t number; /* of the connection */
};

/* What the server says of bytes of a device's file: as many of them as are one kind. */
struct piece {
	uint64_t place, size; /* place: in the file that comes with it; if none does, they are registers */
};

static struct mapping mappings[MOST_MAPPINGS];
static int are_locked, has_handler;
static struct sigaction program = { .sa_handler = SIG_DFL }; /* what the program wants of SIGSEGV */

/* Signals wait: a handler may want this, too. */
static sigset_t lock_mappings(void)
{
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (__atomic_test_and_set(&are_locked, __ATOMIC_ACQUIRE))
		relax();
	return before;
}

static void unlock_mappings(const sigset_t *signals)
{
	__atomic_clear(&are_locked, __ATOMIC_RELEASE);
	pthread_sigmask(SIG_SETMASK, signals, NULL);
}

static int another_descriptor(int fd)
{
	int made = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR);

	return made < 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : made;
}

static struct mapping *unused(void)
{
	int i;

	for (i = 0; i < MOST_MAPPINGS; i++)
		if (mappings[i].first == mappings[i].end)
			return &mappings[i];
	return NULL;
}

/* Whether there is room to remember them. */
static int add(uintptr_t first, size_t length, uint64_t offset, int fd, uint32_t number, int rights)
{
	struct mapping new = { first, first + length, offset, another_descriptor(fd), rights, number }, *place;
	sigset_t signals;

	if (new.fd < 0)
		return 0;
	signals = lock_mappings();
	place = unused();
	if (place)
		*place = new;
	unlock_mappings(&signals);
	if (!place)
		syscall(SYS_close, new.fd);
	return place != NULL;
}

/* Makes two of a mapping. Whether there is room to remember them. */
static int split(struct mapping *whole, uintptr_t at)
{
	struct mapping *rest = unused();

	if (!rest)
		return 0;
	*rest = *whole;
	rest->offset += at - whole->first;
	rest->first = at;
	rest->fd = another_descriptor(whole->fd);
	whole->end = at;
	return 1;
}

/* Something else is there now, or nothing. Parts of a mapping may stay. */
static void forget(uintptr_t first, uintptr_t end)
{
	struct mapping *each;
	sigset_t signals;

	if (!__atomic_load_n(&has_handler, __ATOMIC_ACQUIRE))
		return;
	signals = lock_mappings();
	for (each = mappings; each < mappings + MOST_MAPPINGS; each++) {
		if (each->first == each->end || each->end <= first || each->first >= end)
			continue;
		if (each->first < first && each->end > end)
			split(each, end);
		if (each->first < first) {
			each->end = first;
		} else if (each->end > end) {
			each->offset += end - each->first;
			each->first = end;
		} else {
			each->first = each->end;
			syscall(SYS_close, each->fd);
		}
	}
	unlock_mappings(&signals);
}

static int find(uintptr_t address, struct mapping *found)
{
	sigset_t signals = lock_mappings();
	struct mapping *each;

	*found = (struct mapping){ 0, 0, 0, -1, 0, 0 };
	for (each = mappings; each < mappings + MOST_MAPPINGS; each++)
		if (each->first <= address && address < each->end)
			*found = *each;
	unlock_mappings(&signals);
	return found->first != found->end;
}

/* The handler */

#ifdef __x86_64__

/* In the order of their numbers in instructions, and RIP. */
static const int places[] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8,
	REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP,
};

/* What is there of the instruction: it may end with the page before one that is not. */
static int fetch_code(uintptr_t at, uint8_t *code)
{
	int count = MOST_BYTES, left = PAGE - at % PAGE;
	struct iovec local = { code, MOST_BYTES }, parts[] = { { (void *)at, count }, { NULL, 0 } };

	if (left < count) {
		parts[0].iov_len = left;
		parts[1].iov_base = (void *)(at + left);
		parts[1].iov_len = count - left;
	}
	count = process_vm_readv(getpid(), &local, 1, parts, 2, 0);
	if (count < 0) { /* not allowed, or code that can only be run */
		memcpy(code, (void *)at, left < MOST_BYTES ? left : MOST_BYTES);
		count = left < MOST_BYTES ? left : MOST_BYTES;
	}
	return count;
}

static void say(const struct mapping *mapping, uintptr_t address, uintptr_t at, const uint8_t *code, int count,
		const struct access *access)
{
	unsigned long place = mapping->offset + address - mapping->first;
	char bytes[3 * MOST_BYTES + 1] = "";
	int i;

	if (access) {
		dprintf(2, "pviommu: register at %#lx of a device's file (address %#lx): the instruction at %#lx moves %d bytes"
			" from address %#lx on, and not all of these are registers that were mapped together\n",
			place, (unsigned long)address, (unsigned long)at, access->size, (unsigned long)access->address);
		return;
	}
	for (i = 0; i < count; i++)
		sprintf(bytes + 3 * i, " %02x", code[i]);
	dprintf(2, "pviommu: register at %#lx of a device's file (address %#lx): the instruction at %#lx is no MOV, MOVZX or"
		" MOVSX of 1, 2, 4 or 8 bytes between it and a general register, nor MOV of a constant; its bytes:%s\n",
		place, (unsigned long)address, (unsigned long)at, bytes);
}

/* The device does not answer, as its memory decoding is off or its server has ended: as Linux does it. */
static void bus_error(void *address)
{
	siginfo_t info = { .si_signo = SIGBUS, .si_code = BUS_ADRERR };

	info.si_addr = address;
	syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGBUS, &info);
}

static uint64_t merged(uint64_t before, uint64_t value, const struct access *access)
{
	int shift = access->is_high ? 8 : 0;
	uint64_t mask;

	if (access->is_signed)
		value = (uint64_t)((int64_t)(value << (64 - 8 * access->size)) >> (64 - 8 * access->size));
	if (access->width >= 4)
		return access->width == 4 ? (uint32_t)value : value;
	mask = (access->width == 2 ? 0xffffULL : 0xffULL) << shift;
	return (before & ~mask) | (value << shift & mask);
}

/* Whether the instruction was carried out, or SIGBUS is on its way instead. */
static int carry_out(uintptr_t address, ucontext_t *state)
{
	greg_t *registers = state->uc_mcontext.gregs;
	uint64_t values[RIP + 1], value = 0;
	uint8_t code[MOST_BYTES];
	struct mapping mapping;
	struct access access;
	ssize_t moved;
	int i, count;

	if (is_in_turn() || !find(address, &mapping))
		return 0;
	for (i = 0; i <= RIP; i++)
		values[i] = registers[places[i]];
	count = fetch_code(values[RIP], code);
	if (!decode(code, count, values, &access)) {
		say(&mapping, address, values[RIP], code, count, NULL);
		return 0;
	}
	if (access.address != address || access.address + access.size > mapping.end) {
		say(&mapping, address, values[RIP], code, count, &access);
		return 0;
	}
	if (!(mapping.rights & (access.writes ? PROT_WRITE : PROT_READ)))
		return 0;
	if (number_of(mapping.fd) != mapping.number) {
		bus_error((void *)address);
		return 1;
	}
	if (access.writes)
		value = access.target < 0 ? access.immediate : values[access.target] >> (access.is_high ? 8 : 0);
	else
		value = ~0ULL >> (64 - 8 * access.size); /* where nothing answers */
	moved = transfer(mapping.fd, mapping.number, access.writes ? WRITE : READ, &value, access.size,
			 mapping.offset + address - mapping.first);
	if (moved < 0 && errno == EIO) {
		bus_error((void *)address);
		return 1;
	}
	if (!access.writes)
		registers[places[access.target]] = merged(values[access.target], value, &access);
	registers[REG_RIP] += access.length;
	return 1;
}

#else

static int carry_out(uintptr_t address, ucontext_t *state)
{
	(void)address;
	(void)state;
	return 0;
}

#endif

static void pass_on(int number, siginfo_t *info, void *context)
{
	struct sigaction to = program;

	if (!(to.sa_flags & SA_SIGINFO) && (to.sa_handler == SIG_DFL || to.sa_handler == SIG_IGN)) {
		if (info->si_code <= 0 && to.sa_handler == SIG_IGN)
			return; /* somebody has sent it */
		to.sa_handler = SIG_DFL;
		REAL(sigaction)(SIGSEGV, &to, NULL);
		if (info->si_code <= 0)
			syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSEGV);
		return; /* to the instruction, which does it again */
	}
	if (to.sa_flags & SA_RESETHAND)
		program.sa_handler = SIG_DFL, program.sa_flags &= ~SA_SIGINFO;
	pthread_sigmask(SIG_BLOCK, &to.sa_mask, NULL); /* until this one returns */
	if (to.sa_flags & SA_SIGINFO)
		to.sa_sigaction(number, info, context);
	else
		to.sa_handler(number);
}

static void handle(int number, siginfo_t *info, void *context)
{
	int before = errno;

	if (info->si_code <= 0 || !carry_out((uintptr_t)info->si_addr, context)) {
		errno = before;
		pass_on(number, info, context);
	}
	errno = before;
}

/* A child must not inherit a lock of a thread that it does not have. */
static sigset_t at_fork;

static void before_fork(void)
{
	at_fork = lock_mappings();
}

static void after_fork(void)
{
	unlock_mappings(&at_fork);
}

/* From the first mapping on. */
static void begin_to_handle(void)
{
	struct sigaction action = { .sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	sigset_t signals = lock_mappings();

	if (!has_handler) {
		REAL(sigaction)(SIGSEGV, &action, &program);
		pthread_atfork(before_fork, after_fork, after_fork);
	}
	__atomic_store_n(&has_handler, 1, __ATOMIC_RELEASE);
	unlock_mappings(&signals);
}

/* What the program says of SIGSEGV */

EXPORT int sigaction(int number, const struct sigaction *action, struct sigaction *before)
{
	struct sigaction changed, own;
	sigset_t signals;

	if (action) {
		changed = *action;
		if (has_server())
			sigdelset(&changed.sa_mask, SIGSEGV);
		action = &changed;
	}
	if (number != SIGSEGV || !__atomic_load_n(&has_handler, __ATOMIC_ACQUIRE))
		return REAL(sigaction)(number, action, before);
	signals = lock_mappings();
	own = program;
	if (action)
		program = *action;
	unlock_mappings(&signals);
	if (before)
		*before = own;
	return 0;
}

#define SIGNALS(name, flags)                                                                                           \
	EXPORT sighandler_t name(int number, sighandler_t handler)                                                     \
	{                                                                                                              \
		struct sigaction action = { .sa_handler = handler, .sa_flags = flags }, before;                        \
                                                                                                                       \
		if (number != SIGSEGV || !__atomic_load_n(&has_handler, __ATOMIC_ACQUIRE))                             \
			return REAL(name)(number, handler);                                                            \
		return sigaction(number, &action, &before) ? SIG_ERR : before.sa_handler;                              \
	}

SIGNALS(signal, SA_RESTART)
SIGNALS(bsd_signal, SA_RESTART)
SIGNALS(ssignal, SA_RESTART)
SIGNALS(sysv_signal, SA_RESETHAND | SA_NODEFER)
SIGNALS(__sysv_signal, SA_RESETHAND | SA_NODEFER)

#define MASKS(name)                                                                                                    \
	EXPORT int name(int how, const sigset_t *set, sigset_t *before)                                                \
	{                                                                                                              \
		sigset_t changed;                                                                                      \
                                                                                                                       \
		if (set && how != SIG_UNBLOCK && has_server()) {                                                       \
			changed = *set;                                                                                \
			sigdelset(&changed, SIGSEGV);                                                                  \
			set = &changed;                                                                                \
		}                                                                                                      \
		return REAL(name)(how, set, before);                                                                   \
	}

MASKS(pthread_sigmask)
MASKS(sigprocmask)

/* Mapping */

static struct reply next_piece(int fd, uint32_t number, uint64_t offset, uint64_t length, struct piece *piece,
			       int *file)
{
	struct exchange exchange = {
		.message = { MAP, 0, offset, 0 },
		.behind = &length,
		.size = sizeof(length),
		.given = -1,
		.into = piece,
		.room = sizeof(*piece),
	};
	struct turn turn = begin_turn(fd, number);
	struct reply reply = ask(&turn, &exchange);

	end_turn(&turn);
	*file = exchange.got;
	if (reply.value >= 0 && (!piece->size || piece->size > length))
		reply.value = -EIO;
	return reply;
}

void *map_device(void *address, size_t length, int rights, int flags, int fd, uint32_t number, off_t offset)
{
	const int changes = MAP_FIXED | MAP_FIXED_NOREPLACE;
	struct piece piece = { 0, 0 };
	size_t done = 0, size;
	struct reply reply;
	char *base, *made;
	int file;

	if ((flags & MAP_TYPE) == MAP_PRIVATE || offset % PAGE || !length || length > INTPTR_MAX - PAGE)
		return (void *)(intptr_t)result(-EINVAL);
	length = (length + PAGE - 1) & ~(PAGE - 1);
	reply = next_piece(fd, number, offset, length, &piece, &file);
	if (reply.value < 0)
		return (void *)(intptr_t)result(reply.value);
	base = (char *)syscall(SYS_mmap, address, length, PROT_NONE,
			       MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE | (flags & changes), -1, 0);
	if (base == MAP_FAILED) {
		if (file >= 0)
			syscall(SYS_close, file);
		return base;
	}
	forget((uintptr_t)base, (uintptr_t)base + length);
	for (;;) {
		size = (piece.size + PAGE - 1) & ~(PAGE - 1);
		made = base + done;
		if (file >= 0) {
			made = (char *)syscall(SYS_mmap, base + done, size, rights, MAP_FIXED | (flags & ~changes), file,
					       piece.place);
			if (made == MAP_FAILED)
				reply.value = -errno;
			syscall(SYS_close, file);
		} else {
			begin_to_handle();
			if (!add((uintptr_t)made, size, offset + done, fd, number, rights))
				reply.value = -ENOMEM;
		}
		done += size;
		if (reply.value < 0 || done >= length)
			break;
		reply = next_piece(fd, number, offset + done, length - done, &piece, &file);
		if (reply.value < 0)
			break;
	}
	if (reply.value >= 0)
		return base;
	forget((uintptr_t)base, (uintptr_t)base + length);
	syscall(SYS_munmap, base, length);
	return (void *)(intptr_t)result(reply.value);
}

void *map_other(void *address, size_t length, int rights, int flags, int fd, off_t offset)
{
	void *made = (void *)syscall(SYS_mmap, address, length, rights, flags, fd, offset);

	if (made != MAP_FAILED && flags & MAP_FIXED)
		forget((uintptr_t)made, (uintptr_t)made + length);
	return made;
}

/* Forgotten before: at once another thread may map something there. */
EXPORT int munmap(void *address, size_t length)
{
	uintptr_t first = (uintptr_t)address;

	if (first % PAGE == 0 && length)
		forget(first, (first + length + PAGE - 1) & ~(PAGE - 1));
	return syscall(SYS_munmap, address, length);
}

/* The lowest one that ends behind an address and begins before another one. */
static struct mapping *lowest(uintptr_t first, uintptr_t end)
{
	struct mapping *each, *found = NULL;

	for (each = mappings; each < mappings + MOST_MAPPINGS; each++)
		if (each->first != each->end && each->end > first && each->first < end &&
		    (!found || each->first < found->first))
			found = each;
	return found;
}

/* Pages of registers stay as they are: only what the program may do with them changes. */
EXPORT int mprotect(void *address, size_t length, int rights)
{
	uintptr_t at = (uintptr_t)address, end = (at + length + PAGE - 1) & ~(PAGE - 1), next;
	struct mapping *each;
	sigset_t signals;
	int code = 0;

	if (!__atomic_load_n(&has_handler, __ATOMIC_ACQUIRE) || at % PAGE || end <= at)
		return syscall(SYS_mprotect, address, length, rights);
	signals = lock_mappings();
	while (at < end && !code) {
		each = lowest(at, end);
		next = each ? each->first : end;
		if (next > at) {
			code = syscall(SYS_mprotect, (void *)at, next - at, rights);
			at = next;
		} else if ((each->first < at && !split(each, at)) || (each->end > end && !split(each, end))) {
			code = result(-ENOMEM);
		} else if (each->first == at) {
			each->rights = rights;
			at = each->end;
		}
	}
	unlock_mappings(&signals);
	return code;
}
