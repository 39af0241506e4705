"""Prints what is tried of the pages' commands, and what is not, with the reasons.

python -m tests.docs
"""

from collections import Counter, defaultdict

from .pages import blocks_of, pages
from .shell import typed


def main() -> None:
    count: Counter[str] = Counter()
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for page in pages():
        for block in blocks_of(page):
            if block.is_shell:
                lines = typed(block)
                count["blocks"] += 1
                count["blocks of which nothing runs"] += all(line.why for line in lines)
                count["lines"] += len(lines)
                count["lines that run"] += sum(not line.why for line in lines)
                for line in lines:
                    if line.why:
                        reasons[line.why].append(f"{line.where}: {line.text.splitlines()[0]}")
    print(", ".join(f"{number} {what}" for what, number in count.items()))
    for why, lines in sorted(reasons.items()):
        print(f"\n{why}:", *lines, sep="\n    ")


if __name__ == "__main__":
    main()
