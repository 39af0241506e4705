"""LangChain's standard tests of chat models, for each of its clients that this server answers.

Run by `tests/clients/test_langchain.py` with LangChain's own pytest. SERVER is a server's address;
FREE is that of one whose model calls tools without having to.
"""

import os
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

SERVER, FREE = os.environ["SERVER"], os.environ["FREE"]
OPENAI = {
    "model": "speaker",
    "base_url": f"{SERVER}/v1",
    "api_key": "none",
    "max_retries": 0,
    "temperature": 0,
}


class OfChats(ChatModelIntegrationTests):
    """What all of them can."""

    supports_json_mode = True
    supports_anthropic_inputs = False
    model_override_value = "another"


class TestChats(OfChats):
    chat_model_class = ChatOpenAI
    chat_model_params = {**OPENAI, "stream_usage": True}  # noqa: RUF012
    structured_output_kwargs = {"method": "json_schema"}  # noqa: RUF012


class TestFunctionCalling(OfChats):
    chat_model_class = ChatOpenAI
    chat_model_params = {**OPENAI, "stream_usage": True}  # noqa: RUF012
    structured_output_kwargs = {"method": "function_calling"}  # noqa: RUF012


class TestResponses(OfChats):
    chat_model_class = ChatOpenAI
    chat_model_params = {**OPENAI, "use_responses_api": True}  # noqa: RUF012
    structured_output_kwargs = {"method": "json_schema"}  # noqa: RUF012


class TestMessages(OfChats):
    chat_model_class = ChatAnthropic
    chat_model_params: Any = {  # noqa: RUF012
        "model": "speaker", "base_url": SERVER, "api_key": "none", "max_retries": 0,
        "temperature": 0,
    }  # fmt: skip
    supports_json_mode = False
    supports_anthropic_inputs = True


class TestOllama(OfChats):
    chat_model_class = ChatOllama
    chat_model_params = {"model": "speaker", "base_url": FREE, "temperature": 0}  # noqa: RUF012
    has_tool_choice = False
