#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Measures an SMMUv3 that the kernel's own driver drives. Takes the place of /tests/main.sh. /lab/bench sets: registers, where the
# machine's own SMMU has its frame, or nothing if that is to be a PCI function; function, the PCI ID of a function behind it, as
# 0x1234:0x5059; operations, rounds.
#
# Lines to the host begin with "bench", as those of bench.sh: "fact NAME VALUE", "round N NAME=VALUE ...", "failed TEXT".

. /lab/bench

devices=/sys/bus/pci/devices
smmu_function=0x1234:0x505a
stream=8

fail() {
	dmesg | tail -n 20 >/dev/console
	echo "bench failed $*"
	exit 1
}

# find ID: the address of the function with this ID
find() {
	for each in "$devices"/*; do
		[ "$(cat "$each/vendor"):$(cat "$each/device")" != "$1" ] || basename "$each"
	done
}

device=$(find "$function")
sysfs=$devices/$device
[ -n "$device" ] || fail "there is no function $function"
modprobe pviommu_bench || fail "the module pviommu_bench does not load"
if [ -z "$registers" ]; then
	smmu=$(find "$smmu_function")
	[ -n "$smmu" ] || fail "there is no function $smmu_function"
	registers=$(head -n 1 "$devices/$smmu/resource" | cut -d ' ' -f 1)
	echo 1 >"$sysfs/remove"
	insmod /lib/modules-lab/pviommu_smmu_dt.ko endpoints="$device=$stream" || fail "the SMMU does not come into the device tree"
	echo 1 >/sys/bus/pci/rescan
fi
echo pviommu_bench >"$sysfs/driver_override"
echo "$device" >/sys/bus/pci/drivers_probe
[ -e "$sysfs/driver" ] || fail "pviommu_bench does not bind to $device"
insmod /lib/modules-lab/pviommu_smmu_bench.ko registers="$registers" device="$device" count="$operations" ||
	fail "the module pviommu_smmu_bench does not load"
echo "bench fact group_type $(cat "$sysfs/iommu_group/type")"
echo "bench fact iommu $(basename "$(readlink "$sysfs/iommu")")"

# The first measurement fills caches of addresses and tables.
round=0
while [ "$round" -le "$rounds" ]; do
	result=$(cat /sys/kernel/debug/pviommu_smmu_bench) || fail "pviommu_smmu_bench does not measure"
	echo "$operations 1 1" >/sys/kernel/debug/pviommu_bench/config || fail "pviommu_bench does not measure"
	[ "$round" = 0 ] || echo "bench round $round $result $(cat /sys/kernel/debug/pviommu_bench/result)"
	round=$((round + 1))
done
