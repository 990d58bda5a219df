"""How it travels: in process and as Flower messages.

`flower_psl.transport.flower_messages` is imported only where there is a Grid, so that
the in-process transport needs no flwr.
"""

from flower_psl.transport.in_process import InProcessTransport
from flower_psl.transport.polling import wait_for_nodes
from flower_psl.transport.stream_ticket import StreamSettings
from flower_psl.transport.transport import Device, Transport

__all__ = ["Device", "InProcessTransport", "StreamSettings", "Transport", "wait_for_nodes"]
