# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# A scenario of faults: the host loads its rules, the guest works while they act, and looks at the page where the device
# counts what each of them did. What goes wrong while a rule acts that no correct IOMMU has is expected to (XFAIL). Rules may
# be about maps and unmaps, so tables are the device's meanwhile, unless the run was asked for others.

rules=/lab/rules
counts=/tmp/rule-counts
faulty_cycles=3
faulty_was_played=0
faulty_suite=faulty
adversarial_acted=0

# rule_counts: what the device has counted: a line "rule HASH PASSED FIRED CLASS" for each. A rule may have cost the
# PV-IOMMU its driver, and is to be blamed for that all the same.
rule_counts() {
	if [ -e "$debugfs/pviommu/$iommu/fault_rules" ]; then
		within 1 cat "$debugfs/pviommu/$iommu/fault_rules"
	else
		pviommu_faultrules "$iommu"
	fi
}

# Rules that are there since the boot were loaded by the host, which ends the run if it cannot.
rules_on_plan() {
	if [ "$scenario_from" = boot ]; then
		echo 0
	elif sends_for_rules; then
		echo 2
	else
		echo 1
	fi
}

# sends_for_rules: whether the driver is loaded anew for them, after other tests
sends_for_rules() {
	[ "$scenario_alone" = 0 ] && [ -z "$program$suite" ] && has_tables
}

rules_on_tests() {
	usual_tables=$tables
	! sends_for_rules || send_maps "the driver sends maps, so that rules can be about them"
	[ "$scenario_from" = boot ] || check "the rules of $scenario are loaded" request rules-load
}

scenario_plan() {
	echo $((2 * engine_count + 1))
}

scenario_tests() {
	[ ! -e /sys/module/pviommu_test ] || rmmod pviommu_test
	faulty_was_played=1
	for engine in $engines; do
		faulty "$engine" "DMA of $engine while rules act"
	done
	check_faulty "the drivers go and come while rules act" faulty_cycle
	for engine in $engines; do
		faulty "$engine" "DMA of $engine that has come while rules act"
	done
}

# faulty ENGINE NAME: where the IOMMU does not hold it, nothing would keep DMA in its place
faulty() {
	: >"$report"
	its_suite=$faulty_suite
	[ "$(type_of "$1")" = identity ] && its_suite=untranslated
	[ -e "$devices/$1/iommu_group" ] && run_ktap "$debugfs/pviommu_dmatest/$1" "$its_suite"
	grep -q '^1\.\.[1-9]' "$report" && ! grep -q '^not ok' "$report"
	status=$?
	if [ "$status" -ne 0 ] && is_excused; then
		sed "s/^not ok \\(.*\\)/ok \\1 # XFAIL $excuse/; s/^/  /" "$report"
	else
		sed 's/^/  /' "$report"
	fi
	verdict_faulty "$status" "$2"
}

# check_faulty NAME COMMAND...
check_faulty() {
	name=$1
	shift
	output=$("$@" 2>&1)
	status=$?
	[ "$status" -eq 0 ] || echo "$output" | head -n 40 | sed 's/^/# /'
	verdict_faulty "$status" "$name"
}

# is_excused: whether a rule has acted that no correct IOMMU has, so that a failure is expected
excuse="adversarial rules acted"
is_excused() {
	rule_counts | awk '$5 == "adversarial" && $4 > 0 { found = 1 } END { exit !found }'
}

# verdict_faulty STATUS NAME: one that is expected fails nothing, and so is "ok", as the kernel's own tests have it
verdict_faulty() {
	if [ "$1" -ne 0 ] && is_excused; then
		number=$((number + 1))
		echo "ok $number $2 # XFAIL $excuse"
	else
		verdict "$1" "$2"
	fi
}

# faulty_cycle: what is refused for want of something may be there when it is asked for again
faulty_cycle() {
	cycle=1
	until unload_rest && reset_functions && load_all && faulty_is_bound; do
		echo "try $cycle of $faulty_cycles failed"
		[ "$cycle" -lt "$faulty_cycles" ] || return 1
		cycle=$((cycle + 1))
	done
}

# unload_rest: a try before this one may have come no further
unload_rest() {
	[ ! -e /sys/module/pviommu ] || unload_all
}

# reset_functions: as whoever hands them to another driver does, while they have none
reset_functions() {
	for function in $iommu $engines; do
		echo 1 >"$devices/$function/reset" || return 1
	done
}

faulty_is_bound() {
	same "$iommu $(driver_of "$iommu")" "$iommu pviommu" && engines_have_driver && engines_have_groups
}

# check_excused NAME COMMAND...: what a rule did to a connection, it has done to it for good
check_excused() {
	name=$1
	shift
	if "$@" >/dev/null 2>&1; then
		verdict 0 "$name"
	else
		number=$((number + 1))
		echo "ok $number $name # XFAIL $excuse"
	fi
}

rules_off_plan() {
	echo $(($(wc -l <"$rules") + 2))
}

rules_off_tests() {
	rule_counts >"$counts"
	! is_excused || adversarial_acted=1
	while read -r hash first last id; do
		check "rule $id has acted as expected" rule_acted "$hash" "$first" "$last"
	done <"$rules"
	check "the rules of $scenario are taken away" rules_go
	tables=$usual_tables
	# a program or a suite of the user's has drivers of its own choice
	if [ "$faulty_was_played" = 1 ] && [ "$adversarial_acted$scenario_from" = 1boot ]; then
		check_excused "without rules everything works" calm_again
	elif [ "$faulty_was_played" = 1 ]; then
		check "without rules everything works" calm_again
	else
		check "the PV-IOMMU still has its driver" same "$(driver_of "$iommu")" pviommu
	fi
}

# rule_acted HASH FIRST LAST: LAST may be -, for any number
rule_acted() {
	read -r passed fired <<-EOF
		$(awk -v hash="$1" '$1 == "rule" && $2 == hash { print $3, $4 }' "$counts")
	EOF
	[ -n "$fired" ] || { echo "the device has no such rule:" && cat "$counts" && return 1; }
	echo "it fired $fired of $passed times, expected $2 to $3"
	[ "$fired" -ge "$2" ] && { [ "$3" = - ] || [ "$fired" -le "$3" ]; }
}

rules_go() {
	request rules-unload && same "$(rule_counts)" ""
}

# A device that was given up, or that a rule left broken, is to be there again with a new driver.
calm_again() {
	faulty_is_bound && dma_works && return 0
	unload_rest && load_all && faulty_is_bound && dma_works
}
