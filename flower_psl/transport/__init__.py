"""How it travels: in process, over live connections, and as Flower messages.

What needs flwr or grpc is imported from its own module, so that the in-process transport
needs neither.
"""

from flower_psl.transport.answers import Answers
from flower_psl.transport.in_process import InProcessTransport
from flower_psl.transport.polling import wait_for_nodes
from flower_psl.transport.stream_settings import StreamSettings
from flower_psl.transport.transport import Device, Transport, exchange_in_portions

__all__ = [
    "Answers",
    "Device",
    "InProcessTransport",
    "StreamSettings",
    "Transport",
    "exchange_in_portions",
    "wait_for_nodes",
]
