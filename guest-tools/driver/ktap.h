/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tests in a module that report KTAP through debugfs, for kernels without KUnit: writing the name
 * of a suite to the file "run" runs it, reading "ktap" gives the last report.
 */
#ifndef _KTAP_H
#define _KTAP_H

#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define KTAP_SIZE	(128 * 1024)
#define KTAP_SUITE	32	/* bytes of a suite's name, with the terminating zero */

/**
 * struct ktap - a report
 * @lock: one run at a time, and no reader during it
 * @text: the report
 * @length: its length; what does not fit is cut off, so that result lines are missing
 * @suite: the requested suite, by the module's name for it
 * @failed: whether the current case has failed
 * @failures: cases that failed
 * @run: runs the suite and fills this report; 0 or a negative errno
 * @context: argument of @run
 */
struct ktap {
	struct mutex lock;	/* one run */
	char *text;
	size_t length;
	char suite[KTAP_SUITE];
	bool failed;
	unsigned int failures;
	int (*run)(struct ktap *ktap);
	void *context;
};

/**
 * struct ktap_case - one test
 * @name: its name: what it shows
 * @run: does it, and reports with EXPECT_* what is wrong
 * @param: for tests that come in several sizes
 */
struct ktap_case {
	const char *name;
	void (*run)(struct ktap *ktap, void *subject, unsigned long param);
	unsigned long param;
};

static __printf(2, 3) __maybe_unused
void ktap_print(struct ktap *ktap, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	ktap->length += vscnprintf(ktap->text + ktap->length, KTAP_SIZE - ktap->length, format,
				   args);
	va_end(args);
}

static __maybe_unused
bool ktap_expect(struct ktap *ktap, bool holds, const char *what, int line)
{
	if (holds)
		return true;
	ktap_print(ktap, "# line %d: expected %s\n", line, what);
	ktap->failed = true;
	return false;
}

static __maybe_unused
bool ktap_expect_eq(struct ktap *ktap, const char *what, s64 got, s64 want, int line)
{
	if (got == want)
		return true;
	ktap_print(ktap, "# line %d: %s is %lld (%#llx), expected %lld (%#llx)\n", line, what,
		   got, got, want, want);
	ktap->failed = true;
	return false;
}

/* Both are true when the expectation holds, so that a test can end early when it does not. */
#define EXPECT(ktap, condition) ktap_expect(ktap, condition, #condition, __LINE__)
#define EXPECT_EQ(ktap, got, want) \
	ktap_expect_eq(ktap, #got, (s64)(got), (s64)(want), __LINE__)

static __maybe_unused
void ktap_cases(struct ktap *ktap, const struct ktap_case *cases, unsigned int count,
		unsigned int first, void *subject)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		ktap->failed = false;
		cases[i].run(ktap, subject, cases[i].param);
		ktap->failures += ktap->failed;
		ktap_print(ktap, "%s %u %s\n", ktap->failed ? "not ok" : "ok", first + i,
			   cases[i].name);
		cond_resched();
	}
}

static ssize_t ktap_run_write(struct file *file, const char __user *data, size_t size,
			      loff_t *pos)
{
	struct ktap *ktap = file->private_data;
	char name[KTAP_SUITE] = {};
	int ret;

	if (size >= sizeof(name))
		return -EINVAL;
	if (copy_from_user(name, data, size))
		return -EFAULT;
	mutex_lock(&ktap->lock);
	strscpy(ktap->suite, strim(name), sizeof(ktap->suite));
	ktap->length = 0;
	ktap->failures = 0;
	ret = ktap->run(ktap);
	mutex_unlock(&ktap->lock);
	return ret ?: size;
}

static ssize_t ktap_text_read(struct file *file, char __user *data, size_t size, loff_t *pos)
{
	struct ktap *ktap = file->private_data;
	ssize_t ret;

	mutex_lock(&ktap->lock);
	ret = simple_read_from_buffer(data, size, pos, ktap->text, ktap->length);
	mutex_unlock(&ktap->lock);
	return ret;
}

static const struct file_operations ktap_run_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = ktap_run_write,
};

static const struct file_operations ktap_text_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = ktap_text_read,
};

static __maybe_unused
int ktap_init(struct ktap *ktap, int (*run)(struct ktap *ktap), void *context)
{
	mutex_init(&ktap->lock);
	ktap->length = 0;
	ktap->run = run;
	ktap->context = context;
	ktap->text = vmalloc(KTAP_SIZE);
	return ktap->text ? 0 : -ENOMEM;
}

static __maybe_unused
void ktap_files(struct ktap *ktap, struct dentry *folder)
{
	debugfs_create_file("run", 0200, folder, ktap, &ktap_run_fops);
	debugfs_create_file("ktap", 0400, folder, ktap, &ktap_text_fops);
}

static __maybe_unused
void ktap_free(struct ktap *ktap)
{
	vfree(ktap->text);
}

#endif /* _KTAP_H */
