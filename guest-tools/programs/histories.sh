#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Plays histories of system calls on this kernel's iommufd and VFIO (tests/histories):
#
#     pviommu lab run --kernel lab --add FILE/histories --run guest-tools/programs/histories.sh
#
# Gives the DMA test engines to vfio-pci and has pviommu_history play the file "histories" on the first two.

devices=/sys/bus/pci/devices

for module in vfio_iommu_type1 iommufd vfio_pci; do
	[ -d "/sys/module/$module" ] || modprobe "$module" || exit 1
done
for module in vfio_iommu_type1 iommufd; do
	echo Y >"/sys/module/$module/parameters/allow_unsafe_interrupts" || exit 1
done
for engine in $LAB_ENGINES; do
	echo "$engine" >"$devices/$engine/driver/unbind" || exit 1
	echo vfio-pci >"$devices/$engine/driver_override" || exit 1
	echo "$engine" >/sys/bus/pci/drivers_probe || exit 1
done
# shellcheck disable=SC2086 # one word an engine
set -- $LAB_ENGINES
exec pviommu_history "$1" "$2" <histories
