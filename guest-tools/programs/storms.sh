#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Storms of DMA, one after the other, for so many seconds (default 3600); for `pviommu lab run --add`, see docs/lab.md. Between
# them the server falls asleep, so that each begins with doorbells. Fails if a wait had to be rescued from a lost doorbell, or if
# the device has heard other doorbells than the driver rang.
set -u
seconds=${1:-3600}
debugfs=/sys/kernel/debug
engine=$debugfs/pviommu_dmatest/${LAB_ENGINES%% *}

count_of() {
	awk -v name="$1" '$1 == name { print $2 }' "$debugfs/pviommu/$LAB_IOMMU/usage"
}

doorbells() {
	echo "$(count_of doorbells) $(count_of device_doorbells)"
}

# shellcheck disable=SC2046 # two words
set -- $(doorbells)
rung=$1 heard=$2
begin=$(cut -d. -f1 /proc/uptime)
storms=0
now=$begin
while [ $((now - begin)) -lt "$seconds" ]; do
	echo storm >"$engine/run" || exit 1
	if grep -q "not ok" "$engine/ktap"; then
		cat "$engine/ktap"
		exit 1
	fi
	storms=$((storms + 1))
	[ $((storms % 100)) != 0 ] || echo "$((now - begin)) s: $storms storms, $(count_of rescues) rescues"
	sleep "0.0$((storms % 10))"
	now=$(cut -d. -f1 /proc/uptime)
done
sleep 1
# shellcheck disable=SC2046 # two words
set -- $(doorbells)
rung=$(($1 - rung)) heard=$(($2 - heard))
rescues=$(count_of rescues)
echo "$storms storms in $((now - begin)) s: $rung doorbells rung, $heard heard, $(count_of posted) commands posted, $rescues rescues"
[ "$rung" = "$heard" ] && [ "$rescues" = 0 ] && [ "$storms" -gt 0 ]
