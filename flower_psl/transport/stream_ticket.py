"""What a node must know to open its stream; it travels over Flower's own channel."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from flower_psl.errors import ConfigError, ProtocolError
from flower_psl.wire import PROTOCOL_VERSION

# The Flower message that carries a ticket, and the record of it that holds the ticket.
SESSION = "train.psl_session"
TICKET = "psl-ticket"

SERVICE = "flower_psl.Stream"
METHOD = "Exchange"

# A peer that vanished without a word is noticed after about twenty seconds.
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_send_message_length", -1),
)

# gRPC counts a message's bytes in 32 bits.
_LARGEST_FRAME_BYTES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Where the server listens for live connections, and how long it waits for them.

    Attributes
    ----------
    address : str
        ``host:port`` to listen on; port 0 takes any free one. The default is for devices
        on the same machine, a simulation's for example.
    advertise : str
        ``host:port`` that devices connect to, if that is another one: behind NAT, or in a
        container. A port of 0 stands for the one listened on.
    connect_timeout_s : float
        Bound on the wait for all nodes to connect, in seconds.
    reconnect_timeout_s : float
        How long a connection that broke may take to come back, in seconds; after that
        the node counts as failed, and the node itself gives up.
    max_frame_bytes : int
        Largest frame that either side accepts, at most 2**31 - 1.

    Raises
    ------
    ConfigError
        If a value breaks these rules.
    """

    address: str = "127.0.0.1:0"
    advertise: str = ""
    connect_timeout_s: float = 60.0
    reconnect_timeout_s: float = 30.0
    max_frame_bytes: int = 1_000_000_000

    def __post_init__(self) -> None:
        """Refuse values that break the rules."""
        for name in ("address", "advertise"):
            value = getattr(self, name)
            host, _, port = value.rpartition(":")
            if (value or name == "address") and not (host and port.isdecimal()):
                raise ConfigError(
                    f"{name} is {value!r}; it is host:port, such as '0.0.0.0:9200' or "
                    "'127.0.0.1:0' for any free port"
                )
        for name in ("connect_timeout_s", "reconnect_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it is a finite number above 0"
                )
        if (
            not isinstance(self.max_frame_bytes, int)
            or not 0 < self.max_frame_bytes <= _LARGEST_FRAME_BYTES
        ):
            raise ConfigError(
                f"max_frame_bytes is {self.max_frame_bytes!r}; it is an integer from 1 to "
                f"{_LARGEST_FRAME_BYTES}"
            )


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
    certificate : str
        The only root that the node trusts for this connection, PEM.
    token : str
        The node's secret for this run, 256 bits in hexadecimal.
    reconnect_timeout_s : float
        How long the node tries to come back, in seconds.
    max_frame_bytes : int
        Largest frame that the node accepts.
    version : int
        The protocol that the server speaks.
    """

    address: str
    certificate: str
    token: str = field(repr=False)
    reconnect_timeout_s: float
    max_frame_bytes: int
    version: int = PROTOCOL_VERSION

    def to_values(self) -> dict[str, int | float | str]:
        """Return the ticket as small values."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> "Ticket":
        """Return the ticket of `to_values`.

        Raises
        ------
        ProtocolError
            If a value is missing, of another type, or the version is another one.
        """
        kinds = {
            "address": str,
            "certificate": str,
            "token": str,
            "reconnect_timeout_s": float,
            "max_frame_bytes": int,
            "version": int,
        }
        wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
        if wrong or values["version"] != PROTOCOL_VERSION:
            raise ProtocolError(
                f"a ticket for a stream of protocol {values.get('version')!r} with unusable "
                f"{wrong}; this side speaks {PROTOCOL_VERSION}. Install the same flower-psl on "
                "both sides."
            )
        return cls(**{name: values[name] for name in kinds})  # type: ignore[arg-type]
