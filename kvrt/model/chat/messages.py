"""The messages of a conversation, checked and brought into the form that templates expect."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvrt.errors import RequestError

Message = Mapping[str, Any]

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What the reasoning in a message is called; the first is what most templates read."""

SPEAK = ("system", "developer", "user", "assistant")
"""Who says texts. What tools answer may be an object, which some templates write as JSON."""

MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands at the end of a message that is to be continued, to find that place in the prompt. As in
transformers, with a space that shows whether the template trims."""


def plain(value: Any, where: str) -> Any:
    """A copy of JSON-like data, so that a template sees nothing else.

    Args:
        where: what it is part of, for the error.

    Raises:
        RequestError: there is something else in it.
    """
    try:
        return _plain(value, where)
    except RecursionError:
        raise RequestError(f"{where} is nested too deeply", param=where) from None


def checked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A copy of messages in which nothing is null, and reasoning has the name templates read.

    Raises:
        RequestError: they are not messages.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("messages must be a list with at least one message", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"message {index} must be an object with a role that is a string",
                param=f"messages[{index}]",
            )
    return [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]


def join_parts(messages: Sequence[dict[str, Any]]) -> None:
    """Write content that is a list of texts as one text, for templates that know no lists."""
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = "".join(part["text"] for part in message["content"])


def mark_end(message: dict[str, Any]) -> str:
    """Put `MARK` at the end of a message's content, or of its last part; returns it without.

    Raises:
        RequestError: it has no text.
    """
    content = message.get("content")
    if isinstance(content, list) and content:
        text: str = content[-1]["text"]
        content[-1]["text"] = text + MARK
    elif isinstance(content, str):
        text = content
        message["content"] = text + MARK
    else:
        raise RequestError(
            "continue_final_message: the last message has no content to continue",
            param="continue_final_message",
        )
    return text


def cut_at_mark(prompt: str, text: str) -> str:
    """The prompt up to where the last message's content ends, which is `text`.

    Raises:
        RequestError: the template leaves that message out.
    """
    at = prompt.rfind(MARK.strip())
    if at < 0 or text.strip() not in prompt:
        raise RequestError(
            "continue_final_message: the model's chat template does not write the last message as"
            " it is",
            param="continue_final_message",
        )
    before = prompt[:at]
    return before if prompt.startswith(MARK, at) else before.rstrip()


def _checked(message: Message, where: str) -> dict[str, Any]:
    copied = {name: value for name, value in plain(message, where).items() if value is not None}
    content = copied.get("content", "")
    if isinstance(content, list):
        copied["content"] = [text_part(part, where) for part in content]
    elif not isinstance(content, str if copied["role"] in SPEAK else str | dict):
        raise RequestError(
            f"{where} has content that is neither a text nor a list of parts",
            param=f"{where}.content",
        )
    reasoning = next((copied[name] for name in REASONING if name in copied), None)
    if reasoning is None:
        return copied
    return {"thinking": reasoning, **copied, "reasoning_content": reasoning}


def text_part(part: Any, where: str) -> dict[str, Any]:
    """A copy of a part of a message's content that is a list.

    Args:
        where: the message that it is part of, for the error.

    Raises:
        RequestError: it is no text.
    """
    is_text = isinstance(part, dict) and part.get("type", "text") in ("text", "image")
    if not is_text or not isinstance(part.get("text"), str):
        raise RequestError(
            f'{where} has content other than text; a part is {{"type": "text", "text": "..."}}',
            param=f"{where}.content",
            fix="leave sounds and videos out; images are parts as docs/images.md says",
        )
    return dict(part)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError(f"{where} has a key that is no string", param=where)
        return {str.__str__(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise RequestError(
        f"{where} holds a {type(value).__name__}; it may hold what JSON can", param=where
    )
