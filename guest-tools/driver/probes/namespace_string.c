// SPDX-License-Identifier: GPL-2.0-only
/* Names of symbol namespaces are string literals. */
#include <linux/module.h>

MODULE_IMPORT_NS("PVIOMMU_PROBE");
