"""What a node must know to open its stream; it travels over Flower's own channel."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from flower_psl.errors import ProtocolError
from flower_psl.transport.loopback import is_loopback
from flower_psl.wire import PROTOCOL_VERSION

# The Flower message that carries a ticket, and the record of it that holds the ticket.
SESSION = "train.psl_session"
TICKET = "psl-ticket"

SERVICE = "flower_psl.Stream"
METHOD = "Exchange"

# The key of a call's metadata that holds the first HELLO of a stream.
HELLO = "psl-hello-bin"

_LONGEST_PING_INTERVAL_S = 10.0
_SHORTEST_PING_INTERVAL_S = 1.0


_WINDOW_BYTES = 1_048_576

# gRPC counts a message's bytes in 32 bits.
LARGEST_FRAME_BYTES = 2**31 - 1


def channel_options(reconnect_timeout_s: float, max_frame_bytes: int) -> list[tuple[str, int]]:
    """Return what both ends of a stream tell gRPC.

    A peer that vanished without a word is noticed after two ping intervals, that is within
    half of the time it has to come back: its old connection must be known to be dead before
    a new one of the same node is let in.

    Parameters
    ----------
    reconnect_timeout_s : float
        How long a connection that broke may take to come back, in seconds.
    max_frame_bytes : int
        Largest frame that this end accepts.
    """
    interval_s = min(
        max(reconnect_timeout_s / 4, _SHORTEST_PING_INTERVAL_S), _LONGEST_PING_INTERVAL_S
    )
    interval_ms = int(1000 * interval_s)
    return [
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", interval_ms),
        # Else a server waits for a minute, whatever its keepalive timeout is.
        ("grpc.http2.ping_timeout_ms", interval_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", interval_ms // 2),
        # A part of a batch is far longer than HTTP/2's first window and frames of 16 KB.
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.http2.max_frame_size", _WINDOW_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", max_frame_bytes),
    ]


def check_length(data: bytes, max_frame_bytes: int, what: str) -> None:
    """Refuse to send a frame that the other side would end the stream for.

    Raises
    ------
    ProtocolError
        If it is longer than `max_frame_bytes`.
    """
    if len(data) > max_frame_bytes:
        raise ProtocolError(
            f"{what} is a frame of {len(data)} bytes; max_frame_bytes is {max_frame_bytes}. "
            "Raise it, or take smaller batches."
        )


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One node's admission to the stream of one run.

    Attributes
    ----------
    address : str
        ``host:port`` of the server.
    session : str
        What tells this run's stream from any other's.
    certificate : str
        The only roots that the node trusts for this connection, PEM; empty for plain text,
        which is spoken on loopback addresses only.
    server_name : str
        The name that the server's certificate must hold for; empty for the address's host.
    token : str
        The node's secret for this run, 256 bits in hexadecimal.
    reconnect_timeout_s : float
        How long the node tries to come back, in seconds.
    max_frame_bytes : int
        Largest frame that the node accepts.
    version : int
        The protocol that the server speaks.
    num_nodes : int
        Nodes that the processes of a simulation share evenly; 0 if whichever process gets
        the ticket must serve the node.

    Raises
    ------
    ProtocolError
        If it is for plain text to another machine, or a bound is none.
    """

    address: str
    session: str
    certificate: str
    server_name: str
    token: str = field(repr=False)
    reconnect_timeout_s: float
    max_frame_bytes: int
    version: int = PROTOCOL_VERSION
    num_nodes: int = 0

    def __post_init__(self) -> None:
        """Refuse to speak plain text over a network, whoever asks for it."""
        if not self.certificate and not is_loopback(self.address):
            raise ProtocolError(
                f"a ticket for plain text to {self.address!r}; plain text stays on one machine. "
                "Leave plain_text out of the server's stream settings."
            )
        if (
            not 0 < self.reconnect_timeout_s < math.inf
            or not 0 < self.max_frame_bytes <= LARGEST_FRAME_BYTES
            or self.num_nodes < 0
        ):
            raise ProtocolError(
                f"a ticket with reconnect_timeout_s {self.reconnect_timeout_s}, max_frame_bytes "
                f"{self.max_frame_bytes} and num_nodes {self.num_nodes}; they are finite and "
                f"above 0, 1 to {LARGEST_FRAME_BYTES}, and 0 or more. Install the same "
                "flower-psl on both sides."
            )

    def to_values(self) -> dict[str, int | float | str]:
        """Return the ticket as small values."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> "Ticket":
        """Return the ticket of `to_values`.

        Raises
        ------
        ProtocolError
            If a value is missing, of another type, or the version is another one; or as the
            class does.
        """
        kinds = {
            "address": str,
            "session": str,
            "certificate": str,
            "server_name": str,
            "token": str,
            "reconnect_timeout_s": float,
            "max_frame_bytes": int,
            "version": int,
            "num_nodes": int,
        }
        wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
        if wrong or values["version"] != PROTOCOL_VERSION:
            raise ProtocolError(
                f"a ticket for a stream of protocol {values.get('version')!r} with unusable "
                f"{wrong}; this side speaks {PROTOCOL_VERSION}. Install the same flower-psl on "
                "both sides."
            )
        return cls(**{name: values[name] for name in kinds})  # type: ignore[arg-type]
