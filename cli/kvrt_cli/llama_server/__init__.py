"""``kvrt llama-server``.

options  words of llama-server's command line that kvrt has something for
words    those that it has nothing for: passed over, or refused by name
command  what is served
"""

from kvrt_cli.llama_server.command import llama_server

__all__ = ["llama_server"]
