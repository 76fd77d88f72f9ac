/*
 * What programs find at paths: files of /dev are the server's, and the PCI devices and IOMMU groups of /sys are those
 * of the folder that the server has made beside its socket.
 *
 * A path is ours by its text, after "//", "." and ".." are taken out of it and what it is relative to is put before it;
 * links that lead to such a path are not followed. The C library calls some of its own functions directly, as glob()
 * and fts() do: these see the machine's.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "preload.h"

/* Numbers of devices: files.py has the same. */
#define IOMMU makedev(10, 125)
#define CONTAINER makedev(10, 196)
#define GROUP_MAJOR 240
#define DEVICE_MAJOR 241
#define MAX_ROOT 128 /* beside a socket, whose path has 107 bytes */

static char root[MAX_ROOT]; /* the folder; empty in a program that is not for us */
static size_t root_length;
static int has_devices; /* whether there is anything of /sys */
static int has_faults; /* whether programs may let requests fail */

/* The path of a file in the folder, or the path as it was given. */
struct place {
	const char *path;
	int is_device; /* of /dev */
	char text[MAX_ROOT + PATH_MAX];
};

void begin_paths(const char *socket)
{
	char sys[MAX_ROOT + sizeof("/sys/kernel/debug")];

	snprintf(root, sizeof(root), "%s.files", socket);
	root_length = strlen(root);
	snprintf(sys, sizeof(sys), "%s/sys", root);
	has_devices = !syscall(SYS_access, sys, F_OK);
	strcat(sys, "/kernel/debug");
	has_faults = !syscall(SYS_access, sys, F_OK);
}

static int begins(const char *path, const char *with)
{
	size_t length = strlen(with);

	return !strncmp(path, with, length) && (!path[length] || path[length] == '/');
}

/* Into a text of PATH_MAX bytes: the path without "//", "." and "..". Not more than 0 if it does not fit. */
static int append(char *text, size_t length, const char *path)
{
	while (*path) {
		size_t part = strcspn(path, "/");

		if (part == 2 && !strncmp(path, "..", 2)) {
			while (length && text[--length] != '/')
				;
		} else if (part && !(part == 1 && *path == '.')) {
			if (length + part + 2 > PATH_MAX)
				return 0;
			text[length++] = '/';
			memcpy(text + length, path, part);
			length += part;
		}
		path += part;
		path += strspn(path, "/");
	}
	text[length] = '\0';
	return 1;
}

/* The path from the root, by its text. */
static int absolute(int folder, const char *path, char *text)
{
	char link[32];
	ssize_t got;

	if (*path == '/')
		return append(text, 0, path);
	if (folder == AT_FDCWD) { /* the kernel's paths have nothing that is to be taken out */
		got = syscall(SYS_getcwd, text, PATH_MAX) - 1; /* with the end */
	} else {
		snprintf(link, sizeof(link), "/proc/self/fd/%d", folder);
		got = syscall(SYS_readlink, link, text, PATH_MAX - 1);
	}
	if (got < 1 || *text != '/')
		return 0;
	return append(text, got == 1 ? 0 : got, path);
}

/* The number of the device of a path of ours; 0: it has none. */
static dev_t number_of_path(const char *path)
{
	unsigned int number;
	char end;

	if (!strcmp(path, "/dev/iommu"))
		return IOMMU;
	if (!strcmp(path, "/dev/vfio/vfio"))
		return CONTAINER;
	if (sscanf(path, "/dev/vfio/%u%c", &number, &end) == 1)
		return makedev(GROUP_MAJOR, number);
	if (sscanf(path, "/dev/vfio/devices/vfio%u%c", &number, &end) == 1)
		return makedev(DEVICE_MAJOR, number);
	return 0;
}

/* Whether a path of /sys is of our devices. */
static int is_of_sys(const char *path)
{
	return begins(path, "/sys/bus/pci") || begins(path, "/sys/kernel/iommu_groups") ||
	       begins(path, "/sys/class/vfio-dev") || (has_faults && begins(path, "/sys/kernel/debug"));
}

/* Whether a path of /proc is of a process's number of places until a request fails; which ones, the server knows. */
static int is_fail_nth(const char *path)
{
	const char *name = strrchr(path, '/');

	return has_faults && begins(path, "/proc") && name && !strcmp(name, "/fail-nth");
}

static int exists(const char *path)
{
	return !syscall(SYS_access, path, F_OK);
}

/* Where a path leads. Leaves errno alone. */
static void find(int folder, const char *path, struct place *place)
{
	char *text = place->text + root_length, *inside = text;
	int before = errno, found;

	place->path = path;
	place->is_device = 0;
	if (!root_length || !path || !*path || !absolute(folder, path, text))
		goto end;
	if (!strncmp(text, root, root_length) && text[root_length] == '/')
		inside = text + root_length;
	place->is_device = begins(inside, "/dev/iommu") || begins(inside, "/dev/vfio") || is_fail_nth(inside);
	found = place->is_device || (has_devices && is_of_sys(inside));
	if (!found && !(has_devices && begins(inside, "/sys/devices")))
		goto end;
	if (inside == text)
		memcpy(place->text, root, root_length);
	else
		memmove(place->text, text, strlen(text) + 1);
	if (found || exists(place->text)) /* of /sys/devices only those of ours are in the folder */
		place->path = place->text;
end:
	errno = before;
}

/* What is given to the kernel is either what was asked for, or from the root on. */
static int is_folder(const char *path)
{
	struct stat found;

	return !syscall(SYS_newfstatat, AT_FDCWD, path, &found, 0) && S_ISDIR(found.st_mode);
}

/* Opening */

/* -2: it is none of the server's. */
static int open_device(const struct place *place, int flags)
{
	if (!place->is_device || is_folder(place->path))
		return -2;
	return open_ours(place->text + root_length, flags, number_of_path(place->text + root_length));
}

static int opens(int folder, const char *path, int flags, mode_t mode)
{
	struct place place;
	int fd;

	find(folder, path, &place);
	fd = open_device(&place, flags);
	return fd == -2 ? syscall(SYS_openat, folder, place.path, flags, mode) : fd;
}

static mode_t mode_of(int flags, va_list rest)
{
	return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPENS(name, folder, ...)                                                                                       \
	EXPORT int name(__VA_ARGS__, int flags, ...)                                                                   \
	{                                                                                                              \
		va_list rest;                                                                                          \
		mode_t mode;                                                                                           \
                                                                                                                       \
		va_start(rest, flags);                                                                                 \
		mode = mode_of(flags, rest);                                                                           \
		va_end(rest);                                                                                          \
		return opens(folder, path, flags, mode);                                                               \
	}

OPENS(openat, at, int at, const char *path)
OPENS(openat64, at, int at, const char *path)
OPENS(open, AT_FDCWD, const char *path)
OPENS(open64, AT_FDCWD, const char *path)

#define CREATES(name)                                                                                                  \
	EXPORT int name(const char *path, mode_t mode)                                                                 \
	{                                                                                                              \
		return opens(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);                                      \
	}

CREATES(creat)
CREATES(creat64)

/* What programs call that were compiled with _FORTIFY_SOURCE. */
#define OPENS_2(name, folder, ...)                                                                                     \
	EXPORT int name(__VA_ARGS__, int flags);                                                                       \
	EXPORT int name(__VA_ARGS__, int flags)                                                                        \
	{                                                                                                              \
		return opens(folder, path, flags, 0);                                                                  \
	}

OPENS_2(__open_2, AT_FDCWD, const char *path)
OPENS_2(__open64_2, AT_FDCWD, const char *path)
OPENS_2(__openat_2, at, int at, const char *path)
OPENS_2(__openat64_2, at, int at, const char *path)

/* As fopen() has it of its mode. */
static int flags_of(const char *mode)
{
	int access = strchr(mode, '+') ? O_RDWR : *mode == 'r' ? O_RDONLY : O_WRONLY;

	return access | (strchr(mode, 'e') ? O_CLOEXEC : 0);
}

#define FOPENS(name)                                                                                                   \
	EXPORT FILE *name(const char *path, const char *mode)                                                          \
	{                                                                                                              \
		struct place place;                                                                                    \
		int fd;                                                                                                \
                                                                                                                       \
		find(AT_FDCWD, path, &place);                                                                          \
		fd = open_device(&place, flags_of(mode));                                                              \
		if (fd == -2)                                                                                          \
			return REAL(name)(place.path, mode);                                                           \
		return fd < 0 ? NULL : fdopen(fd, mode);                                                               \
	}

FOPENS(fopen)
FOPENS(fopen64)

/* Looking */

/* Files of /dev are those of character devices. */
static int shown(const struct place *place, int answer, mode_t *mode, dev_t *device)
{
	if (!answer && place->is_device && S_ISREG(*mode)) {
		*mode = S_IFCHR | 0666;
		*device = number_of_path(place->text + root_length);
	}
	return answer;
}

/* Of an open file, which is a connection: without a number, what a request has opened, it is of no type. */
static int shown_open(int fd, int answer, mode_t *mode, dev_t *device)
{
	if (!answer && S_ISSOCK(*mode) && number_of(fd)) {
		*device = device_number_of(fd);
		*mode = *device ? S_IFCHR | 0666 : 0600;
	}
	return answer;
}

static int is_open_file(const char *path, int flags)
{
	return flags & AT_EMPTY_PATH && path && !*path;
}

static int stats(int folder, const char *path, struct stat *found, int flags)
{
	struct place place;

	if (is_open_file(path, flags))
		return shown_open(folder, syscall(SYS_newfstatat, folder, path, found, flags), &found->st_mode, &found->st_rdev);
	find(folder, path, &place);
	return shown(&place, syscall(SYS_newfstatat, folder, place.path, found, flags), &found->st_mode, &found->st_rdev);
}

EXPORT int fstat(int fd, struct stat *found)
{
	return stats(fd, "", found, AT_EMPTY_PATH);
}

EXPORT int fstat64(int fd, struct stat64 *found)
{
	return stats(fd, "", (struct stat *)found, AT_EMPTY_PATH);
}

EXPORT int __fxstat(int version, int fd, struct stat *found);
EXPORT int __fxstat(int version, int fd, struct stat *found)
{
	(void)version;
	return stats(fd, "", found, AT_EMPTY_PATH);
}

EXPORT int __fxstat64(int version, int fd, struct stat64 *found);
EXPORT int __fxstat64(int version, int fd, struct stat64 *found)
{
	(void)version;
	return stats(fd, "", (struct stat *)found, AT_EMPTY_PATH);
}

EXPORT int stat(const char *path, struct stat *found)
{
	return stats(AT_FDCWD, path, found, 0);
}

EXPORT int lstat(const char *path, struct stat *found)
{
	return stats(AT_FDCWD, path, found, AT_SYMLINK_NOFOLLOW);
}

EXPORT int fstatat(int folder, const char *path, struct stat *found, int flags)
{
	return stats(folder, path, found, flags);
}

/* On x86-64 the structures are the same. */
_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "stat");

EXPORT int stat64(const char *path, struct stat64 *found)
{
	return stats(AT_FDCWD, path, (struct stat *)found, 0);
}

EXPORT int lstat64(const char *path, struct stat64 *found)
{
	return stats(AT_FDCWD, path, (struct stat *)found, AT_SYMLINK_NOFOLLOW);
}

EXPORT int fstatat64(int folder, const char *path, struct stat64 *found, int flags)
{
	return stats(folder, path, (struct stat *)found, flags);
}

/* What programs call that were built with a glibc before 2.33. */
#define OLD_STATS(name, flags)                                                                                         \
	EXPORT int name(int version, const char *path, struct stat *found);                                            \
	EXPORT int name(int version, const char *path, struct stat *found)                                             \
	{                                                                                                              \
		(void)version;                                                                                         \
		return stats(AT_FDCWD, path, found, flags);                                                            \
	}

OLD_STATS(__xstat, 0)
OLD_STATS(__xstat64, 0)
OLD_STATS(__lxstat, AT_SYMLINK_NOFOLLOW)
OLD_STATS(__lxstat64, AT_SYMLINK_NOFOLLOW)

EXPORT int statx(int folder, const char *path, int flags, unsigned int mask, struct statx *found)
{
	struct place place;
	mode_t mode;
	dev_t device = 0;
	int answer, is_open = is_open_file(path, flags);

	find(folder, path, &place);
	answer = syscall(SYS_statx, folder, place.path, flags, mask, found);
	if (answer)
		return answer;
	mode = found->stx_mode;
	if (is_open)
		shown_open(folder, answer, &mode, &device);
	else
		shown(&place, answer, &mode, &device);
	if (mode != found->stx_mode) {
		found->stx_mode = mode;
		found->stx_rdev_major = major(device);
		found->stx_rdev_minor = minor(device);
	}
	return answer;
}

EXPORT int access(const char *path, int how)
{
	struct place place;

	find(AT_FDCWD, path, &place);
	return syscall(SYS_access, place.path, how);
}

EXPORT int faccessat(int folder, const char *path, int how, int flags)
{
	struct place place;

	find(folder, path, &place);
	return REAL(faccessat)(folder, place.path, how, flags);
}

static ssize_t reads_link(int folder, const char *path, char *buffer, size_t size)
{
	struct place place;

	find(folder, path, &place);
	return syscall(SYS_readlinkat, folder, place.path, buffer, size);
}

EXPORT ssize_t readlink(const char *path, char *buffer, size_t size)
{
	return reads_link(AT_FDCWD, path, buffer, size);
}

EXPORT ssize_t readlinkat(int folder, const char *path, char *buffer, size_t size)
{
	return reads_link(folder, path, buffer, size);
}

void __chk_fail(void) __attribute__((noreturn));

EXPORT ssize_t __readlink_chk(const char *path, char *buffer, size_t size, size_t room);
EXPORT ssize_t __readlink_chk(const char *path, char *buffer, size_t size, size_t room)
{
	if (size > room)
		__chk_fail();
	return reads_link(AT_FDCWD, path, buffer, size);
}

EXPORT ssize_t __readlinkat_chk(int folder, const char *path, char *buffer, size_t size, size_t room);
EXPORT ssize_t __readlinkat_chk(int folder, const char *path, char *buffer, size_t size, size_t room)
{
	if (size > room)
		__chk_fail();
	return reads_link(folder, path, buffer, size);
}

/* The path as a program has it: not that of the folder. */
static char *as_seen(char *path)
{
	if (path && root_length && !strncmp(path, root, root_length) && path[root_length] == '/')
		memmove(path, path + root_length, strlen(path + root_length) + 1);
	return path;
}

EXPORT char *realpath(const char *path, char *into)
{
	struct place place;

	find(AT_FDCWD, path, &place);
	return as_seen(REAL(realpath)(place.path, into));
}

EXPORT char *__realpath_chk(const char *path, char *into, size_t room);
EXPORT char *__realpath_chk(const char *path, char *into, size_t room)
{
	if (room < PATH_MAX)
		__chk_fail();
	return realpath(path, into);
}

EXPORT char *canonicalize_file_name(const char *path)
{
	return realpath(path, NULL);
}

EXPORT DIR *opendir(const char *path)
{
	struct place place;

	find(AT_FDCWD, path, &place);
	return REAL(opendir)(place.path);
}

#define SCANS(name, entry)                                                                                             \
	EXPORT int name(const char *path, struct entry ***names, int (*filter)(const struct entry *),                  \
			int (*compare)(const struct entry **, const struct entry **))                                  \
	{                                                                                                              \
		struct place place;                                                                                    \
                                                                                                                       \
		find(AT_FDCWD, path, &place);                                                                          \
		return REAL(name)(place.path, names, filter, compare);                                                 \
	}

SCANS(scandir, dirent)
SCANS(scandir64, dirent64)

EXPORT int chdir(const char *path)
{
	struct place place;

	find(AT_FDCWD, path, &place);
	return syscall(SYS_chdir, place.path);
}
