#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Network cards behind the PV-IOMMU, with the kernel's own driver virtio_net: two that are joined, each in a network
# namespace of its own, so that what is between them goes through the cards; and a third one with a tap, if there is one.
#
#     pviommu lab run --topology net --vcpus 2 --run guest-tools/programs/net.sh
#
# With the rules of net-faults.toml (--scenario) memory is taken away under the cards, too. MIB and CONNECTIONS say how
# much goes each way; net-long.sh gives more of both.

mib=${1:-2}
connections=${2:-50}
datagrams=${3:-500}
status=0
address_one=52:54:00:00:00:01
address_two=52:54:00:00:00:02
address_tap=52:54:00:00:00:03
nobody=52:54:00:00:00:99
port=5001
drivers=/sys/bus/pci/drivers/virtio-pci
devices=/sys/bus/pci/devices
tracing=/sys/kernel/tracing
# sizes of pings that the rules of net-faults.toml know by the length of their frames
receive_refused=777 write_refused=779 send_refused=781 ring_refused=783

uptime_now() {
	cut -d ' ' -f 1 /proc/uptime
}

# check TEXT COMMAND...: whether it succeeds; if not, also what it said
check() {
	text=$1 begun=$(uptime_now)
	shift
	if "$@" >/tmp/said 2>&1; then
		verdict="ok  "
	else
		verdict=FAIL status=1
	fi
	echo "$verdict $text ($(echo "$begun $(uptime_now)" | awk '{ printf "%.1f", $2 - $1 }') s)"
	[ "$verdict" = "ok  " ] || sed 's/^/     /' /tmp/said
}

# within SECONDS COMMAND...: until it succeeds
within() {
	tries=$(($1 * 10))
	shift
	until "$@"; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || return 1
		usleep 100000
	done
}

# card ADDRESS: the interface with this hardware address
card() {
	for interface in /sys/class/net/*; do
		[ "$(cat "$interface/address")" = "$1" ] && echo "${interface##*/}" && return
	done
	return 1
}

# function_of ADDRESS: the PCI function of that card
function_of() {
	device=$(readlink -f "/sys/class/net/$(card "$1")/device")
	basename "$(dirname "$device")"
}

inside() {
	nsenter -t "$namespace" -n "$@"
}

# set_up: both interfaces with their addresses, the second one in the namespace, whichever have gone since
set_up() {
	within 10 card "$address_one" && one=$(card "$address_one") || return 1
	if found=$(card "$address_two"); then
		two=$found
		ip link set "$two" netns "$namespace" || return 1
	fi
	ip address replace 10.9.0.1/24 dev "$one" && ip link set "$one" mtu 1500 up || return 1
	inside ip address replace 10.9.0.2/24 dev "$two" && inside ip link set "$two" mtu 1500 up
}

# pings ADDRESS COUNT [BYTES]: all of them come back
pings() {
	ping -c "$2" -i 0.05 -s "${3:-56}" -W 3 "$1" >/tmp/pings
	cat /tmp/pings
	grep -q " $2 packets received" /tmp/pings
}

no_ping() {
	! ping -c 2 -i 0.05 -s "${1:-56}" -W 1 10.9.0.2
}

tcp() {
	pviommu_net tcp 10.9.0.2 "$port" "$1" "${2:-1}"
}

udp() {
	pviommu_net udp 10.9.0.2 "$port" "$1" "$2" "$3"
}

# works: what is shown of the cards after each change
works() {
	pings 10.9.0.2 3 && tcp 100000
}

# statistic NAME: of the first card
statistic() {
	cat "/sys/class/net/$one/statistics/$1"
}

# counted NAME: by the driver, of all receive queues of the first card, as ethtool tells it
counted() {
	pviommu_net statistics "$one" | awk -v name="_$1\$" '/^rx/ && $1 ~ name { sum += $2 } END { print sum + 0 }'
}

is_translated() {
	[ -e "$devices/$1/iommu_group" ]
}

is_shown() {
	pviommu_net show "$1" | tee /tmp/shown
	grep -q "^driver virtio_net, .* link up, speed 10000" /tmp/shown
}

# jumbo: frames of 9000 bytes, each as one
jumbo() {
	ip link set "$one" mtu 9000 && inside ip link set "$two" mtu 9000 || return 1
	before=$(statistic tx_packets)
	udp 100 8972 4 || return 1
	[ $(($(statistic tx_packets) - before)) -lt 120 ] || { echo "they were sent in pieces" && return 1; }
	pings 10.9.0.2 3 8900 && tcp 200000 || return 1
	ip link set "$one" mtu 1500 && inside ip link set "$two" mtu 1500
}

vlan_works() {
	ip link add link "$one" name vlan5 type vlan id 5 && ip address add 10.9.5.1/24 dev vlan5 && ip link set vlan5 up ||
		return 1
	# only one end is in it so far: the other card filters what comes
	no_ping_to 10.9.5.2 || return 1
	inside ip link add link "$two" name vlan5 type vlan id 5 && inside ip address add 10.9.5.2/24 dev vlan5 &&
		inside ip link set vlan5 up || return 1
	# a kernel that has just asked for the address in vain drops what waits for it
	within 10 pings 10.9.5.2 1 && pings 10.9.5.2 3 && pviommu_net tcp 10.9.5.2 "$port" 100000 1
}

# what knows VLANs would have the driver remove VLAN 0 from a card that is down, and with a card that does not answer
# (see function_reset) the driver waits for that for ever
vlan() {
	modprobe 8021q || return 1
	vlan_works
	worked=$?
	ip link del vlan5
	inside ip link del vlan5
	modprobe -r 8021q && return "$worked"
}

no_ping_to() {
	! ping -c 1 -W 1 "$1"
}

# captured all|own: what the first card receives, into a file, while pings and frames for nobody come
captured() {
	pviommu_net capture "$one" "$1" >/tmp/captured &
	capture=$!
	within 5 grep -q "^listening" /tmp/captured || return 1
	inside pviommu_net raw "$two" "$nobody" 5 && pings 10.9.0.2 5 1000 && pings 10.9.0.2 3 || return 1
	kill "$capture" && wait "$capture" || return 1
	frames=$(grep -c "^frame in 60 " /tmp/captured)
	cat /tmp/captured
}

# the frames for nobody have 60 bytes, and so might an answer of ARP, which has not, as the card does not fill it up
own_frames() {
	captured own && [ "$frames" = 0 ]
}

all_frames() {
	captured all && [ "$frames" = 5 ]
}

features() {
	for feature in rx-gro-hw tx-tcp-segmentation tx-checksum-ip-generic; do
		pviommu_net feature "$one" "$feature" "$1" || return 1
	done
}

without_offloads() {
	features off && works
}

with_offloads() {
	pviommu_net feature "$one" tx-checksum-ip-generic on && features on && works
}

# interrupts QUEUE: of the first card so far, by that queue
interrupts() {
	name=$(basename "$(readlink -f "/sys/class/net/$one/device")")
	awk -v name="$name-$1" '$NF == name { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum + 0 }' \
		/proc/interrupts
}

one_queue() {
	pviommu_net channels "$one" 1 && works
}

two_queues() {
	pviommu_net channels "$one" 2 && pviommu_net show "$one" || return 1
	first_before=$(interrupts input.0) second_before=$(interrupts input.1)
	if [ "$(nproc)" -gt 1 ]; then
		taskset 1 pviommu_net tcp 10.9.0.2 "$port" 100000 4 && taskset 2 pviommu_net tcp 10.9.0.2 "$port" 100000 4
	else
		tcp 100000 4
	fi || return 1
	first_more=$(($(interrupts input.0) - first_before)) second_more=$(($(interrupts input.1) - second_before))
	echo "interrupts: $first_more and $second_more"
	[ "$first_more" -gt 0 ] && { [ "$(nproc)" = 1 ] || [ "$second_more" -gt 0 ]; }
}

# polled: packets that a waiting program has fetched itself
polled() {
	awk '/^TcpExt:/ { if (!n) { for (i = 1; i <= NF; i++) if ($i == "BusyPollRxPackets") n = i } else print $n }' \
		/proc/net/netstat
}

busy_polling() {
	echo 20000 >/proc/sys/net/core/busy_poll && echo 20000 >/proc/sys/net/core/busy_read || return 1
	before=$(polled)
	udp 50 100 1 && tcp 100000
	done=$?
	after=$(polled)
	echo 0 >/proc/sys/net/core/busy_poll && echo 0 >/proc/sys/net/core/busy_read
	echo "$before packets were polled before, $after now"
	[ "$done" = 0 ] && [ "$after" -gt "$before" ]
}

down_and_up() {
	ip link set "$one" down && no_ping && ip link set "$one" up && works
}

unbind_and_bind() {
	echo "$first" >"$drivers/unbind" && echo "$first" >"$drivers/bind" && set_up && works
}

remove_and_rescan() {
	echo 1 >"$devices/$first/remove" && echo 1 >/sys/bus/pci/rescan && within 10 is_translated "$first" && set_up && works
}

# type_of FUNCTION: how its memory is mapped: DMA-FQ (lazy) or DMA (strict)
type_of() {
	cat "$devices/$1/iommu_group/type"
}

# other_type: the same cards, strict instead of lazy or the other way round
other_type() {
	other=DMA
	[ "$(type_of "$first")" = DMA-FQ ] || other=DMA-FQ
	for function in "$first" "$second"; do
		echo "$function" >"$drivers/unbind" && echo "$other" >"$devices/$function/iommu_group/type" &&
			echo "$function" >"$drivers/bind" || return 1
		[ "$(type_of "$function")" = "$other" ] || return 1
	done
	set_up && works
}

# The driver goes while packets are on their way, and comes again. Both cards' maps are traced: where one address leads
# them to different memory at the same time, what they mix up would be found by whoever checks the bytes.
reload() {
	pviommu_net udp 10.9.0.2 "$port" 100000000 500 64 >/dev/null 2>&1 &
	flood=$!
	sleep 0.5
	[ -e "$tracing/events" ] || mount -t tracefs none "$tracing" || return 1
	modprobe -r virtio_net && echo >"$tracing/trace" && traced 1 && modprobe virtio_net && set_up && traced 0
	done=$?
	sleep 0.5
	kill "$flood"
	awk '{ match($0, /iova=0x[0-9a-f]+/); iova = substr($0, RSTART, RLENGTH) }
		/ unmap: / { delete live[iova] }
		/ map: / {
			match($0, /paddr=0x[0-9a-f]+/)
			place = substr($0, RSTART, RLENGTH)
			if (iova in live && live[iova] != place) both++
			live[iova] = place
		}
		END { print both + 0 }' "$tracing/trace" >/tmp/both
	[ "$done" = 0 ] && works
}

# traced 1|0: whether maps and unmaps are
traced() {
	echo "$1" >"$tracing/events/iommu/map/enable" && echo "$1" >"$tracing/events/iommu/unmap/enable"
}

shared_addresses() {
	echo "$(cat /tmp/both) addresses of one card were mapped for the other one meanwhile, to other memory"
	[ "$(cat /tmp/both)" -gt 0 ]
}

# virtio_net does not learn of a reset: the card takes nothing any more, and the driver would wait for ever for an answer
# to any command, as for a change of the MTU. One that learns of it goes on by itself.
function_reset() {
	echo 1 >"$devices/$first/reset" || return 1
	if pings 10.9.0.2 2; then
		echo "the driver goes on by itself"
		set_up && works
	else
		echo "the driver is bound anew"
		unbind_and_bind
	fi
}

xdp_pass() {
	pviommu_net xdp "$one" pass ping -c 3 -i 0.05 -W 5 10.9.0.2 && pviommu_net xdp "$one" pass \
		pviommu_net tcp 10.9.0.2 "$port" 100000 1
}

# what is dropped are the answers to pings
xdp_drop() {
	before=$(counted xdp_drops)
	! pviommu_net xdp "$one" drop ping -c 2 -i 0.05 -W 1 10.9.0.2 && works || return 1
	pviommu_net statistics "$one"
	[ $(($(counted xdp_drops) - before)) -ge 2 ]
}

# lost_once BYTES: the rule that knows pings of this size takes one of them; the next one is as any
lost_once() {
	! ping -c 1 -s "$1" -W 1 10.9.0.2 && works && pings 10.9.0.2 3 "$1"
}

receive_buffer_refused() {
	before=$(statistic rx_length_errors)
	lost_once "$receive_refused" || return 1
	[ "$(statistic rx_length_errors)" -gt "$before" ] || { echo "the driver has counted no error" && return 1; }
}

ring_refused() {
	ping -c 1 -s "$ring_refused" -W 1 10.9.0.2
	no_ping || return 1
	echo "$second" >"$drivers/unbind" && echo "$second" >"$drivers/bind" && set_up && works
}

faults_are_told() {
	cat /sys/kernel/debug/pviommu/*/events | tee /tmp/events
	[ "$(grep -c " not-mapped " /tmp/events) $(grep -c " not-ram " /tmp/events)" = "3 1" ]
}

# The host's end of the tap sends a file to who connects first, and takes it back from who connects then.
tap_works() {
	ip address replace 10.9.1.2/24 dev "$tap" && ip link set "$tap" up && pings 10.9.1.1 10 && pings 10.9.1.1 3 8000 &&
		nc -w 60 10.9.1.1 5001 </dev/null >/tmp/file && nc -w 60 10.9.1.1 5002 </tmp/file
}

kernel_is_content() {
	# the checks of the DMA API say at the boot that they are there
	! dmesg | grep -v "DMA-API: [pd]" |
		grep -E "WARNING:|BUG:|DMA-API|KASAN|UBSAN|possible .*dead|Call Trace|hung task|tx timeout|NETDEV WATCHDOG"
}

[ -e /proc/self/ns/net ] || { echo "this kernel has no network namespaces (CONFIG_NET_NS)" && exit 1; }
[ -d /sys/module/virtio_net ] || modprobe virtio_net || exit 1
# virtio-pci is part of the kernel, and was there before pviommu
check "the cards are translated" pviommu-takeover -v
first=$(function_of "$address_one")
second=$(function_of "$address_two")
check "the first card is in an IOMMU group" is_translated "$first"
check "the second card is in an IOMMU group" is_translated "$second"
unshare -n sleep 10000 &
namespace=$!
trap 'kill "$namespace" "$server"' EXIT # what a program leaves behind keeps its output open
within 5 inside true
check "both cards have an interface" set_up
[ "$status" = 0 ] || exit 1
nsenter -t "$namespace" -n pviommu_net serve "$port" & # not a function in the background: that would be a shell's child
server=$!
echo "kernel $(uname -r), $(nproc) processors, $(type_of "$first")"
check "ethtool knows the card" is_shown "$one"
check "20 pings come back" pings 10.9.0.2 20
check "pings in fragments come back" pings 10.9.0.2 3 4000
check "$mib MiB each way arrive through TCP" tcp $((mib << 20))
tail -n 1 /tmp/said
check "$connections connections at once" tcp 4000 "$connections"
check "$datagrams small packets each way" udp "$datagrams" 18 64
tail -n 1 /tmp/said
check "datagrams in fragments" udp 20 30000 2
check "frames of 9000 bytes" jumbo
check "a VLAN, and none that a card does not know" vlan
check "frames for others do not come" own_frames
check "all frames come if that is asked for" all_frames
grep "^frame" /tmp/captured
check "without offloads" without_offloads
check "with offloads" with_offloads
check "one pair of queues" one_queue
check "two pairs of queues" two_queues
tail -n 1 /tmp/said
check "busy polling" busy_polling
tail -n 1 /tmp/said
check "down and up" down_and_up
check "unbound and bound" unbind_and_bind
check "removed and found again" remove_and_rescan
check "the other way of unmapping" other_type
echo "now $(type_of "$first")"
check "the driver goes and comes under traffic" reload
check "one address leads the cards to different memory" shared_addresses
tail -n 1 /tmp/said
check "the function is reset" function_reset
grep "^the driver" /tmp/said
check "XDP passes packets" xdp_pass
check "XDP drops packets, as ethtool counts them" xdp_drop
if grep -q receive-buffer-refused /lab/rules 2>/dev/null; then
	check "a receive buffer that is not mapped costs its frame" receive_buffer_refused
	check "a receive buffer that cannot be written costs its frame" lost_once "$write_refused"
	check "a frame to be sent that is not mapped is lost" lost_once "$send_refused"
	check "a ring that is not mapped stops its card, until it is bound anew" ring_refused
	check "the guest is told of these faults" faults_are_told
fi
if tap=$(card "$address_tap"); then
	check "files go through the tap" tap_works
fi
check "the kernel has no complaint" kernel_is_content
exit "$status"
