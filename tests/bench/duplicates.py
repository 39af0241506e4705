"""Near duplicates by kvrt and by datasketch, on the same rows: found, processor's time, memory.

    python -m tests.bench.duplicates --peer PYTHON --rows 10000

PYTHON is one that has datasketch, and kvrt's numpy, msgspec and xxhash; each runs in a process of
its own.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEAR, WORDS = 0.8, 100


def write(path: Path, rows: int) -> None:
    """Every fifth row is the one before it with one word changed: 0.9 or more in common."""
    draw, words = random.Random(1), ["w"]
    with path.open("w") as file:
        for number in range(rows):
            if number % 5 == 4:
                words = list(words)
                words[draw.randrange(WORDS)] = "zz"
            else:
                words = [f"w{draw.randrange(5000)}" for _ in range(WORDS)]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


def ours(path: Path) -> int:
    from kvrt.data.duplicates import duplicates
    from kvrt.data.reading import Reader

    with Reader(path) as reader, duplicates(path, "all", NEAR) as found:
        return sum(found.find(row) is not None for row in reader)


def datasketch(path: Path) -> int:
    from datasketch import MinHash, MinHashLSH

    index, gone = MinHashLSH(threshold=NEAR, num_perm=128), 0
    with path.open() as file:
        for number, line in enumerate(file):
            words = json.loads(line)["text"].split()
            runs = [" ".join(words[at : at + 5]).encode() for at in range(len(words) - 4)]
            made = MinHash(num_perm=128)
            made.update_batch(runs)
            if index.query(made):
                gone += 1
            else:
                index.insert(number, made)
    return gone


WAYS = {"kvrt": ours, "datasketch": datasketch}


def measure(name: str, path: Path) -> None:
    begun = time.process_time()
    gone = WAYS[name](path)
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"| {name} | {gone} | {seconds:.2f} s | {peak} MiB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--path", type=Path)
    args = parser.parse_args()
    if args.way:
        measure(args.way, args.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.jsonl"
        write(path, args.rows)
        print(f"{args.rows} rows, {args.rows // 5} of them duplicates\n")
        print("| | found | processor's time | peak memory |\n| --- | --- | --- | --- |", flush=True)
        for name in (*WAYS, *WAYS):
            module = ["-m", "tests.bench.duplicates", "--way", name, "--path", str(path)]
            subprocess.run([args.peer, *module], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
