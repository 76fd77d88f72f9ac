// SPDX-License-Identifier: MIT
/*
 * pviommu_kexec KERNEL INITRD CMDLINE: starts another kernel in place of the running one, without
 * the firmware. Drivers see their shutdown, and nothing else resets the devices, so that their next
 * drivers find them like this.
 *
 * Does not return. Exit status otherwise: 2 for wrong arguments, 1 if a file or the kernel refuses.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REFUSED = 1, USAGE = 2 };

static int complain(const char *what, const char *which, int error)
{
	const char *name = strerrorname_np(error);

	fprintf(stderr, "pviommu_kexec: %s %s: %s (%s)\n", what, which,
		name ? name : "unknown errno", strerror(error));
	return -1;
}

/* A descriptor of a regular file; the kernel would wait for ever at the end of a pipe. */
static int open_file(const char *role, const char *path)
{
	struct stat status;
	int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (file < 0)
		return complain(role, path, errno);
	if (fstat(file, &status) < 0) {
		complain(role, path, errno);
		close(file);
		return -1;
	}
	if (!S_ISREG(status.st_mode)) {
		fprintf(stderr, "pviommu_kexec: %s %s: not a regular file\n", role, path);
		close(file);
		return -1;
	}
	return file;
}

int main(int argc, char **argv)
{
	int kernel, initrd;

	if (argc != 4) {
		fprintf(stderr, "usage: pviommu_kexec KERNEL INITRD CMDLINE\n");
		return USAGE;
	}
	kernel = open_file("kernel", argv[1]);
	if (kernel < 0)
		return REFUSED;
	initrd = open_file("initrd", argv[2]);
	if (initrd < 0)
		return REFUSED;

	/* the length counts the terminating zero */
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[3]) + 1, argv[3], 0UL) < 0) {
		complain("kexec_file_load of", argv[1], errno);
		return REFUSED;
	}
	sync();
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
	complain("reboot into", argv[1], errno);
	return REFUSED;
}
