"""One machine of `test_network`: a store of pages, or a runtime that uses one. A program."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from kvrt.kv.tiers.remote import client
from kvrt.kv.tiers.remote.desk import RemoteStats
from kvrt.kv.tiers.remote.key import store_key
from kvrt.kv.tiers.remote.server import StoreServer
from kvrt.kv.tiers.remote.shelves import MemoryShelves
from kvrt.net.address import parse_address
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def keep(store: str, key: str) -> None:
    """A store, until standard input ends."""
    address = parse_address(store)
    server = StoreServer(MemoryShelves(256 << 20), store_key(Path(key), address))
    async with server.listening(address) as bound:
        tell(at=str(bound))
        await asyncio.to_thread(sys.stdin.read)


def remote(runtime: Runtime) -> RemoteStats:
    offload = runtime.stats().offload
    assert offload is not None
    assert offload.remote is not None
    return offload.remote


def run(store: str, key: str, model: str) -> None:
    """A runtime, which does what standard input says."""
    client.RemoteStore.__init__.__kwdefaults__ |= {"patience": 2.0, "shun": 2.0}
    with Runtime(
        model, backend="cpu", load_format="dummy", seed=1, memory_limit="512MiB",
        preemption="move", remote_store=store, remote_key=key,
    ) as runtime:  # fmt: skip
        deadline = time.monotonic() + 20
        while not remote(runtime).connected and time.monotonic() < deadline:
            time.sleep(0.01)
        tell(connected=remote(runtime).connected)
        for line in sys.stdin:
            asked: dict[str, Any] = json.loads(line)
            if asked["what"] == "pages":
                deadline = time.monotonic() + 20
                while remote(runtime).pages < asked["least"] and time.monotonic() < deadline:
                    time.sleep(0.01)
                tell(pages=remote(runtime).pages)
            else:
                begun = time.monotonic()
                params = SamplingParams(max_tokens=asked["most"], ignore_eos=True)
                (result,) = runtime.generate(asked["prompt"], params)
                tell(
                    tokens=result.token_ids,
                    cached=result.usage.cached_tokens,
                    seconds=time.monotonic() - begun,
                )


if __name__ == "__main__":
    if sys.argv[1] == "store":
        asyncio.run(keep(*sys.argv[2:]))
    else:
        run(*sys.argv[2:])
