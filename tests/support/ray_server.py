"""Another server's engine on a cluster: python ray_server.py CONFIG OPTIONS (msgpack, in hex).

It prints the fingerprint when it is up, or what went wrong, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from maestrale.cluster.engine import RayServeEngine
from maestrale.cluster.options import ClusterOptions
from maestrale.engines.base import EngineConfig
from maestrale.errors import MaestraleError


async def main() -> None:
    config = msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=EngineConfig)
    options = msgspec.msgpack.decode(bytes.fromhex(sys.argv[2]), type=ClusterOptions)
    engine = RayServeEngine(config, options)
    try:
        await engine.start()
    except MaestraleError as error:
        print("failed:", str(error).replace("\n", " "), flush=True)
        return
    print("up:", engine.describe().fingerprint, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await engine.close()


asyncio.run(main())
