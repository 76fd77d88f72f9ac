#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Measures DMA-API map + unmap with pviommu_bench.ko, behind whatever IOMMU this machine has. Takes the place of
# /tests/main.sh. /lab/bench sets: modules, options (their parameters), device, granules (pages of a map), threads,
# operations, rounds, warm_up, count_operations, witness (1: the kernel's own benchmark, too), vfio_mib (how much is
# mapped through VFIO; 0: nothing).
#
# Standard output and descriptor 3 are the channel to the host. Lines to the host begin with "bench":
#   fact NAME VALUE    something to note
#   round N ...        what pviommu_bench says of one round
#   witness ...        what the kernel's own benchmark says
#   vfio ...           what pviommu_vfiobench says
#   mark NAME          the guest waits until the host answers with a line
#   failed TEXT        no use going on

. /lab/bench

debugfs=/sys/kernel/debug/pviommu_bench
sysfs=/sys/bus/pci/devices/$device

fail() {
	echo "bench failed $*"
	exit 1
}

mark() {
	echo "bench mark $1"
	read -r answer <&3 || fail "the host closed the channel at $1"
}

# run OPERATIONS PAGES THREADS: leaves the result in $result
run() {
	echo "$*" >"$debugfs/config" || fail "pviommu_bench refuses $1 operations on $2 pages by $3 threads"
	result=$(cat "$debugfs/result") || fail "pviommu_bench does not measure $1 operations on $2 pages by $3 threads"
}

# bind DRIVER: the measured device gets this driver
bind() {
	[ ! -e "$sysfs/driver" ] || echo "$device" >"$sysfs/driver/unbind"
	echo "$1" >"$sysfs/driver_override"
	echo "$device" >/sys/bus/pci/drivers_probe
	[ -e "$sysfs/driver" ] || fail "$1 does not bind to $device"
}

for module in $modules; do
	# shellcheck disable=SC2086 # several parameters
	modprobe "$module" $options || fail "the module $module does not load with: ${options:-no parameters}"
done
modprobe pviommu_bench || fail "the module pviommu_bench does not load"
[ -d "$sysfs" ] || fail "there is no device $device"
bind pviommu_bench

if [ -e "$sysfs/iommu_group" ]; then
	echo "bench fact group_type $(cat "$sysfs/iommu_group/type")"
else
	echo "bench fact group_type none"
fi
iommu=$(readlink "$sysfs/iommu") && echo "bench fact iommu ${iommu##*/}"

if [ "$rounds" -gt 0 ]; then
	for granule in $granules; do
		run "$warm_up" "$granule" "$threads"
	done
	# Granules take turns, so that a host that grows slower or faster does not favour one.
	round=1
	while [ "$round" -le "$rounds" ]; do
		for granule in $granules; do
			run "$operations" "$granule" "$threads"
			echo "bench round $round $result"
		done
		round=$((round + 1))
	done
fi

if [ "$count_operations" -gt 0 ]; then
	mark count-begin
	mark count-empty
	run "$count_operations" "${granules%% *}" 1
	mark count-end
fi

if [ "$vfio_mib" -gt 0 ]; then
	parameters=/sys/module/vfio_iommu_type1/parameters
	for module in vfio_iommu_type1 vfio_pci; do
		modprobe "$module" || fail "the module $module does not load"
	done
	# The device does no DMA; how many maps a container may have is a limit of its own.
	echo Y >"$parameters/allow_unsafe_interrupts" && echo 4294967295 >"$parameters/dma_entry_limit" ||
		fail "vfio_iommu_type1 does not take its parameters"
	bind vfio-pci
	result=$(pviommu_vfiobench "$device" "$vfio_mib" 2>&1) || fail "$result"
	echo "bench vfio $result"
fi

if [ "$witness" = 1 ]; then
	bind dma_map_benchmark
	for granule in $granules; do
		result=$(pviommu_mapbench "$granule" "$threads" 1) || fail "pviommu_mapbench does not measure $granule pages"
		echo "bench witness $result"
	done
fi
