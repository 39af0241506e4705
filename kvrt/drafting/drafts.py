"""A tree of guesses, as a step computes and verifies it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drafts:
    """A tree of guesses that begins behind a sequence's last token.

    Args:
        tokens: of each node; parents come before their children.
        parents: of each node; -1: it follows the sequence's last token.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    @classmethod
    def of(cls, branches: Sequence[Sequence[int]]) -> "Drafts":
        """Branches whose first tokens differ."""
        tokens: list[int] = []
        parents: list[int] = []
        for branch in branches:
            parents += [-1, *range(len(tokens), len(tokens) + len(branch) - 1)][: len(branch)]
            tokens += branch
        return cls(tuple(tokens), tuple(parents))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> bool:
        """Whether a node does not follow the one before it."""
        return self.parents != tuple(range(-1, len(self.parents) - 1))

    def line(self, node: int) -> list[int]:
        """The tokens from the beginning to `node`."""
        line: list[int] = []
        while node >= 0:
            line.append(self.tokens[node])
            node = self.parents[node]
        return line[::-1]

    def path(self, follows: Callable[[int], int]) -> list[int]:
        """The nodes that came true, in order.

        Args:
            follows: draws the token behind the sequence's last token (-1), or behind a node; asked
                of those that came true only.
        """
        path: list[int] = []
        last, drawn = -1, follows(-1)
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if parent == last and token == drawn:
                path.append(node)
                last, drawn = node, follows(node)
        return path


NO_DRAFTS = Drafts()
