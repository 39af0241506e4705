"""What is cached, told to routers in the format that vLLM tells it in.

    from kvrt.integrations.events import EventPublisher

    with kvrt.Runtime("./model") as runtime, EventPublisher("tcp://*:5557") as publisher:
        publisher.follow(runtime)

Needs the extra ``kvrt[events]``. Who only reads what others tell, by `wire`, loads no engine.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvrt.integrations.events.publisher import EventPublisher

__all__ = ["EventPublisher"]


def __getattr__(name: str) -> object:
    if name == "EventPublisher":
        from kvrt.integrations.events.publisher import EventPublisher

        return EventPublisher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
