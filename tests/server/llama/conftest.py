"""A real `kvrt llama-server`."""

from collections.abc import Iterator

import pytest

from tests.server.conftest import Server, launch, listening

TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n\n"
    "{% endfor %}{% if tools %}Tools: {{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
OPTIONS = ("-ngl", "0", "--port", "0", "--metrics", "--props", "-np", "2", "-c", "2048")


@pytest.fixture(scope="session")
def face(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests, of the bundled model; the log says what was passed over."""
    log = tmp_path_factory.mktemp("llama-server") / "log"
    more = ("--chat-template", TEMPLATE, "--mlock", "-fa", "on", "--memory-limit", "256MiB")
    server = launch(log, "-m", "tiny", *OPTIONS, *more, command="llama-server")
    with listening(server):
        yield server
