# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Devices whose driver was bound before the IOMMU's came, and the script that takes them over.

takeover_plan() {
	echo 5
}

takeover_tests() {
	check "a function whose driver came first stays untranslated" driver_came_first
	check "pviommu-takeover --dry-run names them and changes nothing" takeover_names
	check "pviommu-takeover has them translated" takeover_works
	check "pviommu-takeover finds nothing more to do" takeover_is_done
	check "pviommu-takeover refuses what it cannot take over" takeover_refuses
}

driver_came_first() {
	unload_all && insmod "$modules/pviommu_dmatest.ko" || return 1
	before=$(log_lines)
	insmod "$modules/pviommu.ko" profile="$profile" tables="$tables" || return 1
	for engine in $engines; do
		same "$engine $(driver_of "$engine")" "$engine pviommu_dmatest" || return 1
		[ ! -e "$devices/$engine/iommu_group" ] || { echo "$engine has a group" && return 1; }
		lines=$(log_since "$before" | grep -c "$engine: driver pviommu_dmatest was bound before the IOMMU came")
		same "$engine $lines" "$engine 1" || return 1
	done
}

takeover_names() {
	said=$(pviommu-takeover --dry-run) || { echo "$said" && return 1; }
	for engine in $engines; do
		echo "$said" | grep -q "^$engine: .*pviommu_dmatest" || { echo "$said" && return 1; }
		[ ! -e "$devices/$engine/iommu_group" ] || { echo "$engine has a group" && return 1; }
	done
}

takeover_works() {
	pviommu-takeover -v || return 1
	for engine in $engines; do
		same "$engine $(driver_of "$engine")" "$engine pviommu_dmatest" || return 1
	done
	dma_works
}

takeover_is_done() {
	same "$(pviommu-takeover)" "nothing to do: no device behind a PV-IOMMU is untranslated" || return 1
	for engine in $engines; do
		pviommu-takeover "$engine" || return 1
	done
}

takeover_refuses() {
	pviommu-takeover 0000:ff:1f.7 && return 1
	pviommu-takeover --no-such-option && return 1
	# the PV-IOMMU itself is not behind one
	pviommu-takeover "$iommu" && return 1
	dma_works
}
