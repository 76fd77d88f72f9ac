# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Drivers come and go: nothing leaks on either side, and DMA works again every time.

lifecycle_plan() {
	if [ "$engine_count" -lt 2 ]; then
		echo 8
	else
		echo 9
	fi
}

lifecycle_tests() {
	[ -n "$cycles" ] || cycles=$(usual_cycles)
	check "rmmod says that pviommu is busy" rmmod_is_busy
	check "$cycles times unbind, unload, load and bind, with DMA each time" cycle_drivers
	check "nothing leaked in $cycles cycles" same "$(cat /tmp/held.last)" "$(cat /tmp/held.first)"
	check "unbinding the PV-IOMMU first takes the engines' drivers along" unbind_in_wrong_order
	check "engines work after remove and rescan" remove_and_rescan
	check "drivers that bind while the PV-IOMMU is unbound find it there or gone" bind_while_unbinding
	[ "$engine_count" -lt 2 ] || check "functions that are found while the PV-IOMMU is unbound do no harm" rescan_while_unbinding
	check "a reset behind the driver's back is one line, and nothing hangs" reset_behind
	check "engines that were there before the PV-IOMMU work behind it" iommu_found_last
}

# usual_cycles: each takes seconds where KASAN looks on
usual_cycles() {
	if [ "$long" = 1 ] && [ "$stage" != 2 ] && [ "$kernel" != lab-debug ]; then
		echo 100
	else
		echo 20
	fi
}

# bind_all: the PV-IOMMU's driver, then those of the engines; the driver core may be quicker for one that it has put off
bind_all() {
	echo "$iommu" >"$drivers/pviommu/bind" || return 1
	for engine in $engines; do
		has_driver "$engine" || echo "$engine" >"$drivers/pviommu_dmatest/bind" ||
			has_driver "$engine" || return 1
	done
}

# unbind_engines: those that have a driver
unbind_engines() {
	for engine in $engines; do
		! has_driver "$engine" || echo "$engine" >"$drivers/pviommu_dmatest/unbind"
	done
}

# beside COMMAND...: does it again and again in the background, until calm
beside() {
	rm -f /tmp/calm
	{
		while [ ! -e /tmp/calm ]; do
			"$@"
		done
	} >/dev/null 2>&1 &
	other=$!
}

calm() {
	touch /tmp/calm
	wait "$other"
}

bind_engines() {
	for engine in $engines; do
		echo "$engine" >"$drivers/pviommu_dmatest/bind"
	done
}

# unbind_beside: unbinds the PV-IOMMU while something else goes on beside it, and binds all again
unbind_beside() {
	echo "$iommu" >"$drivers/pviommu/unbind"
	calm
	unbind_engines
	bind_all
}

bind_while_unbinding() {
	before=$(log_lines)
	for _ in 1 2 3 4 5 6 7 8; do
		beside bind_engines
		unbind_beside || return 1
	done
	dma_works && is_quiet
}

# find_again ENGINE
find_again() {
	echo 1 >"$devices/$1/remove"
	echo 1 >/sys/bus/pci/rescan
}

rescan_while_unbinding() {
	before=$(log_lines)
	found=$(echo "$engines" | tail -n 1)
	for _ in 1 2 3 4 5 6 7 8; do
		beside find_again "$found"
		usleep 50000
		unbind_beside || return 1
	done
	dma_works && is_quiet
}

reset_behind() {
	before=$(log_lines)
	echo 1 >"$devices/$iommu/reset" || return 1
	same "$(log_since "$before" | grep -c "$iommu: the PV-IOMMU was reset: ")" 1 || return 1
	[ "$mode" = passthrough ] || suite_passes "$(echo "$engines" | head -n 1)" lost || return 1
	echo "$iommu" >"$drivers/pviommu/unbind" || return 1
	bind_all && dma_works && is_quiet
}

# The kernel shuts devices down in the reverse of the order in which they came, but for links between them.
iommu_found_last() {
	before=$(log_lines)
	echo 1 >"$devices/$iommu/remove" || return 1
	for engine in $engines; do
		same "$engine $(driver_of "$engine")" "$engine " || return 1
	done
	echo 1 >/sys/bus/pci/rescan
	[ -e "$devices/$iommu" ] || { echo "$iommu has not come back" && return 1; }
	has_driver "$iommu" || echo "$iommu" >"$drivers/pviommu/bind" || return 1
	bind_engines 2>/dev/null
	dma_works && is_quiet
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
		[ ! -e "$devices/$engine/iommu_group" ] || { echo "$engine still has a group" && return 1; }
	done
	echo "$iommu" >"$drivers/pviommu/bind" || return 1
	for engine in $engines; do
		has_driver "$engine" || echo "$engine" >"$drivers/pviommu_dmatest/bind" || return 1
	done
	dma_works
}

# gone_and_back SUBJECT ENGINE: removes SUBJECT, which takes ENGINE along, and finds both again
gone_and_back() {
	usage_held >/tmp/held.before
	echo 1 >"$devices/$1/remove" || return 1
	[ ! -e "$devices/$2" ] || { echo "$2 is still there" && return 1; }
	same "$(usage | grep -E '^(bindings|endpoints) ')" \
		"$(awk '/^(bindings|endpoints) / { print $1, $2 - 1 }' /tmp/held.before)" || return 1
	echo 1 >/sys/bus/pci/rescan
	[ -e "$devices/$1" ] || { echo "$1 has not come back" && return 1; }
	dma_works && same "$(usage_held)" "$(cat /tmp/held.before)"
}

remove_and_rescan() {
	for engine in $engines; do
		gone_and_back "$engine" "$engine" || return 1
	done
}
