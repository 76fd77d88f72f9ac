// SPDX-License-Identifier: GPL-2.0-only
/* Names of symbol namespaces are identifiers. */
#include <linux/module.h>

MODULE_IMPORT_NS(PVIOMMU_PROBE);
