#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Carries out commands of the host in a kept guest: `pviommu lab run --run guest-agent.sh --keep`, whose tests are over at once,
# and then `exec sh /lab/add/guest-agent.sh console` on the console. Each line is answered by one that begins with "@@":
#
#   add TEXT           a piece of a command, in base64; pieces are short, for a terminal takes only short lines
#   run SECONDS        carry the command out; its output follows in base64, then its status and the digest of its output
#   end                end the guest

temporary=${TMPDIR:-/tmp}
environment=$temporary/pviommu-environment

if [ "$1" != console ]; then
	export -p >"$environment"
	exit 0
fi

stty -echo
dmesg -n 1 # messages of the kernel would come between answers; `dmesg` still has them
. "$environment"
cd "$(dirname "$0")" || exit 1
coded=$temporary/pviommu-coded
: >"$coded"
echo "@@ready"
while read -r what argument; do
	case $what in
	add)
		printf '%s\n' "$argument" >>"$coded"
		echo "@@added"
		;;
	run)
		base64 -d <"$coded" >"$temporary/pviommu-command"
		: >"$coded"
		timeout "$argument" sh "$temporary/pviommu-command" >"$temporary/pviommu-said" 2>&1 </dev/null
		status=$?
		base64 <"$temporary/pviommu-said" | sed 's/^/@@said /'
		echo "@@status $status $(md5sum <"$temporary/pviommu-said" | cut -d ' ' -f 1)"
		;;
	end) exit 0 ;;
	esac
done
