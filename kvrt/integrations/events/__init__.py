"""What is cached, told to routers in the format that vLLM tells it in.

    from kvrt.integrations.events import EventPublisher

    with kvrt.Runtime("./model") as runtime, EventPublisher("tcp://*:5557") as publisher:
        publisher.follow(runtime)

Needs the extra ``kvrt[events]``.
"""

from kvrt.integrations.events.publisher import EventPublisher

__all__ = ["EventPublisher"]
