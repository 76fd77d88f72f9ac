# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# An engine behind a PCIe root port: another bus, and a bridge above that is none of the IOMMU's. The lab's machine puts
# every second engine behind a port of its own.

ports_plan() {
	if [ "$engine_count" -lt 2 ]; then
		echo 0
	elif [ "$mode" = passthrough ]; then
		echo 2
	else
		echo 3
	fi
}

ports_tests() {
	[ "$engine_count" -ge 2 ] || return
	find_port
	check "an engine behind a root port is in its group alone" port_is_apart
	[ "$mode" = passthrough ] || check "its faults carry its bus" faults_name_the_bus
	check "it works after its port is removed and found again" gone_and_back "$port" "$below"
}

find_port() {
	port=none
	below=none
	for engine in $engines; do
		[ -n "$(port_of "$engine")" ] && below=$engine && port=$(port_of "$engine")
	done
}

port_is_apart() {
	[ "$below" != none ] || { echo "no engine is behind a root port" && return 1; }
	case "$below" in
	0000:00:*) echo "$below is on the root bus" && return 1 ;;
	esac
	[ ! -e "$devices/$port/iommu_group" ] || { echo "the port has a group" && return 1; }
	same "$(ls "$(group_of "$below")/devices")" "$below" && engine_works "$below"
}

faults_name_the_bus() {
	suite_passes "$below" "$mode" || return 1
	tail -n 1 "$debugfs/pviommu/$iommu/events" | grep -E "^[0-9]+ not-mapped (read|write) [0-9]+ $below "
}
