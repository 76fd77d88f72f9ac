# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The PCI functions of the tests, and what is done with them through sysfs.

modules=/lib/modules-lab
debugfs=/sys/kernel/debug
devices=/sys/bus/pci/devices
drivers=/sys/bus/pci/drivers

vendor=0x1234
iommu_id=0x5056
engine_id=0x5057

# functions DEVICE_ID: addresses of all functions with that id, one a line
functions() {
	for folder in "$devices"/*; do
		if [ "$(cat "$folder/vendor")" = "$vendor" ] && [ "$(cat "$folder/device")" = "$1" ]; then
			echo "${folder##*/}"
		fi
	done
}

# port_of ADDRESS: address of the bridge that it is behind, nothing on a root bus
port_of() {
	above=$(readlink -f "$devices/$1/..")
	above=${above##*/}
	[ -e "$devices/$above" ] && echo "$above"
}

# driver_of ADDRESS: name of its driver, nothing if it has none
driver_of() {
	[ -e "$devices/$1/driver" ] && basename "$(readlink "$devices/$1/driver")"
}

# group_of ADDRESS: folder of its IOMMU group, nothing if it has none
group_of() {
	[ -e "$devices/$1/iommu_group" ] && readlink -f "$devices/$1/iommu_group"
}

# type_of ADDRESS: type of its group
type_of() {
	cat "$devices/$1/iommu_group/type"
}

# type_of_mode: what the type of groups is in the mode of this run
type_of_mode() {
	case "$mode" in
	lazy) echo DMA-FQ ;;
	strict) echo DMA ;;
	passthrough) echo identity ;;
	esac
}

# usage: what is in use on both sides
usage() {
	cat "$debugfs/pviommu/$iommu/usage"
}

# held: the part of it that is given back with time; the rest counts what has happened
held() {
	usage | grep -vE "^(events_lost|rings|posted|waited|doorbells|rescues|device_doorbells) "
}

# run_ktap FOLDER [SUITE]: runs the tests of a module, or a suite of them; the report is in $report
report=/tmp/report
run_ktap() {
	: >"$report"
	echo "${2:-all}" >"$1/run" && cat "$1/ktap" >"$report"
}

# suite_passes ENGINE SUITE
suite_passes() {
	run_ktap "$debugfs/pviommu_dmatest/$1" "$2" || return 1
	grep -q '^1\.\.[1-9]' "$report" && ! grep -q '^not ok' "$report" && return 0
	cat "$report"
	return 1
}

# dma_works: one short test of each engine through the DMA API, in a group of the type of this run
dma_works() {
	for engine in $engines; do
		[ -n "$(group_of "$engine")" ] || { echo "$engine has no group" && return 1; }
		same "$engine $(type_of "$engine")" "$engine $(type_of_mode)" || return 1
		engine_works "$engine" || return 1
	done
}

# engine_works ENGINE: the same for one, whatever the type of its group
engine_works() {
	if [ "$(type_of "$1")" = identity ]; then
		suite_passes "$1" untranslated
	else
		suite_passes "$1" quick
	fi
}

unload_all() {
	for engine in $engines; do
		[ -z "$(driver_of "$engine")" ] || echo "$engine" >"$drivers/pviommu_dmatest/unbind" || return 1
	done
	[ -z "$(driver_of "$iommu")" ] || echo "$iommu" >"$drivers/pviommu/unbind" || return 1
	rmmod pviommu_dmatest && rmmod pviommu
}

# load_all [PROFILE]
load_all() {
	insmod "$modules/pviommu.ko" profile="${1:-$profile}" && insmod "$modules/pviommu_dmatest.ko"
}
