"""`kvrt batch run` on the bundled model, killed again and again.

    python killing.py SEED KILLS LINES ARGUMENTS...

Whatever takes long to import is imported once; each run is a fork of that.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

TOKENS = 3


class Killing:
    """One batch, whatever it takes.

    Args:
        folder: of its files.
        lines: of the input.
        seed: of the moments of the kills.
    """

    def __init__(self, folder: Path, lines: int, seed: int) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.lines = lines
        self.seed = seed
        self.kills = 0
        rng = random.Random(seed)
        with self.input.open("w") as file:
            for n in range(lines):
                text = "".join(rng.choices("abcdef \n", k=rng.randint(2, 12)))
                most = -1 if n % 50 == 7 else TOKENS
                body = {"model": "tiny", "prompt": text, "max_tokens": most}
                line = {"custom_id": f"n{n}", "method": "POST", "url": "/v1/completions"}
                file.write(json.dumps({**line, "body": body}) + "\n")

    def run(self, kills: int) -> None:
        """Kill it so often, then let it end."""
        arguments = ["batch", "run", "tiny", "-i", str(self.input), "-o", str(self.output),
                     "--backend", "cpu", "-q", "--max-running", "4"]  # fmt: skip
        command = [sys.executable, __file__, str(self.seed), str(kills), str(self.lines)]
        ran = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        self.kills = int(ran.stdout)

    def check(self) -> None:
        """Each line is answered once, and all with what would have been said anyway."""
        good, bad = (
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in (self.output, self.output.with_name("out.errors.jsonl"))
        )
        wrong = [n for n in range(self.lines) if n % 50 == 7]
        assert [each["custom_id"] for each in bad] == [f"n{n}" for n in wrong]
        assert {each["response"]["status_code"] for each in bad} == {400}
        right = [n for n in range(self.lines) if n % 50 != 7]
        assert [each["custom_id"] for each in good] == [f"n{n}" for n in right]
        assert {each["response"]["status_code"] for each in good} == {200}
        said = Counter(each["response"]["body"]["usage"]["completion_tokens"] for each in good)
        assert max(said) == TOKENS
        assert len({each["response"]["body"]["id"] for each in good}) == len(good)


def main(seed: int, kills: int, lines: int, arguments: list[str]) -> None:
    """Fork, let it come so far, kill it; at last, let it end."""
    import kvrt_cli.batch
    import kvrt_cli.main

    import kvrt.runtime
    import kvrt.server.batches.local  # noqa: F401

    rng = random.Random(seed)
    state = Path(arguments[arguments.index("-o") + 1] + ".state")
    count = 0
    while True:
        child = os.fork()
        if not child:
            try:
                kvrt_cli.main.cli.main(arguments)
            except SystemExit as end:
                os._exit(int(end.code or 0))
        if count < kills and _came_so_far(child, state, rng, lines // (4 * kills)):
            os.kill(child, signal.SIGKILL)
            count += 1
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
    assert os.waitstatus_to_exitcode(status) == 1, "some lines are bad"
    print(count)


def _came_so_far(child: int, state: Path, rng: random.Random, lines: int) -> bool:
    """Wait until some lines were answered, then for a moment. False: it has ended before."""
    wanted, begun = rng.randint(0, lines), _size(state)
    end = time.monotonic() + 120
    while _size(state) - begun < wanted * 400:  # about the bytes of an answer
        assert time.monotonic() < end, "it does not go on"
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.001)
    time.sleep(rng.random() * 0.02)
    return True


def _size(state: Path) -> int:
    return sum(path.stat().st_size for path in state.glob("journals/*"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4:])
