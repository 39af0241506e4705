"""``kvrt run --image``."""

import json
from pathlib import Path

from kvrt import Illustrated, Runtime, SamplingParams
from tests.model.sights import TOKENS, encoded, make_sight, picture, save_sight

from .conftest import Kvrt


def test_an_image_is_seen_in_a_conversation_and_in_front_of_a_text(
    kvrt: Kvrt, tmp_path: Path
) -> None:
    model = save_sight(make_sight(), tmp_path / "model")
    file = tmp_path / "one.png"
    file.write_bytes(encoded(picture(1)))
    options = ("-n", "8", "--ignore-eos", "--temperature", "0", "--backend", "cpu", "--json")
    params = SamplingParams(max_tokens=8, ignore_eos=True, temperature=0.0)
    part = {"type": "image", "image": file}
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
    with Runtime(model, backend="cpu", memory_limit="64MiB") as runtime:
        in_chat, in_front = (
            [*runtime.generate([prompt], params)[0].token_ids]
            for prompt in (chat, Illustrated("what?", [file]))
        )

    def said(*args: str) -> tuple[list[int], int]:
        answer = json.loads(kvrt("run", str(model), "what?", *args, *options).stdout)
        return answer["token_ids"], answer["usage"]["prompt_tokens"]

    with_image, length = said("--image", str(file))
    assert with_image == in_chat
    assert length > TOKENS + said()[1]
    assert said("--image", str(file), "--no-chat")[0] == in_front


def test_what_is_no_image_and_an_image_without_a_prompt_are_refused(
    kvrt: Kvrt, tmp_path: Path
) -> None:
    refused = kvrt("run", "tiny", "what?", "--image", str(tmp_path / "none.png"))
    assert refused.exit_code == 2
    assert "has no vision tower" in refused.stderr
    both = kvrt("run", "tiny", "--prompts", "-", "--image", "one.png")
    assert both.exit_code == 2
    assert "--image goes with a PROMPT" in both.stderr
