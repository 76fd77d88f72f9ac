#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Two network cards behind the PV-IOMMU that are joined, with the kernel's own driver virtio_net:
#
#     pviommu lab run --topology net --run guest-tools/programs/net.sh
#
# Each card is in a network namespace of its own, so that what is between them goes through the cards.

mib=${1:-16}
status=0

# result STATUS TEXT
result() {
	if [ "$1" = 0 ]; then
		echo "ok   $2"
	else
		echo "FAIL $2"
		status=1
	fi
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

# set_up: the interfaces with their addresses, the second one in the namespace of a process
set_up() {
	one=$(card "$address_one") && two=$(card "$address_two") || return 1
	ip link set "$two" netns "$namespace" || return 1
	ip address replace 10.9.0.1/24 dev "$one" && ip link set "$one" up || return 1
	inside ip address replace 10.9.0.2/24 dev "$two" && inside ip link set "$two" up
}

# transfer FROM TO ADDRESS: a file through TCP, whose checksum is that of what arrives; FROM and TO are "inside" or "env"
transfer() {
	"$2" timeout 100 nc -l -p 5001 <&4 >/tmp/arrived &
	listener=$!
	sleep 0.5
	"$1" nc -w 20 "$3" 5001 </tmp/sent
	wait "$listener"
	[ "$(sha256sum </tmp/arrived)" = "$(sha256sum </tmp/sent)" ]
}

address_one=52:54:00:00:00:01
address_two=52:54:00:00:00:02
[ -e /proc/self/ns/net ] || { echo "this kernel has no network namespaces (CONFIG_NET_NS): use Debian's" && exit 1; }
[ -d /sys/module/virtio_net ] || modprobe virtio_net || exit 1
# virtio-pci is part of the kernel, and was there before pviommu
pviommu-takeover -v
result $? "the cards are translated"
first=$(function_of "$address_one")
for function in "$first" "$(function_of "$address_two")"; do
	[ -e "/sys/bus/pci/devices/$function/iommu_group" ]
	result $? "$function is in an IOMMU group"
done
# a listener that has nothing to send must not say so: the other end would stop
mkfifo /tmp/silence && exec 4<>/tmp/silence
unshare -n sleep 1000 &
namespace=$!
trap 'kill "$namespace"' EXIT # what a program leaves behind keeps its output open
sleep 0.5
set_up
result $? "both cards have an interface"
[ "$status" = 0 ] || exit 1
ping -c 20 -i 0.05 -W 2 10.9.0.2 >/tmp/ping && grep -q "20 packets received" /tmp/ping
result $? "20 pings come back"
tail -n 1 /tmp/ping
ping -c 3 -s 4000 -W 2 10.9.0.2 >/dev/null
result $? "pings of 4000 bytes come back"
dd if=/dev/urandom of=/tmp/sent bs=1M count="$mib" 2>/dev/null
begun=$(cut -d ' ' -f 1 /proc/uptime)
transfer env inside 10.9.0.2
result $? "$mib MiB arrive through TCP"
echo "from $begun to $(cut -d ' ' -f 1 /proc/uptime)"
transfer inside env 10.9.0.1
result $? "$mib MiB arrive the other way"
ip link set "$one" down && ip link set "$one" up && ping -c 2 -W 2 10.9.0.2 >/dev/null
result $? "a card that was down works again"
echo "$first" >/sys/bus/pci/drivers/virtio-pci/unbind && echo "$first" >/sys/bus/pci/drivers/virtio-pci/bind &&
	one=$(card "$address_one") && ip address replace 10.9.0.1/24 dev "$one" && ip link set "$one" up &&
	ping -c 2 -W 2 10.9.0.2 >/dev/null
result $? "a card whose driver was unbound and bound works again"
exit "$status"
