#!/bin/sh
# qemu.qmp 0.0.6: what ends a message that QMPClient sends.
#
# Expected: a newline, as QMPClient itself asks of a server: it reads the greeting and each reply with readline().
# Seen:     nothing. The message is the bare object, so a server that reads lines waits for the rest of one, and
#           connect() for a reply to qmp_capabilities, without end: it has no time limit either. QEMU parses tokens,
#           and does not notice. A server for this client has to find the end of an object by itself.
#
# Exit status 0: as seen.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install qemu.qmp==0.0.6
cat >"$folder/server.py" <<'PYTHON'
import asyncio
import sys

from qemu.qmp import QMPClient

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


async def main():
    received = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        writer.write(GREETING)
        data = b""
        while not data.endswith(b"}"):
            data += await reader.read(100)
        try:
            data += await asyncio.wait_for(reader.read(100), 1)
        except asyncio.TimeoutError:
            pass
        received.set_result(data)
        writer.close()

    async with await asyncio.start_unix_server(serve, sys.argv[1]):
        connecting = asyncio.create_task(QMPClient().connect(sys.argv[1]))
        message = await received
        await asyncio.gather(connecting, return_exceptions=True)
    print(f"a message: {message!r}")
    return message != b'{"execute":"qmp_capabilities","arguments":{}}'


raise SystemExit(asyncio.run(main()))
PYTHON
timeout 30 "$folder/venv/bin/python" "$folder/server.py" "$folder/socket" 2>/dev/null
