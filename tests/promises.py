"""What kvrt promises about faults, load and bad input, and which test keeps each promise.

    python -m tests.promises      writes docs/promises.md

A test that keeps a promise carries ``@pytest.mark.promise("P1")``. `test_promises.py` fails if the
page is not what this would write, or if a promise listed here has no test.
"""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "promises.md"
FOLDERS = ("tests", "kvrt/testing")

PROMISES = {
    "P1": "Any sequence of allocating, forking, appending, freeing, preempting and resizing keeps "
    "the page table's invariants: free, retired and used pages add up, reference counts equal the "
    "referrers, page 0 is never handed out, and a drained pool is as at the start.",
    "P2": "The bytes read through any page table are those that were written, after forks, "
    "copy-on-write, appends and truncation.",
    "P3": "Being out of pages is a value, with what was needed and what was free; nothing is "
    "partially allocated.",
    "P4": "Memory follows use: an idle cache returns to its floor, but for the pages kept for "
    "prompts to come, which go when nobody used them for the time set; and a limit set "
    "below what is in use is applied as pages come free.",
    "P5": "No two live pages share memory unless they are reference-counted, and a freed page can "
    "never be read as another request's data.",
    "P6": "Memory that goes from one owner to another shows nothing of what it held.",
    "P7": "Memory calls are safe under threads: tested with eight of them, 20,000 calls of each.",
    "P8": "Of processes that share a device's memory, one that is killed, at any moment, holds "
    "nothing a second later: others have its memory, and their answers are as before.",
    "P9": "A server that is killed leaves no process behind for more than two seconds, and the "
    "files by which its models shared memory go when the next one starts.",
    "P10": "A process killed at any call to the system, or at any moment, leaves a folder of KV "
    "pages that opens again and holds whole pages only.",
    "P11": "Who shares a device with another version of kvrt is refused with both versions named, "
    "and the ledger of the others is not touched.",
    "P12": "A store of shared KV pages that never answers, half a frame, a length of 4 GiB, "
    "garbage and crowds of strangers cost whoever meets them their time-out, and nobody else "
    "anything.",
    "P13": "An abort at any state frees its pages; thousands of aborts leak nothing.",
    "P14": "Work for somebody who has left stops within a second: a client that disconnects, "
    "streaming or not, a task that is cancelled, a stream that nobody holds.",
    "P15": "Greedy output is byte-identical alone, in any batch, chunked in any way, preempted "
    "and recomputed or moved, with the pool full, with its prefix cached, evicted and "
    "fetched from host memory or disk, restored from a snapshot, with tokens guessed in "
    "advance, and with any number of threads (native CPU kernels).",
    "P16": "An engine that has work and takes no step for the time set is not ready, by `/readyz`, "
    "and is ready again when it goes on.",
    "P17": "A device call that never returns blocks nobody for ever: aborts and statistics return "
    "at once, closing within its time, and who waits for an answer then gets an error.",
    "P18": "No starvation: every request that fits finishes under any order of arrival; priorities "
    "are honoured.",
    "P19": "The padding of a recorded step writes to the null page and to nothing else.",
    "P20": "A page is never copied out before the compute that writes it is done, never reused "
    "before its copy is done, and never read before it has come back: tested on a device "
    "that puts copies off and keeps account of every wait.",
    "P21": "Stored KV pages that are damaged, truncated, or of other weights (if by one byte), "
    "another dtype, format or version are a miss, and computed again: never another page's "
    "bytes, never a wrong token, never a crash. What other users may have written is not read.",
    "P22": "A disk that is full, slow, read-only, failing or hanging costs stored KV pages and "
    "nothing else: nobody waits for it longer than seconds, one warning an interval, and counts "
    "tell.",
    "P23": "Damaged weights or configurations give a `ModelError` that names file and field, "
    "quickly and in bounded memory.",
    "P24": "An interrupted download resumes, and a partial snapshot is never used as complete.",
    "P25": "Loading a model never executes code from its repository and never unpickles.",
    "P26": "Every number, list, body and header of a request to the server is bounded before it "
    "costs anything; what is refused is refused at once, and disturbs no stream.",
    "P27": "No request can end the engine: what fails for one request ends that request with its "
    "error, and its neighbours say what they say alone.",
    "P28": "Where keys are asked for, every route but the probes needs one, whatever the path, the "
    "method or the headers; where they are not, no web page of another site can ask.",
    "P29": "The server listens at this machine alone; another address without keys is refused.",
    "P30": "Requests with different salts never share KV pages, those with the same do; a salt "
    "that is no short printable text is refused. What a workspace has, no route of the server "
    "tells another.",
    "P31": "A KV page is found by a SHA-256 chain over model, KV format, layout, salt and tokens "
    "that is the same in every process; the tokens themselves are compared, so colliding "
    "hashes are never a wrong answer.",
    "P32": "Nothing that is asked of the server makes a connection to anywhere.",
    "P33": "A batch that is killed at any call that keeps something, or at any moment, and begun "
    "again, ends with each line exactly once in its output or its errors, and counts that add up.",
    "P34": "A batch with a line that cannot be asked is refused with the line's number, and "
    "nothing is asked; one that is cancelled, or whose time is over, keeps what was answered.",
    "P35": "SIGTERM: nothing more is taken, answers end, or are cut at the deadline with an error "
    "event, and the exit code is 0; a second one ends the process at once.",
    "P36": "A broken plug-in never breaks the command line, `kvrt doctor` or other backends; "
    "choosing it fails with exit code 4 and its reason.",
    "P37": "Every backend passes the same conformance suite, which any author can run by name.",
    "P38": "`import kvrt` takes under 150 ms, loads no torch, starts no thread, touches no device.",
    "P39": "Minutes of requests with aborts, lost callers, changing limits, pins and snapshots "
    "leave no page, thread or descriptor behind, and memory stays where it was.",
    "P40": "Metrics equal what was answered, and counters never fall.",
    "P41": "Logs (at INFO and above) and errors contain no text of prompts, no stop strings and no "
    "salts.",
    "P42": "Environment variables that are named like a service, such as KVRT_PORT, change "
    "nothing.",
    "P43": "A store of shared KV pages, or a way there, that is cut, silent, slow, of another "
    "version, without the key, or sends anything else than what was asked for, costs pages and the "
    "time set: never a wrong token, memory without bound, or the engine's time.",
    "P44": "An answer that moves to another server goes on there with the tokens and the text that "
    "it would have had, and its client does not notice.",
}


def keepers() -> dict[str, list[str]]:
    """The tests that keep each promise, as pytest ids without parameters."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("test_*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign):
                    name = getattr(node, "name", "")
                    marks = getattr(node, "decorator_list", None) or [getattr(node, "value", None)]
                    for mark in marks:
                        for promise in _promises(mark):
                            place = path.relative_to(ROOT).as_posix()
                            found[promise].append(f"{place}::{name}" if name else place)
    return found


def _promises(mark: ast.AST | None) -> list[str]:
    """The promises that a ``pytest.mark.promise("P1")`` names, alone or in a ``pytestmark``."""
    return [
        argument.value
        for call in (ast.walk(mark) if mark is not None else ())
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "promise"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    ]


def page() -> str:
    lines = [
        "# Promises",
        "",
        "What kvrt promises about faults, load and bad input, each with the tests that keep it.",
        "Written by `python -m tests.promises` from the tests' own marks.",
    ]
    kept = keepers()
    for number, text in PROMISES.items():
        lines += ["", f"## {number}", "", text, ""]
        lines += [f"- `{test}`" for test in kept[number]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
