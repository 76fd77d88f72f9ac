# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# DMA through the kernel's DMA API, in the mode of this run, and on all CPUs at once.

dma_plan() {
	case "$mode" in
	passthrough) echo "$engine_count" ;;
	strict) echo $((2 * engine_count + 3)) ;;
	*) echo $((2 * engine_count + 4)) ;;
	esac
}

dma_tests() {
	for engine in $engines; do
		if [ "$mode" = passthrough ]; then
			run_ktap "$debugfs/pviommu_dmatest/$engine" untranslated
			subtest "DMA API of $engine without translation" "$report"
		else
			run_ktap "$debugfs/pviommu_dmatest/$engine"
			subtest "DMA API of $engine" "$report"
			run_ktap "$debugfs/pviommu_dmatest/$engine" "$mode"
			subtest "DMA of $engine after unmap" "$report"
		fi
	done
	[ "$mode" = passthrough ] || storm
	[ "$mode" = passthrough ] || check "no doorbell of the storm was lost" same "$(count_of rescues /tmp/usage.storm)" 0
	[ "$mode" = passthrough ] || check "the device has heard each doorbell that the driver rang" within 5 doorbells_agree
	[ "$mode" != lazy ] || check "maps and unmaps do not leave the guest: at most one doorbell in 64 of them" rings_seldom
}

# The threads use all engines, whichever is asked.
storm() {
	its_suite=storm
	[ "$long" = 1 ] && its_suite=long-storm
	usage >/tmp/usage.calm
	run_ktap "$debugfs/pviommu_dmatest/$(echo "$engines" | head -n 1)" "$its_suite"
	usage >/tmp/usage.storm
	subtest "maps, DMA and unmaps on all CPUs at once" "$report"
}

# Since the storm began. The two counts are read one after the other, and something may be rung for between them.
doorbells_agree() {
	usage >/tmp/usage.after
	heard=$(($(count_of device_doorbells /tmp/usage.after) - $(count_of device_doorbells /tmp/usage.calm)))
	rung=$(($(count_of doorbells /tmp/usage.after) - $(count_of doorbells /tmp/usage.calm)))
	echo "$rung rung, $heard heard"
	[ "$rung" -gt 0 ] && [ "$rung" = "$heard" ]
}

# count_of NAME FILE
count_of() {
	awk -v name="$1" '$1 == name { print $2 }' "$2"
}

# By the driver's counts before and after the storm. Lazy unmaps are waited for many at a time, and posted maps never; in
# tables of the guest neither is sent, and only DMA that is in flight when they are flushed may be waited for by a command.
rings_seldom() {
	maps=$(sed -n 's/.* engines: \([0-9]*\) maps.*/\1/p' "$report")
	posted=$(($(count_of posted /tmp/usage.storm) - $(count_of posted /tmp/usage.calm)))
	doorbells=$(($(count_of doorbells /tmp/usage.storm) - $(count_of doorbells /tmp/usage.calm)))
	echo "$maps maps, $posted posted, $doorbells doorbells"
	has_tables && [ "$posted" -ne 0 ] && return 1
	has_tables || [ "$posted" -ge "$maps" ] || return 1
	[ "$maps" -ge 100 ] && [ $((doorbells * 64)) -le $((2 * maps)) ]
}
