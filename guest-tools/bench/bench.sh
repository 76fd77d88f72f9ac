#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Measures DMA-API map + unmap of one page with pv_bench.ko, behind whatever IOMMU this machine has. Takes the place of
# /tests/main.sh. /lab/bench sets: modules, device, operations, rounds, warm_up, count_operations.
#
# Standard output and descriptor 3 are the channel to the host. Lines to the host begin with "bench":
#   fact NAME VALUE    something to note
#   round N ...        what pv_bench says of one round
#   mark NAME          the guest waits until the host answers with a line
#   failed TEXT        no use going on

. /lab/bench

debugfs=/sys/kernel/debug/pv_bench
sysfs=/sys/bus/pci/devices/$device

fail() {
	echo "bench failed $*"
	exit 1
}

mark() {
	echo "bench mark $1"
	read -r answer <&3 || fail "the host closed the channel at $1"
}

# run OPERATIONS: leaves the result in $result
run() {
	echo "$1" >"$debugfs/config" || fail "pv_bench refuses $1 operations"
	result=$(cat "$debugfs/result") || fail "pv_bench does not measure $1 operations"
}

for module in $modules pv_bench; do
	modprobe "$module" || fail "the module $module does not load"
done
[ -d "$sysfs" ] || fail "there is no device $device"
echo pv_bench >"$sysfs/driver_override"
echo "$device" >/sys/bus/pci/drivers_probe
[ -e "$sysfs/driver" ] || fail "pv_bench does not bind to $device"

if [ -e "$sysfs/iommu_group" ]; then
	echo "bench fact group_type $(cat "$sysfs/iommu_group/type")"
else
	echo "bench fact group_type none"
fi
iommu=$(readlink "$sysfs/iommu") && echo "bench fact iommu ${iommu##*/}"

if [ "$rounds" -gt 0 ]; then
	run "$warm_up"
	round=1
	while [ "$round" -le "$rounds" ]; do
		run "$operations"
		echo "bench round $round $result"
		round=$((round + 1))
	done
fi

if [ "$count_operations" -gt 0 ]; then
	mark count-begin
	mark count-empty
	run "$count_operations"
	mark count-end
fi
