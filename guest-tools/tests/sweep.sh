# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# A sweep of faults: one case after the other, each with a rule that the host loads. The guest does the same for each of
# them, and what a scenario asks of it must hold. Only the host knows how many cases there are.

sweep_plan() {
	echo 0
}

sweep_tests() {
	[ ! -e /sys/module/pviommu_test ] || rmmod pviommu_test
	faulty_suite=glance
	# an engine that stops costs every case so much
	engine_timeout_ms=2000
	unload_all && load_all && dma_works || return
	usage_held >/tmp/left.calm
	case_number=0
	while request case >/dev/null; do
		case_number=$((case_number + 1))
		before=$(log_lines)
		{
			sweep_case
			echo $? >/tmp/case-status
		} | while IFS= read -r line; do
			echo "  $line"
		done
		verdict "$(cat /tmp/case-status)" "case $case_number"
	done
	echo "1..$number"
}

# sweep_case: a report of its own, line by line, so that the host sees how far a guest came that does not come to the end
sweep_case() {
	number=0
	failures=0
	plan $(($(scenario_plan) + 4))
	scenario_tests
	check "the rule is taken away" request rules-unload
	check "without it everything works" calm_again
	check "nothing is left behind" within 5 is_as_before
	check "the kernel has nothing to complain about" sweep_is_quiet
	finish
}

is_as_before() {
	same "$(usage_held)" "$(cat /tmp/left.calm)"
}

# Of the kernel; that the driver gives a device up may be right.
sweep_is_quiet() {
	! log_since "$before" | grep -E "$complaints|: leak: "
}
