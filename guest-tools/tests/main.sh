#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The tests of the guest. Standard output is a KTAP report and nothing else; notes go to standard error.
#
# Each file has topics: functions NAME_tests, which make the tests, and NAME_plan, which says how many these are in the
# configuration of the run. What a configuration cannot do is not in its list of topics.

cd "$(dirname "$0")" || exit 1
for part in lib devices setup operations dma types network cards lifecycle ports takeover profiles vfio inject sent power lost \
	kernel_log kexec program suite scenario sweep; do
	. "./$part.sh"
done

profile=xen-2024
tables=auto
mode=lazy
kernel=debian
long=0
cycles=
program=
suite=
scenario=
scenario_alone=0
scenario_from=tests
sweep=0
isolated_msi=0
[ -f /lab/config ] && . /lab/config

iommu=$(functions "$iommu_id" | head -n 1)
engines=$(functions "$engine_id")
engine_count=$(echo "$engines" | wc -l)
cards=$(find_cards)

# A second kernel goes on where the first one stopped.
stage=$(argument stage)
if [ "$stage" = 2 ]; then
	mode=passthrough
	profile=$(other_profile)
	number=$(argument number)
	failures=$(argument failures)
fi

# topics: those of this stage, in their order
topics() {
	on=
	off=
	[ -n "$scenario" ] && on=rules_on && off=rules_off
	[ -n "$program" ] && echo "$on" program "$off" && return
	[ "$sweep" = 1 ] && echo setup sweep && return
	[ -n "$suite" ] && echo setup "$on" suite "$off" kernel_log && return
	[ "$scenario_alone" = 1 ] && echo setup rules_on scenario rules_off kernel_log && return
	if [ "$stage" = 2 ]; then
		echo setup second dma network lifecycle ports kernel_log
		# either is the end of the device
		if [ "$profile" = xen-2024 ]; then
			echo killed
		else
			echo stopped
		fi
		return
	fi
	echo setup operations dma types network lifecycle ports takeover
	[ -n "$cards" ] && [ -e /proc/self/ns/net ] && echo cards
	echo profiles vfio
	has_injection && echo inject
	[ "$long" = 1 ] && has_tables && echo sent
	echo power "$on" ${scenario:+scenario} "$off" kernel_log
	if [ "$long" = 1 ]; then
		[ "$mode" = passthrough ] || echo paused
		echo kexec
	fi
}

# planned: how many tests these are
planned() {
	sum=0
	for topic in $(topics); do
		sum=$((sum + $("${topic}_plan")))
	done
	echo "$sum"
}

if [ "$sweep" = 1 ]; then
	echo "KTAP version 1" # its plan comes at the end
elif [ "$stage" != 2 ]; then
	later=0
	[ "$long" = 1 ] && later=$(stage=2 && mode=passthrough && profile=$(other_profile) && planned)
	plan $(($(planned) + later))
fi
# a program, a suite or a scenario has them as the kernel left them
topics | grep -qx cards && release_cards
for topic in $(topics); do
	"${topic}_tests"
done
finish
