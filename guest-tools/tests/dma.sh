# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# DMA through the kernel's DMA API, in the mode of this run, and on all CPUs at once.

dma_plan() {
	if [ "$mode" = passthrough ]; then
		echo "$engine_count"
	else
		echo $((2 * engine_count + 1))
	fi
}

dma_tests() {
	for engine in $engines; do
		if [ "$mode" = passthrough ]; then
			run_ktap "$debugfs/pv_dmatest/$engine" untranslated
			subtest "DMA API of $engine without translation" "$report"
		else
			run_ktap "$debugfs/pv_dmatest/$engine"
			subtest "DMA API of $engine" "$report"
			run_ktap "$debugfs/pv_dmatest/$engine" "$mode"
			subtest "DMA of $engine after unmap" "$report"
		fi
	done
	[ "$mode" = passthrough ] || storm
}

# The threads use all engines, whichever is asked.
storm() {
	suite=storm
	[ "$long" = 1 ] && suite=long-storm
	run_ktap "$debugfs/pv_dmatest/$(echo "$engines" | head -n 1)" "$suite"
	subtest "maps, DMA and unmaps on all CPUs at once" "$report"
}
