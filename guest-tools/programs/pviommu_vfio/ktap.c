// SPDX-License-Identifier: MIT
/* A KTAP report on standard output. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ktap.h"

static unsigned int results, failures;

void ktap_plan(unsigned int tests)
{
	printf("KTAP version 1\n1..%u\n", tests);
	fflush(stdout);
}

void ktap_result(bool passed, const char *name)
{
	failures += !passed;
	printf("%s %u %s\n", passed ? "ok" : "not ok", ++results, name);
	/* a child that is forked later must not print it again */
	fflush(stdout);
}

unsigned int ktap_failures(void)
{
	return failures;
}

bool complain(const char *format, ...)
{
	va_list arguments;

	printf("# ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
	return false;
}

static const char *errno_name(int result)
{
	return result < 0 ? strerrorname_np(-result) : "success";
}

bool gives(const char *what, int got, int want)
{
	if (got == want)
		return true;
	return complain("%s: got %d (%s), expected %d (%s)", what, got, errno_name(got), want,
			errno_name(want));
}

bool same(const char *what, uint64_t got, uint64_t want)
{
	if (got == want)
		return true;
	return complain("%s: got %#" PRIx64 ", expected %#" PRIx64, what, got, want);
}
