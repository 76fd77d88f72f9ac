// SPDX-License-Identifier: MIT
/* What both kinds of address space share. */
#include <unistd.h>

#include "space.h"

int space_open(struct space *space, const struct space_ops *ops)
{
	*space = (struct space){ .ops = ops, .fd = -1 };
	return ops->open(space);
}

void space_close(struct space *space)
{
	if (space->fd >= 0)
		close(space->fd);
	space->fd = -1;
}

void attachment_close(struct attachment *attachment)
{
	if (attachment->device >= 0)
		close(attachment->device);
	if (attachment->group >= 0)
		close(attachment->group);
	attachment->device = -1;
	attachment->group = -1;
}
