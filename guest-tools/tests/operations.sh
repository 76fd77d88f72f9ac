# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# What the device answers to raw operations, and where the faults go that the tests of these cause: to the kernel's
# tracepoint, the driver's event log and the kernel log, by interrupt.

tracing=/sys/kernel/tracing
# of the first fault and of the last one
first_fault=12345123
last_fault=12346000

operations_plan() {
	echo 6
}

operations_tests() {
	echo 1 >"$tracing/events/iommu/io_page_fault/enable"
	run_ktap "$debugfs/pviommu_test"
	subtest "operations of the PV-IOMMU" "$report"
	check "the io_page_fault tracepoint has recorded the faults" trace_has_faults
	check "the event log has the faults" event_log_has_faults
	check "lines of faults are rate-limited, and lost events are one line" faults_are_rate_limited
	check "events and completions came by interrupt" interrupts_came
	slow_doorbells
}

# Interrupts come while somebody is about to ring: each doorbell takes longer than two ticks of the timer.
slow_doorbells() {
	echo 15000 >/sys/module/pviommu/parameters/debug_doorbell_us
	run_ktap "$debugfs/pviommu_test" doorbell
	echo 0 >/sys/module/pviommu/parameters/debug_doorbell_us
	subtest "doorbells that take long" "$report"
}

trace_has_faults() {
	first=$(echo "$engines" | head -n 1)
	grep "io_page_fault.*$first iova=0x0*$first_fault flags=0x0001" "$tracing/trace" ||
		{ grep -v '^#' "$tracing/trace" | tail -n 20 && return 1; }
}

event_log_has_faults() {
	first=$(echo "$engines" | head -n 1)
	grep -E "^[0-9]+ not-mapped write [0-9]+ $first [0-9]+ 0x$last_fault\$" "$debugfs/pviommu/$iommu/events" ||
		{ cat "$debugfs/pviommu/$iommu/events" && return 1; }
}

# Thousands of requests are refused, of which the driver sees some hundreds. The kernel lets ten lines through in five
# seconds, and on a busy host this takes many.
faults_are_rate_limited() {
	lines=$(kernel_log | grep -c "DMA refused")
	seconds=$(sed 's/\..*//' /proc/uptime)
	{ [ "$lines" -gt 0 ] && [ "$lines" -le $((10 + 2 * seconds)) ]; } || { echo "$lines lines of faults" && return 1; }
	same "$(kernel_log | grep -cE "[0-9]+ events lost before event")" 1 || return 1
	[ "$(usage | sed -n 's/^events_lost //p')" -gt 1000 ] || { usage && return 1; }
}

# Without its interrupt a sleeping wait ends as well, but only when its time is up.
interrupts_came() {
	for name in pviommu-events pviommu-ring0; do
		awk -v name="$name" '
			$NF == name { for (cpu = 2; $cpu ~ /^[0-9]+$/; cpu++) taken += $cpu }
			END { exit !taken }' /proc/interrupts ||
			{ echo "no interrupt of $name" && return 1; }
	done
}
