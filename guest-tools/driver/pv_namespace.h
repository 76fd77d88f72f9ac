/* SPDX-License-Identifier: GPL-2.0-only */
/* Symbol namespaces, for kernels that take an identifier and those that take a string literal. */
#ifndef _PV_NAMESPACE_H
#define _PV_NAMESPACE_H

#include <linux/export.h>
#include <linux/module.h>

#ifdef PV_NAMESPACE_IS_STRING
#define PV_EXPORT(symbol, namespace)	EXPORT_SYMBOL_NS_GPL(symbol, #namespace)
#define PV_IMPORT(namespace)		MODULE_IMPORT_NS(#namespace)
#else
#define PV_EXPORT(symbol, namespace)	EXPORT_SYMBOL_NS_GPL(symbol, namespace)
#define PV_IMPORT(namespace)		MODULE_IMPORT_NS(namespace)
#endif

#endif /* _PV_NAMESPACE_H */
