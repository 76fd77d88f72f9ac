/* SPDX-License-Identifier: GPL-2.0-only */
/* Symbol namespaces, for kernels that use an identifier and those that use a string literal. */
#ifndef _PVIOMMU_NAMESPACE_H
#define _PVIOMMU_NAMESPACE_H

#include <linux/export.h>
#include <linux/module.h>

#ifdef PVIOMMU_NAMESPACE_IS_STRING
#define PVIOMMU_EXPORT(symbol, namespace)	EXPORT_SYMBOL_NS_GPL(symbol, #namespace)
#define PVIOMMU_IMPORT(namespace)		MODULE_IMPORT_NS(#namespace)
#else
#define PVIOMMU_EXPORT(symbol, namespace)	EXPORT_SYMBOL_NS_GPL(symbol, namespace)
#define PVIOMMU_IMPORT(namespace)		MODULE_IMPORT_NS(namespace)
#endif

#endif /* _PVIOMMU_NAMESPACE_H */
