#!/bin/sh
# SPDX-License-Identifier: MIT
#
# One end of the traffic of `pviommu bench net`: a network card and a server of iperf3. Takes the place of /tests/main.sh.
# /lab/bench sets: modules, takeover (1: the card's driver came before them), mac, address.
#
# Standard output and descriptor 3 are the channel to the host. Lines to the host begin with "bench":
#   fact NAME VALUE    something to note
#   ready              the host is to say what to do:
#                      sample: packets, interrupts of the card, maps so far, in a line "bench sample ..."
#                      count-on, count-off: whether maps are counted
#                      end
#   failed TEXT        no use going on

. /lab/bench

tracing=/sys/kernel/tracing

fail() {
	echo "bench failed $*"
	exit 1
}

card() {
	for interface in /sys/class/net/*; do
		[ "$(cat "$interface/address")" = "$mac" ] && echo "${interface##*/}" && return
	done
	return 1
}

# maps: how many the kernel has made since it counts them
maps() {
	cat "$tracing"/per_cpu/cpu*/stats | awk '$1 == "entries:" || $1 == "overrun:" { sum += $2 } END { print sum + 0 }'
}

sample() {
	statistics=/sys/class/net/$card/statistics
	packets=$(($(cat "$statistics/rx_packets") + $(cat "$statistics/tx_packets")))
	interrupts=$(awk -v name="$virtio-" 'index($NF, name) == 1 { for (at = 2; $at ~ /^[0-9]+$/; at++) sum += $at }
		END { print sum + 0 }' /proc/interrupts)
	echo "bench sample packets=$packets interrupts=$interrupts maps=$(maps)"
}

# shellcheck disable=SC2154 # /lab/bench
for module in $modules virtio_net; do
	modprobe "$module" || fail "the module $module does not load"
done
[ "$takeover" = 0 ] || pviommu-takeover || fail "the card is not translated"
tries=0
until card=$(card); do
	tries=$((tries + 1))
	[ "$tries" -lt 100 ] || fail "there is no card $mac"
	sleep 0.05
done
virtio=$(basename "$(readlink -f "/sys/class/net/$card/device")")
function=$(dirname "$(readlink -f "/sys/class/net/$card/device")")
if [ -e "$function/iommu_group" ]; then
	echo "bench fact group_type $(cat "$function/iommu_group/type")"
else
	echo "bench fact group_type none"
fi
iommu=$(readlink "$function/iommu") && echo "bench fact iommu ${iommu##*/}"
ip address replace "$address" dev "$card" && ip link set "$card" up || fail "$card cannot be set up"
# a server of iperf3 may end at an error of its client
while :; do
	iperf3 --server --one-off >/dev/null 2>&1 || usleep 10000
done 3>&- &

while :; do
	echo "bench ready"
	read -r word <&3 || fail "the host closed the channel"
	case $word in
	sample) sample ;;
	count-on) echo 1 >"$tracing/events/iommu/map/enable" || fail "the kernel cannot count maps" ;;
	count-off) echo 0 >"$tracing/events/iommu/map/enable" ;;
	end) break ;;
	*) fail "the host says: $word" ;;
	esac
done
kill $!
