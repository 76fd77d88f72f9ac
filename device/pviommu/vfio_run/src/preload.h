/* What the parts of the preloaded library share. */
#ifndef PRELOAD_H
#define PRELOAD_H

#define EXPORT __attribute__((visibility("default")))

/* A descriptor of a file of ours, or -1 with errno. */
int open_ours(const char *path, int flags);

/* Paths are ours from now on, if programs have that socket. */
void begin_paths(const char *socket);

#endif
