#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The XOR endpoint, driven from user space:
#
#     pviommu lab run --topology xor --run guest-tools/programs/xor.sh
#
# Gives the first XOR endpoint of the machine to vfio-pci and runs pviommu_xor on it.

devices=/sys/bus/pci/devices

for module in vfio_iommu_type1 vfio_pci; do
	[ -d "/sys/module/$module" ] || modprobe "$module" || exit 1
done
echo Y >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts || exit 1
for device in "$devices"/*; do
	[ "$(cat "$device/vendor") $(cat "$device/device")" = "0x1234 0x5059" ] || continue
	echo vfio-pci >"$device/driver_override" || exit 1
	echo "${device##*/}" >/sys/bus/pci/drivers_probe || exit 1
	exec pviommu_xor "${device##*/}"
done
echo "there is no XOR endpoint: its topology is xor" >&2
exit 1
