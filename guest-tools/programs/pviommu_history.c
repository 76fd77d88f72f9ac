// SPDX-License-Identifier: MIT
/*
 * pviommu_history ADDRESS...: plays histories of system calls on /dev/iommu and on the VFIO files
 * of PCI functions, and says what came of each. It knows no request: a history says every byte.
 *
 * Standard input has a call per line, of words that are separated by blanks; all numbers are
 * hexadecimal. What F is in them is one of the program's files, what N is one of the functions:
 *
 *   history NAME           all files are closed, memory is 0 again
 *   open F PATH            a file
 *   cdev F N               the character device of a function, /dev/vfio/devices/vfioX
 *   group F N              that of its group, /dev/vfio/X
 *   memfd F SIZE           a file in memory
 *   close F
 *   call F REQUEST WORD... ioctl() with the address of a structure, whose bytes the words are
 *   value F REQUEST NUMBER ioctl() with a number instead
 *   read F OFFSET SIZE     pread()
 *   write F OFFSET BYTES   pwrite()
 *   wait F OFFSET VALUE    reads a register of 4 bytes until it is this
 *   poke ADDRESS BYTES     writes memory
 *   peek ADDRESS SIZE      reads memory
 *   large SIZE             has so many bytes of memory, of huge pages, until the next history
 *   time TURNS CALLS       makes the next CALLS calls so often, and gives the nanoseconds of all;
 *                          the lines with these calls give nothing
 *
 * Words of a structure: bytes, two digits each; rK and qK, a number that was kept, in 4 and 8
 * bytes; %F, the descriptor of a file; nN, the address of a function as text; >K@OFFSET, keep the
 * number there if the call succeeds; +F@OFFSET, the descriptor there is a new file; +F, what the
 * call returns is. The structure ends where memory ends, so that no byte behind it can be read.
 *
 * Each call gives a line on standard output: what it returned or the name of its errno, and the
 * bytes of the structure, or those that were read. Descriptors and addresses of functions are not
 * shown.
 *
 * Exit status: 0 all was played, 1 a file or memory cannot be had, 2 a line is wrong.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vfio_group.h"

#define PAGE		4096ul
/*
 * Memory of histories: some that can be written, a hole, some that can only be read, some with
 * neither.
 */
#define ARENA		0x200000000000ul
#define ARENA_SIZE	(8ul << 20)
#define HOLE_SIZE	(4 * PAGE)
#define READABLE	(ARENA + ARENA_SIZE + HOLE_SIZE)
#define READABLE_SIZE	(4 * PAGE)
#define LOCKED		(READABLE + READABLE_SIZE)
#define LOCKED_SIZE	(4 * PAGE)
/* A structure ends with this page; the next one is not there. */
#define STRUCTURE	0x201000000000ul
#define LARGE		0x210000000000ul
#define FILES		16
#define KEPT		32
#define MOST_WORDS	64
#define BLANKS		"\n "
#define WAIT_MS		10000
#define MOST_TIMED	4

enum { FAILED = 1, WRONG = 2 };

/* A descriptor in the structure that the call leaves, or in what it returns if @offset is -1. */
struct opened {
	unsigned int file;
	long offset;
};

struct kept {
	unsigned int number;
	unsigned long offset;
};

/* What two machines have others of. */
struct hidden {
	size_t offset, size;
};

/* A structure with what is to be done after the call. */
struct request {
	uint8_t *bytes;
	size_t size;
	struct kept keep[MOST_WORDS];
	unsigned int nr_keep;
	struct opened open[MOST_WORDS];
	unsigned int nr_open;
	struct hidden hidden[MOST_WORDS];
	unsigned int nr_hidden;
};

/* A call that is made again and again. */
struct timed {
	unsigned int file;
	unsigned long code;
	uint8_t bytes[PAGE];
	size_t size;
};

static struct timed timed[MOST_TIMED];
static unsigned int nr_timed, to_be_timed;
static uint64_t turns;
static size_t large_size;
static char **functions;
static unsigned int nr_functions;
static int files[FILES];
static uint64_t kept[KEPT];
static unsigned long line_number;

static void fail(const char *what)
{
	fprintf(stderr, "pviommu_history: line %lu: %s: %s\n", line_number, what, strerror(errno));
	exit(FAILED);
}

static void wrong(const char *what, const char *word)
{
	fprintf(stderr, "pviommu_history: line %lu: %s: %s\n", line_number, word ? word : "?",
		what);
	exit(WRONG);
}

static uint64_t number_below(const char *word, uint64_t limit)
{
	uint64_t value;
	char *end;

	if (!word || !isxdigit((unsigned char)*word))
		wrong("not a number", word);
	value = strtoull(word, &end, 16);
	if (*end)
		wrong("not a number", word);
	if (value > limit)
		wrong("too large", word);
	return value;
}

static uint64_t number(const char *word)
{
	return number_below(word, UINT64_MAX);
}

static unsigned int file_of(const char *word)
{
	return number_below(word, FILES - 1);
}

static char *function_of(const char *word)
{
	return functions[number_below(word, nr_functions - 1)];
}

static unsigned int digit(char c)
{
	return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

/* Appends the bytes of @word to @to, where there is room for @room, and returns how many. */
static size_t append_bytes(uint8_t *to, size_t room, const char *word)
{
	size_t size = strlen(word) / 2, i;

	if (strlen(word) % 2 || strspn(word, "0123456789abcdef") != strlen(word))
		wrong("not bytes", word);
	if (size > room)
		wrong("too many bytes", word);
	for (i = 0; i < size; i++)
		to[i] = digit(word[2 * i]) << 4 | digit(word[2 * i + 1]);
	return size;
}

static void show_bytes(const uint8_t *bytes, size_t size)
{
	size_t i;

	if (size)
		putchar(' ');
	for (i = 0; i < size; i++)
		printf("%02x", bytes[i]);
}

/* What a call returned, or why it did not. */
static void show_result(long result)
{
	const char *name = strerrorname_np(errno);

	if (result >= 0)
		printf("%lx", result);
	else
		printf("%s", name ? name : "?");
}

static void show(long result, const void *bytes, size_t size)
{
	show_result(result);
	show_bytes(bytes, size);
	putchar('\n');
}

/* Takes a descriptor in, in place of another one. */
static void take(unsigned int file, int fd)
{
	if (files[file] >= 0)
		close(files[file]);
	files[file] = fd;
}

static void show_opened(unsigned int file, int fd)
{
	show(fd < 0 ? -1 : 0, NULL, 0);
	take(file, fd);
}

static int open_cdev(const char *address)
{
	char path[PATH_MAX], device[PATH_MAX];
	struct dirent *entry;
	int fd = -1;
	DIR *folder;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", address);
	folder = opendir(path);
	if (!folder)
		fail(path);
	errno = ENOENT;
	while ((entry = readdir(folder))) {
		if (strncmp(entry->d_name, "vfio", 4))
			continue;
		snprintf(device, sizeof(device), "/dev/vfio/devices/%s", entry->d_name);
		fd = open(device, O_RDWR | O_CLOEXEC);
		break;
	}
	if (fd < 0 && errno == ENOENT)
		fail(path);
	closedir(folder);
	return fd;
}

static int open_group(const char *address)
{
	char path[PATH_MAX];
	int fd = vfio_open_group(address, path);

	if (fd >= 0)
		return fd;
	errno = -fd;
	if (errno == ENOENT)
		fail(path);
	return -1;
}

static void make_memory(unsigned int file, uint64_t size)
{
	int fd = memfd_create("history", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, size))
		fail("memfd");
	show_opened(file, fd);
}

static void begin(void)
{
	unsigned int i;

	for (i = 0; i < FILES; i++)
		take(i, -1);
	memset(kept, 0, sizeof(kept));
	if (large_size)
		munmap((void *)LARGE, large_size);
	large_size = 0;
	if (madvise((void *)ARENA, ARENA_SIZE, MADV_DONTNEED))
		fail("memory");
}

static void append(struct request *request, uint8_t *bytes, const void *from, size_t size)
{
	if (size > PAGE - request->size)
		wrong("too many bytes", "call");
	memcpy(bytes + request->size, from, size);
	request->size += size;
}

/* Appends what is not shown. */
static void append_hidden(struct request *request, uint8_t *bytes, const void *from, size_t size)
{
	request->hidden[request->nr_hidden++] = (struct hidden){ request->size, size };
	append(request, bytes, from, size);
}

/* A word that adds no bytes: what is to be done with those that the call leaves. */
static void add_promise(struct request *request, char *word)
{
	char *offset = strchr(word, '@');

	if (offset)
		*offset++ = '\0';
	if (*word == '>')
		request->keep[request->nr_keep++] = (struct kept){
			number_below(word + 1, KEPT - 1), number_below(offset, PAGE),
		};
	else
		request->open[request->nr_open++] = (struct opened){
			file_of(word + 1), offset ? (long)number_below(offset, PAGE) : -1,
		};
}

static void add_word(struct request *request, uint8_t *bytes, char *word)
{
	const char *name;

	switch (*word) {
	case 'r':
		append(request, bytes, &kept[number_below(word + 1, KEPT - 1)], 4);
		break;
	case 'q':
		append(request, bytes, &kept[number_below(word + 1, KEPT - 1)], 8);
		break;
	case '%':
		append_hidden(request, bytes, &files[file_of(word + 1)], sizeof(int));
		break;
	case 'n':
		name = function_of(word + 1);
		append_hidden(request, bytes, name, strlen(name) + 1);
		break;
	case '>':
	case '+':
		add_promise(request, word);
		break;
	default:
		request->size += append_bytes(bytes + request->size, PAGE - request->size, word);
	}
}

/* The part of the structure at @offset, at most @size bytes, which must be 4 at least. */
static size_t part(const struct request *request, unsigned long offset, size_t size)
{
	if (request->size < 4 || offset > request->size - 4)
		wrong("beyond the structure", "call");
	return size < request->size - offset ? size : request->size - offset;
}

static long adopt_returned(struct request *request, long result)
{
	unsigned int i;

	for (i = 0; i < request->nr_open; i++) {
		if (request->open[i].offset >= 0)
			continue;
		take(request->open[i].file, result);
		return 0;
	}
	return result;
}

static void keep_promises(struct request *request)
{
	unsigned int i;

	for (i = 0; i < request->nr_keep; i++) {
		uint64_t *place = &kept[request->keep[i].number];
		unsigned long offset = request->keep[i].offset;

		*place = 0;
		memcpy(place, request->bytes + offset, part(request, offset, sizeof(*place)));
	}
	for (i = 0; i < request->nr_open; i++) {
		long offset = request->open[i].offset;
		int fd;

		if (offset < 0)
			continue;
		memcpy(&fd, request->bytes + offset, part(request, offset, sizeof(fd)));
		take(request->open[i].file, fd);
		request->hidden[request->nr_hidden++] = (struct hidden){ offset, sizeof(fd) };
	}
}

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Makes the calls that were collected, and says how long that took, or which failed first. */
static void make_timed_calls(void)
{
	uint64_t start = now_ns(), turn;
	struct timed *one;

	for (turn = 0; turn < turns; turn++) {
		for (one = timed; one < timed + nr_timed; one++) {
			void *structure = (void *)(STRUCTURE + PAGE - one->size);

			memcpy(structure, one->bytes, one->size);
			if (ioctl(files[one->file], one->code, structure) < 0) {
				show(-1, NULL, 0);
				return;
			}
		}
	}
	show(now_ns() - start, NULL, 0);
}

static void call(unsigned int file, unsigned long code, char **words, unsigned int nr_words)
{
	static uint8_t bytes[PAGE];
	struct request request = {};
	unsigned int i;
	long result;
	int error;

	for (i = 0; i < nr_words; i++)
		add_word(&request, bytes, words[i]);
	if (to_be_timed) {
		timed[nr_timed] = (struct timed){
			.file = file, .code = code, .size = request.size,
		};
		memcpy(timed[nr_timed++].bytes, bytes, request.size);
		if (!--to_be_timed)
			make_timed_calls();
		return;
	}
	request.bytes = (uint8_t *)(STRUCTURE + PAGE - request.size);
	memcpy(request.bytes, bytes, request.size);
	result = ioctl(files[file], code, request.bytes);
	error = errno;
	if (result >= 0) {
		result = adopt_returned(&request, result);
		keep_promises(&request);
	}
	for (i = 0; i < request.nr_hidden; i++)
		memset(request.bytes + request.hidden[i].offset, 0xff, request.hidden[i].size);
	errno = error;
	show(result, request.bytes, request.size);
}

static void read_file(unsigned int file, uint64_t offset, size_t size)
{
	static uint8_t bytes[PAGE];
	long result = pread(files[file], bytes, size, offset);

	show(result, bytes, result > 0 ? result : 0);
}

static void write_file(unsigned int file, uint64_t offset, const char *word)
{
	static uint8_t bytes[PAGE];
	size_t size = append_bytes(bytes, PAGE, word ? word : "");

	show(pwrite(files[file], bytes, size, offset), NULL, 0);
}

static void wait_for(unsigned int file, uint64_t offset, uint32_t value)
{
	const struct timespec pause = { .tv_nsec = 100000 };
	uint32_t found = ~value;
	unsigned int tries;

	for (tries = 0; tries < WAIT_MS * 10; tries++) {
		if (pread(files[file], &found, sizeof(found), offset) < 0) {
			show(-1, NULL, 0);
			return;
		}
		if (found == value)
			break;
		nanosleep(&pause, NULL);
	}
	show(0, &found, sizeof(found));
}

static bool is_memory(uint64_t address, size_t size)
{
	return (address >= ARENA && address <= ARENA + ARENA_SIZE - size) ||
	       (address >= READABLE && address <= READABLE + READABLE_SIZE - size);
}

static void poke(uint64_t address, const char *word)
{
	static uint8_t bytes[PAGE];
	size_t size = append_bytes(bytes, PAGE, word ? word : "");

	if (!is_memory(address, size) || address >= READABLE)
		wrong("no memory that can be written", "poke");
	memcpy((void *)address, bytes, size);
	show(size, NULL, 0);
}

static void peek(uint64_t address, size_t size)
{
	if (!is_memory(address, size))
		wrong("no memory that can be read", "peek");
	show(size, (void *)address, size);
}

static void map_at(uint64_t address, size_t size, int protection)
{
	void *found = mmap((void *)address, size, protection,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (found != (void *)address)
		fail("memory");
}

static void make_large(size_t size)
{
	map_at(LARGE, size, PROT_READ | PROT_WRITE);
	large_size = size;
	/* a kernel without huge pages does as well */
	madvise((void *)LARGE, size, MADV_HUGEPAGE);
	memset((void *)LARGE, 1, size);
	show(0, NULL, 0);
}

static void play(char **words, unsigned int nr_words)
{
	const char *what = words[0], *second = nr_words > 2 ? words[2] : NULL;
	const char *third = nr_words > 3 ? words[3] : NULL, *first = nr_words > 1 ? words[1] : NULL;

	if (!strcmp(what, "history")) {
		begin();
		printf("history %s\n", first ? first : "");
	} else if (!strcmp(what, "open")) {
		show_opened(file_of(first), second ? open(second, O_RDWR | O_CLOEXEC) : -1);
	} else if (!strcmp(what, "cdev")) {
		show_opened(file_of(first), open_cdev(function_of(second)));
	} else if (!strcmp(what, "group")) {
		show_opened(file_of(first), open_group(function_of(second)));
	} else if (!strcmp(what, "memfd")) {
		make_memory(file_of(first), number(second));
	} else if (!strcmp(what, "close")) {
		take(file_of(first), -1);
		show(0, NULL, 0);
	} else if (!strcmp(what, "call") && nr_words > 2) {
		call(file_of(first), number(second), words + 3, nr_words - 3);
	} else if (!strcmp(what, "value")) {
		show(ioctl(files[file_of(first)], number(second), number(third)), NULL, 0);
	} else if (!strcmp(what, "read")) {
		read_file(file_of(first), number(second), number_below(third, PAGE));
	} else if (!strcmp(what, "write")) {
		write_file(file_of(first), number(second), third);
	} else if (!strcmp(what, "wait")) {
		wait_for(file_of(first), number(second), number_below(third, UINT32_MAX));
	} else if (!strcmp(what, "poke")) {
		poke(number(first), second);
	} else if (!strcmp(what, "peek")) {
		peek(number(first), number_below(second, PAGE));
	} else if (!strcmp(what, "large")) {
		make_large(number_below(first, 1ul << 40));
	} else if (!strcmp(what, "time")) {
		turns = number(first);
		to_be_timed = number_below(second, MOST_TIMED);
		nr_timed = 0;
	} else {
		wrong("no such call", what);
	}
}

int main(int argc, char **argv)
{
	char *line = NULL, *words[MOST_WORDS], *place, *word;
	unsigned int nr_words;
	size_t room = 0;

	if (argc < 2) {
		fprintf(stderr, "usage: pviommu_history ADDRESS... <HISTORIES\n");
		return WRONG;
	}
	functions = argv + 1;
	nr_functions = argc - 1;
	memset(files, 0xff, sizeof(files));
	map_at(ARENA, ARENA_SIZE, PROT_READ | PROT_WRITE);
	map_at(READABLE, READABLE_SIZE, PROT_READ);
	map_at(LOCKED, LOCKED_SIZE, PROT_NONE);
	map_at(STRUCTURE, PAGE, PROT_READ | PROT_WRITE);
	while (getline(&line, &room, stdin) > 0) {
		line_number++;
		nr_words = 0;
		for (word = strtok_r(line, BLANKS, &place); word && nr_words < MOST_WORDS;
		     word = strtok_r(NULL, BLANKS, &place))
			words[nr_words++] = word;
		if (nr_words)
			play(words, nr_words);
	}
	if (fflush(stdout) || ferror(stdin))
		fail("standard input or output");
	return 0;
}
