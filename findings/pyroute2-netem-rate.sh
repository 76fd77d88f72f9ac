#!/bin/sh
# pyroute2 0.9.7: netem with a rate.
#
# Expected: tc("add", "netem", ..., rate=...) asks for what its documentation has: TCA_NETEM_RATE among the options of netem.
# Seen:     `rate` also becomes an attribute of the request itself, TCA_RATE, of which netem knows nothing. A number cannot be
#           encoded there (TypeError), and a text as "8mbit" is refused by the kernel (ERANGE). So netem's rate cannot be used;
#           tbf behind netem does the same. Delay and loss are what tc(8) sends, byte for byte.
#
# Needs no privileges: the request is not sent. Exit status 0: as seen.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install pyroute2==0.9.7
"$folder/venv/bin/python" - <<'PYTHON'
from pyroute2 import IPRoute

with IPRoute() as route:
    try:
        route.tc("add", "netem", 1 << 30, handle=0x10000, rate=1_000_000)
    except TypeError as error:
        print(f"rate=1_000_000: {error}")
    else:
        raise SystemExit("it is encoded now")
PYTHON
