"""One chat template: a Jinja program in its sandbox."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes

from kvrt.errors import ModelError, RequestError
from kvrt.model.chat.bounds import Excess
from kvrt.model.chat.messages import (
    Message,
    checked_messages,
    cut_at_mark,
    join_parts,
    mark_end,
    plain,
)
from kvrt.model.chat.sandbox import Refusal, Sandbox


class ChatTemplate:
    """One chat template.

    Args:
        source: the template.
        file: where it came from, for errors.
        variables: what every rendering sees, e.g. ``bos_token``.

    Raises:
        ModelError: the template is not valid Jinja.
    """

    def __init__(self, source: str, file: str, variables: Mapping[str, str]) -> None:
        self._file = file
        self._variables = dict(variables)
        try:
            self._sandbox = Sandbox()
            tree = self._sandbox.read(source)
            self._takes_parts = _iterates_over_content(tree)
            self._words = {node.value for node in tree.find_all(nodes.Const)}
            self._template = self._sandbox.from_string(tree)
        except Exception as error:  # Python's compiler has errors of its own for what Jinja lets by
            reason = error.message if isinstance(error, jinja2.TemplateError) else None
            raise ModelError(
                f"{file}: chat template is not valid: {reason or type(error).__name__}",
                fix="use a plain prompt, or repair the template",
            ) from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages, add_generation_prompt, continue_final_message: see `Chat`.
            variables: further names the template may read, e.g. ``tools``, ``enable_thinking``.

        Raises:
            RequestError: the messages are not such a list, or the template refuses them.
            ModelError: the template tried to leave the sandbox.
        """
        copied = checked_messages(messages)
        if not self._takes_parts:
            join_parts(copied)
        end = mark_end(copied[-1]) if continue_final_message else None
        given = {name: plain(value, name) for name, value in variables.items()}
        text = self._render(
            {
                **self._variables,
                "tools": None,
                "documents": None,
                **given,
                "messages": copied,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return text if end is None else cut_at_mark(text, end)

    def _render(self, variables: dict[str, Any]) -> str:
        # What a template raises may quote the messages, and so may what Python says of its
        # mistakes: only words that stand in the template itself are passed on.
        try:
            return self._sandbox.render(self._template, variables)
        except jinja2.exceptions.SecurityError as error:
            tried = str(error) if isinstance(error, Excess) else "it tried what is forbidden"
            raise ModelError(
                f"{self._file}: chat template is not safe: {tried}",
                fix="use a plain prompt, or repair the template",
            ) from None
        except Refusal as refusal:
            reason = str(refusal) if str(refusal) in self._words else "it raises an exception"
        except Exception as error:  # a template is a program, and can fail in any way
            reason = f"it fails with {type(error).__name__}"
        raise RequestError(
            f"the model's chat template does not accept these messages: {reason}",
            param="messages",
            fix="templates differ in the roles they know and in what order they want them",
        )


def _iterates_over_content(tree: nodes.Template) -> bool:
    """Whether a template knows content that is a list: it has a loop over some ``content``."""
    names = {"content"}
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
            names.add(assignment.target.name)
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Filter):
        return node.node is not None and _is_content(node.node, names)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names
