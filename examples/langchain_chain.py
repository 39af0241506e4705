"""LangChain over `kvrt serve`: a chain whose answer comes as a stream.

pip install langchain-openai
kvrt serve ./Qwen3-0.6B
python examples/langchain_chain.py "the sea"
"""

import argparse

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description="A chain of LangChain.")
    parser.add_argument("subject")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="Qwen3-0.6B")
    options = parser.parse_args()
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You answer in one sentence."), ("user", "Say something about {subject}.")]
    )
    model = ChatOpenAI(base_url=options.url, api_key="none", model=options.model, max_tokens=64)
    for piece in (prompt | model | StrOutputParser()).stream({"subject": options.subject}):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
