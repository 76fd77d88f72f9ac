# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Drivers come and go: nothing leaks on either side, and DMA works again every time.

lifecycle_plan() {
	echo 5
}

lifecycle_tests() {
	cycles=20
	# each takes seconds where KASAN looks on
	[ "$long" = 1 ] && [ "$stage" != 2 ] && [ "$kernel" != lab-debug ] && cycles=100
	check "rmmod says that pviommu is busy" rmmod_is_busy
	check "$cycles times unbind, unload, load and bind, with DMA each time" cycle_drivers
	check "nothing leaked in $cycles cycles" same "$(cat /tmp/held.last)" "$(cat /tmp/held.first)"
	check "unbinding the PV-IOMMU first takes the engines' drivers along" unbind_in_wrong_order
	check "engines work after remove and rescan" remove_and_rescan
}

rmmod_is_busy() {
	rmmod pviommu_test || return 1
	said=$(rmmod pviommu 2>&1) && echo "rmmod succeeded" && return 1
	[ -d /sys/module/pviommu ] && echo "$said" | grep -Ei "busy|in use|temporarily unavailable"
}

cycle_drivers() {
	rm -f /tmp/held.first
	cycle=1
	while [ "$cycle" -le "$cycles" ]; do
		if ! { unload_all && load_all && dma_works; }; then
			echo "in cycle $cycle"
			return 1
		fi
		held >/tmp/held.last
		[ -e /tmp/held.first ] || cp /tmp/held.last /tmp/held.first
		cycle=$((cycle + 1))
	done
}

unbind_in_wrong_order() {
	echo "$iommu" >"$drivers/pviommu/unbind" || return 1
	for engine in $engines; do
		same "$engine $(driver_of "$engine")" "$engine " || return 1
		[ -z "$(group_of "$engine")" ] || { echo "$engine still has a group" && return 1; }
	done
	echo "$iommu" >"$drivers/pviommu/bind" || return 1
	for engine in $engines; do
		[ -n "$(driver_of "$engine")" ] || echo "$engine" >"$drivers/pviommu_dmatest/bind" || return 1
	done
	dma_works
}

# gone_and_back SUBJECT ENGINE: removes SUBJECT, which takes ENGINE along, and finds both again
gone_and_back() {
	held >/tmp/held.before
	echo 1 >"$devices/$1/remove" || return 1
	[ ! -e "$devices/$2" ] || { echo "$2 is still there" && return 1; }
	same "$(held | grep -E '^(bindings|endpoints) ')" \
		"$(awk '/^(bindings|endpoints) / { print $1, $2 - 1 }' /tmp/held.before)" || return 1
	echo 1 >/sys/bus/pci/rescan
	[ -e "$devices/$1" ] || { echo "$1 has not come back" && return 1; }
	dma_works && same "$(held)" "$(cat /tmp/held.before)"
}

remove_and_rescan() {
	for engine in $engines; do
		gone_and_back "$engine" "$engine" || return 1
	done
}
