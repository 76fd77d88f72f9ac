# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Drivers come and go: nothing leaks on either side, and DMA works again every time.

cycles=20

lifecycle_tests() {
	check "rmmod says that pv_iommu is busy" rmmod_is_busy
	check "$cycles times unbind, unload, load and bind, with DMA each time" cycle_drivers
	check "nothing leaked in $cycles cycles" same "$(cat /tmp/usage.last)" "$(cat /tmp/usage.first)"
	check "unbinding the PV-IOMMU first takes the engines' drivers along" unbind_in_wrong_order
	check "engines work after remove and rescan" remove_and_rescan
	check "a function whose driver came first stays untranslated" driver_came_first
}

rmmod_is_busy() {
	rmmod pv_iommu_test || return 1
	said=$(rmmod pv_iommu 2>&1) && echo "rmmod succeeded" && return 1
	[ -d /sys/module/pv_iommu ] && echo "$said" | grep -Ei "busy|in use|temporarily unavailable"
}

# dma_works: one short test of each engine through the DMA API
dma_works() {
	for engine in $engines; do
		read -r type <"$devices/$engine/iommu_group/type" || { echo "$engine has no group" && return 1; }
		[ "$type" = DMA ] || { echo "the group of $engine is of type $type" && return 1; }
		echo quick >"$debugfs/pv_dmatest/$engine/run" || return 1
		quick=$(cat "$debugfs/pv_dmatest/$engine/ktap")
		case "$quick" in
		*"not ok "* | "") echo "$quick" && return 1 ;;
		esac
	done
}

unload_all() {
	for engine in $engines; do
		echo "$engine" >"$drivers/pv_dmatest/unbind" || return 1
	done
	echo "$iommu" >"$drivers/pv_iommu/unbind" || return 1
	rmmod pv_dmatest && rmmod pv_iommu
}

load_all() {
	insmod "$modules/pv_iommu.ko" && insmod "$modules/pv_dmatest.ko"
}

cycle_drivers() {
	rm -f /tmp/usage.first
	cycle=1
	while [ "$cycle" -le "$cycles" ]; do
		if ! { unload_all && load_all && dma_works; }; then
			echo "in cycle $cycle"
			return 1
		fi
		usage >/tmp/usage.last
		[ -e /tmp/usage.first ] || cp /tmp/usage.last /tmp/usage.first
		cycle=$((cycle + 1))
	done
}

unbind_in_wrong_order() {
	echo "$iommu" >"$drivers/pv_iommu/unbind" || return 1
	for engine in $engines; do
		same "$engine $(driver_of "$engine")" "$engine " || return 1
		[ -z "$(group_of "$engine")" ] || { echo "$engine still has a group" && return 1; }
	done
	echo "$iommu" >"$drivers/pv_iommu/bind" || return 1
	for engine in $engines; do
		[ -n "$(driver_of "$engine")" ] || echo "$engine" >"$drivers/pv_dmatest/bind" || return 1
	done
	dma_works
}

remove_and_rescan() {
	usage >/tmp/usage.before
	for engine in $engines; do
		echo 1 >"$devices/$engine/remove" || return 1
		[ ! -e "$devices/$engine" ] || return 1
		same "$(usage | grep -E '^(bindings|endpoints) ' | sort -u)" \
			"$(grep -E '^(bindings|endpoints) ' /tmp/usage.before | awk '{ print $1, $2 - 1 }')" || return 1
		echo 1 >/sys/bus/pci/rescan
		dma_works || return 1
	done
	same "$(usage)" "$(cat /tmp/usage.before)"
}

driver_came_first() {
	unload_all && insmod "$modules/pv_dmatest.ko" && insmod "$modules/pv_iommu.ko" || return 1
	for engine in $engines; do
		same "$engine $(driver_of "$engine")" "$engine pv_dmatest" || return 1
		[ -z "$(group_of "$engine")" ] || { echo "$engine has a group" && return 1; }
		lines=$(dmesg | grep -c "$engine: driver pv_dmatest was bound before the IOMMU came")
		same "$engine $lines" "$engine 1" || return 1
	done
	unload_all && load_all && dma_works
}

kernel_is_content() {
	! dmesg | grep -E "WARNING:|BUG:|Oops|Call Trace|leak: |is given up|pv_[a-z]+ .*failed: -E"
}
