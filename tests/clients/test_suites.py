"""The test suites of OpenAI's and Anthropic's Python clients and of llama.cpp's server."""

import pytest

from tests.clients.conftest import Clients, check_outcomes
from tests.server.conftest import Server

pytestmark = [pytest.mark.extra, pytest.mark.timeout(1800)]

NO_SUCH = "it names a file or a batch that was never made"
KEPT = "nothing is kept, so that nothing can be fetched, changed, listed or deleted"
ASKS = "test_(method|raw_response|streaming_response)"  # others ask no server
OPENAI_UNMET = {
    rf"chat\.test_completions.*{ASKS}_(retrieve|update|list|delete)": KEPT,
    rf"test_models.*{ASKS}_delete": "a server's models are not its clients' to delete",
    r"test_embeddings.*_create\[": "the client asks for base64, which it then does not take",
    r"api_resources\.test_completions.*with_all_params": "suffix is refused",
    rf"test_responses.*{ASKS}_(retrieve|delete|cancel|compact)": KEPT,
    r"(test_responses|test_input_tokens).*with_all_params": "previous_response_id is refused",
    r"test_responses.*_create": "a request that names no model and no input is refused",
    r"test_input_tokens.*_count": "a request that names no model and no input is refused",
    rf"test_(files|batches).*{ASKS}_(retrieve|delete|cancel)": NO_SUCH,
    rf"test_batches.*{ASKS}_create": NO_SUCH,
    r"test_(files|batches).*list_with_all_params": "it asks for a page of no entries",
}
OPENAI_FILES = ("chat/test_completions", "test_completions", "test_models", "test_embeddings",
                "test_responses", "responses/test_input_tokens", "test_files",
                "test_batches")  # fmt: skip


def test_openais_client_takes_every_answer_for_what_it_should_be(
    clients: Clients, speaking: Server
) -> None:
    """Its tests of our routes, in strict validation; their other server is ours."""
    folder, env = clients.source("openai"), {"TEST_API_BASE_URL": f"{speaking.url}/v1"}
    files = [f"tests/api_resources/{name}.py" for name in OPENAI_FILES]
    outcomes = clients.outcomes(folder, files, env, "-k", "strict")
    assert sum(not wrong for wrong in outcomes.values()) >= 60
    check_outcomes(outcomes, OPENAI_UNMET)


def test_anthropics_client_takes_every_answer_for_what_it_should_be(
    clients: Clients, speaking: Server
) -> None:
    folder, env = clients.source("anthropic"), {"TEST_API_BASE_URL": speaking.url}
    files = [f"tests/api_resources/test_{name}.py" for name in ("messages", "models")]
    outcomes = clients.outcomes(folder, files, env, "-k", "strict")
    assert len(outcomes) >= 44
    check_outcomes(outcomes, {})


LLAMA_UNMET = {
    r"with_image|_vision": "images are refused",
    r"empty_messages": "it waits for an internal error where a bad request is one",
    r"invalid_chat_completion_req\[messages7\]": "two answers in a row are a conversation, too",
    r"thinking_history": "it needs a template that shows old reasoning",
}
LLAMA_FREE = "compat_anthropic or invalid_chat or mutual_exclusion or detokenize or invalid_input"
"""Tests that need neither the words of one model nor what llama.cpp's server alone has."""


def test_what_llama_cpps_server_is_held_to_and_any_server_can_meet(
    clients: Clients, speaking: Server
) -> None:
    folder = clients.source("llama_cpp_python") / "vendor/llama.cpp/tools/server/tests"
    env = {"DEBUG_EXTERNAL": "1", "PORT": str(speaking.port)}
    names = ("compat_anthropic", "chat_completion", "tokenize", "embedding")
    files = [f"unit/test_{name}.py" for name in names]
    outcomes = clients.outcomes(folder, files, env, "-m", "not slow", "-k", LLAMA_FREE)
    assert sum(not wrong for wrong in outcomes.values()) >= 37
    check_outcomes(outcomes, LLAMA_UNMET)
