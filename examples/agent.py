"""An agent with tools, over OpenAI's API: it goes on until the model calls no tool any more.

    kvrt serve ./Qwen3-0.6B
    python examples/agent.py "What is 17 times 23?"

Any model whose chat template knows tools will do. Each turn begins with the pages of the one
before, so only what is new of the conversation is computed.
"""

import argparse
import json
from collections.abc import Callable
from datetime import date
from typing import Any

import openai

TOOLS: dict[str, tuple[Callable[..., Any], str, dict[str, str]]] = {
    "multiply": (lambda a, b: a * b, "The product of two numbers.", {"a": "number", "b": "number"}),
    "today": (lambda: date.today().isoformat(), "Today's date.", {}),
}
"""A function by its name: what it does, in words, and the types of its arguments."""


def described(name: str) -> Any:
    """A tool as OpenAI's API has it."""
    _, about, types = TOOLS[name]
    parameters = {
        "type": "object",
        "properties": {argument: {"type": kind} for argument, kind in types.items()},
        "required": list(types),
        "additionalProperties": False,
    }
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


def called(name: str, arguments: str) -> str:
    """What a tool says. What is wrong with a call is told the model, which may do better."""
    try:
        return json.dumps(TOOLS[name][0](**json.loads(arguments)))
    except (KeyError, TypeError, ValueError) as error:
        return f"error: {error}"


def ask(client: openai.OpenAI, model: str, question: str, turns: int = 8) -> str:
    """The answer to a question, after at most so many turns.

    Raises:
        RuntimeError: the model went on calling tools.
    """
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(turns):
        answer = client.chat.completions.create(
            model=model, messages=messages, tools=[described(name) for name in TOOLS]
        )
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            assert call.type == "function"
            said = called(call.function.name, call.function.arguments)
            print(f"{call.function.name}({call.function.arguments}) = {said}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": said})
    raise RuntimeError(f"no answer after {turns} turns")


def main() -> None:
    parser = argparse.ArgumentParser(description="An agent with tools.")
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the server's first")
    options = parser.parse_args()
    with openai.OpenAI(base_url=options.url, api_key="none") as client:
        model = options.model or client.models.list().data[0].id
        print(ask(client, model, options.question))


if __name__ == "__main__":
    main()
