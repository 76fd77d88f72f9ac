# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# The type of a group is changed at run time, as /sys/kernel/iommu_groups/<N>/type allows while no driver is bound.

types_plan() {
	echo 5
}

types_tests() {
	subject=$(echo "$engines" | head -n 1)
	held >/tmp/held.before
	check "the type of a group in use stays as it is" type_is_kept
	check "a group of type DMA refuses late DMA at once" change_type DMA strict
	check "a group of type identity is not translated" change_type identity
	check "a group of type DMA-FQ refuses late DMA in time" change_type DMA-FQ lazy
	check "a group is back at type $(type_of_mode), and nothing is left over" type_is_restored
}

type_is_kept() {
	for type in DMA identity; do
		# from DMA-FQ to DMA is a change as well; a type that it has already is none
		[ "$type" = "$(type_of_mode)" ] && continue
		echo "$type" >"$(group_of "$subject")/type" && echo "the type became $type below a driver" && return 1
	done
	same "$(type_of "$subject")" "$(type_of_mode)"
}

# set_type TYPE
set_type() {
	echo "$subject" >"$drivers/pviommu_dmatest/unbind" || return 1
	echo "$1" >"$(group_of "$subject")/type" || return 1
	same "$(type_of "$subject")" "$1" || return 1
	echo "$subject" >"$drivers/pviommu_dmatest/bind"
}

# change_type TYPE [SUITE]
change_type() {
	set_type "$1" && engine_works "$subject" || return 1
	[ -z "$2" ] || suite_passes "$subject" "$2"
}

type_is_restored() {
	set_type "$(type_of_mode)" && dma_works || return 1
	# tables of a domain stay as long as it, and this one is new
	same "$(held | grep -vE "^(pool_used|table_pages) ")" "$(grep -vE "^(pool_used|table_pages) " /tmp/held.before)"
}
