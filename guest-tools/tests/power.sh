# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The machine is not suspended behind the device's back.

power_plan() {
	if can_suspend; then
		echo 1
	else
		echo 0
	fi
}

power_tests() {
	can_suspend && check "suspend is refused, and DMA works afterwards" suspend_is_refused
}

# Every kernel of the lab's own can; of another one it depends on how it was built.
can_suspend() {
	[ "$kernel" != own ] || grep -qw freeze /sys/power/state 2>/dev/null
}

suspend_is_refused() {
	before=$(log_lines)
	said=$(sh -c 'echo freeze >/sys/power/state' 2>&1) && echo "the machine was suspended" && return 1
	echo "$said" | grep -Ei "busy|not supported|not permitted|invalid" || { echo "$said" && return 1; }
	same "$(log_since "$before" | grep -c "pviommu $iommu: .*suspend")" 1 || { log_since "$before" && return 1; }
	dma_works
}
