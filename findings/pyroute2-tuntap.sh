#!/bin/sh
# pyroute2 0.9.7, kind "tuntap": what a request asks for and what comes of it.
#
# Expected: queues and headers of a tap are asked for as its owner is (uid, gid), by keywords of link("add"); what
# the library does not know it refuses; a name that exists is EEXIST and one of 16 characters ERANGE, as for every
# other kind.
# Seen:     multi_queue=True and vnet_hdr=True are dropped without a word, and the tap has neither; only inside
#           ifr={...} do they count. Adding a tap that exists is a success. A name of 16 characters makes a tap of
#           the first 15. A bridge gets both errors.
#
# Needs /dev/net/tun and root (or user namespaces); works in a network namespace of its own. Exit status 0: as seen.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install pyroute2==0.9.7
cat >"$folder/taps.py" <<'PYTHON'
import errno
from pathlib import Path

import pyroute2

MULTI_QUEUE, VNET_HDR = 0x100, 0x4000  # IFF_* of linux/if_tun.h


def flags(name):
    return int(Path(f"/sys/class/net/{name}/tun_flags").read_text(), 16) & (MULTI_QUEUE | VNET_HDR)


def refusal(ip, **request):
    try:
        ip.link("add", **request)
    except pyroute2.NetlinkError as error:
        return errno.errorcode[error.code]
    return "success"


with pyroute2.IPRoute() as ip:
    tap = {"kind": "tuntap", "mode": "tap"}
    ip.link("add", ifname="beside", multi_queue=True, vnet_hdr=True, **tap)
    ip.link("add", ifname="inside", ifr={"multi_queue": 1, "vnet_hdr": 1}, **tap)
    ip.link("add", ifname="bridge0", kind="bridge")
    seen = {
        "flags of keywords": flags("beside"),
        "flags inside ifr": flags("inside"),
        "a tap that exists": refusal(ip, ifname="beside", **tap),
        "a bridge that exists": refusal(ip, ifname="bridge0", kind="bridge"),
        "a tap of 16 characters": refusal(ip, ifname="a123456789012345", **tap),
        "is called": [name for name in ("a123456789012345", "a12345678901234") if ip.link_lookup(ifname=name)],
        "a bridge of 16 characters": refusal(ip, ifname="b123456789012345", kind="bridge"),
    }
for what, value in seen.items():
    print(f"{what}: {value}")
raise SystemExit(
    seen
    != {
        "flags of keywords": 0,
        "flags inside ifr": MULTI_QUEUE | VNET_HDR,
        "a tap that exists": "success",
        "a bridge that exists": "EEXIST",
        "a tap of 16 characters": "success",
        "is called": ["a12345678901234"],
        "a bridge of 16 characters": "ERANGE",
    }
)
PYTHON
# /sys shows the devices of the network namespace that it was mounted in
own=
[ "$(id -u)" -eq 0 ] || own=--map-root-user
# shellcheck disable=SC2086
unshare $own --net --mount sh -c 'mount -t sysfs sysfs /sys && exec "$0" "$1"' "$folder/venv/bin/python" "$folder/taps.py"
