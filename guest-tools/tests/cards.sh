# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Two network cards behind the IOMMU that are joined. Linux' PCI driver of virtio is part of the kernel and has bound them
# before anything else runs, so they are taken from it, and have it again only here. Each is then in a network namespace of
# its own, so that what is between them goes through the cards.

card_id=0x1041
card_addresses="10.9.0.1 10.9.0.2"
card_kib=1024

cards_plan() {
	echo 2
}

cards_tests() {
	check "two network cards are translated" cards_are_translated
	# the name tells what came through
	output=$(card_traffic 2>/tmp/card-problems)
	status=$?
	[ "$status" = 0 ] || sed 's/^/# /' /tmp/card-problems
	verdict "$status" "network cards: ${output:-nothing arrives}"
	release_cards
}

# is_card ADDRESS
is_card() {
	read -r its_vendor <"$devices/$1/vendor"
	read -r its_id <"$devices/$1/device"
	[ "$its_vendor $its_id" = "$virtio_vendor $card_id" ]
}

# find_cards: the functions that are such cards
find_cards() {
	for folder in "$devices"/*; do
		is_card "${folder##*/}" && echo "${folder##*/}"
	done
}

release_cards() {
	for card in $cards; do
		[ ! -e "$devices/$card/driver" ] || echo "$card" >"$devices/$card/driver/unbind"
	done
}

cards_are_translated() {
	modprobe virtio_net || return 1
	for card in $cards; do
		echo "$card" >"$drivers/virtio-pci/bind" || return 1
		same "$card $(type_of "$card")" "$card $(type_of_mode)" || return 1
		within 5 interface_of "$card" >/dev/null || { echo "$card has no interface" && return 1; }
	done
}

interface_of() {
	for folder in "$devices/$1"/virtio*/net/*; do
		[ -e "$folder" ] && echo "${folder##*/}" && return
	done
	return 1
}

# card_traffic: pings, and a file through TCP; says what the second card has received
card_traffic() (
	# shellcheck disable=SC2086 # two of each
	set -- $cards $card_addresses
	one=$(interface_of "$1") && two=$(interface_of "$2") || exit 1
	unshare -n sleep 100 &
	other=$!
	trap 'kill "$other"' EXIT
	within 5 elsewhere "$other" || exit 1
	ip link set "$two" netns "$other" && ip address replace "$3/24" dev "$one" && ip link set "$one" up || exit 1
	inside ip address replace "$4/24" dev "$two" && inside ip link set "$two" up || exit 1
	ping -c 3 -i 0.1 -W 5 "$4" >&2 || exit 1
	dd if=/dev/urandom of=/tmp/sent bs=1024 count="$card_kib" 2>/dev/null
	inside timeout 20 nc -l -p 5001 <&3 >/tmp/arrived &
	listener=$!
	within 5 listens || exit 1
	nc -w 10 "$4" 5001 </tmp/sent
	wait "$listener"
	cmp /tmp/sent /tmp/arrived >&2 || exit 1
	inside cat /proc/net/dev | awk -v name="$two:" '$1 == name { print $3 " frames, " $2 " bytes received" }'
)

inside() {
	nsenter -t "$other" -n "$@"
}

# elsewhere PROCESS: whether it is in another network namespace than this one
elsewhere() {
	[ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]
}

# 1389 is port 5001
listens() {
	inside cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ':1389 .* 0A '
}
