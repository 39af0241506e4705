"""`kvrt serve --kv-events`. What they say: `tests/integrations/test_events.py`."""

from pathlib import Path

import msgspec
import zmq

from .conftest import PROMPT, Serve, launch


def test_what_is_cached_is_published_for_routers(serve: Serve, tmp_path: Path) -> None:
    place = f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay"
    server = serve("--kv-events", place[0], "--kv-events-replay", place[1])
    server.post("/v1/completions", {"model": "tiny", "prompt": PROMPT * 4, "max_tokens": 2})
    with zmq.Context() as context, context.socket(zmq.DEALER) as asked:
        asked.connect(place[1])
        said: list[bytes] = []
        while not said:
            asked.send_multipart([b"", bytes(8)])
            while (frames := asked.recv_multipart())[2] != b"\xff" * 8:
                said.append(frames[3])
    _, events, _ = msgspec.msgpack.decode(said[0])
    assert events[0]["type"] == "BlockStored"
    assert server.end() == 0


def test_an_address_for_events_that_cannot_be_had_is_told_before_the_model_is_loaded(
    tmp_path: Path,
) -> None:
    found = launch(tmp_path / "log", "nowhere", "--kv-events", "nonsense")
    assert found.process.wait(60) == 2
    assert "cannot be had" in found.said()
