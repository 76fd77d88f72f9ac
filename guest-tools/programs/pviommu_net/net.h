/* SPDX-License-Identifier: MIT */
/* Traffic whose every byte is checked, and what else a network card is asked for. */
#ifndef PVIOMMU_NET_H
#define PVIOMMU_NET_H

#include <stddef.h>
#include <stdint.h>

enum { DONE = 0, FAILED = 1, USAGE = 2 };

#define LIMIT_SECONDS	60	/* without any progress, before a transfer is given up */

#define COUNT_OF(array)	(sizeof(array) / sizeof((array)[0]))

/*
 * Writes what has gone wrong, with errno's text if it is not 0, to standard error. Returns FAILED.
 */
int failed(const char *what);

/* The bytes from @offset on of the stream that @seed names; whether @data has these. */
void fill(uint8_t *data, size_t length, uint64_t seed, uint64_t offset);
int is_filled(const uint8_t *data, size_t length, uint64_t seed, uint64_t offset);

/* Monotonic time in seconds. */
double now(void);

/* Each takes the words that follow its name, and returns a status; USAGE: they are wrong. */
int serve(int count, char **words);
int tcp(int count, char **words);
int udp(int count, char **words);
int capture(int count, char **words);
int raw(int count, char **words);
int show(int count, char **words);
int statistics(int count, char **words);
int feature(int count, char **words);
int channels(int count, char **words);
int xdp(int count, char **words);

#endif
