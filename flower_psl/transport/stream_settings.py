"""Where the server listens for live connections, how it proves itself, how long it waits."""

from dataclasses import dataclass

from flower_psl.errors import ConfigError
from flower_psl.transport.loopback import is_loopback
from flower_psl.transport.stream_ticket import LARGEST_FRAME_BYTES


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
    certificate_file, key_file : str
        Paths of a certificate (a chain of them, its own first) and its private key, PEM.
        Devices then check that it is for the host that they connect to. Without them the
        server makes a certificate for each run, which holds for whatever address.
    root_certificates_file : str
        Path of the roots that devices trust for `certificate_file`, PEM; without it, what
        `certificate_file` holds.
    plain_text : bool
        Neither encrypt nor prove anything. Only between processes of one machine: every
        address must be a loopback address.
    shared_memory : bool
        Whether nodes on this machine and the server exchange frames through pipes, and long
        tensors through memory that they share. The system lets only processes of the server's
        own user open these; any other node is served over the connection alone.
    connect_timeout_s : float
        Bound on the wait for the next node to connect, in seconds.
    reconnect_timeout_s : float
        How long a connection that broke may take to come back, in seconds; after that
        the node counts as failed, and the node itself gives up. A peer that vanished
        without a word is noticed within half of it, but not within less than two seconds:
        below four, only connections that are seen to break come back.
    max_frame_bytes : int
        Largest frame that either side accepts, at most 2**31 - 1. No step needs more than
        the client segment, or one client's part of a batch of activations; how large these
        are, the server knows of the first only, so the default is a generous ceiling.

    Raises
    ------
    ConfigError
        If a value breaks these rules.
    """

    address: str = "127.0.0.1:0"
    advertise: str = ""
    certificate_file: str = ""
    key_file: str = ""
    root_certificates_file: str = ""
    plain_text: bool = False
    shared_memory: bool = True
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
            or not 0 < self.max_frame_bytes <= LARGEST_FRAME_BYTES
        ):
            raise ConfigError(
                f"max_frame_bytes is {self.max_frame_bytes!r}; it is an integer from 1 to "
                f"{LARGEST_FRAME_BYTES}"
            )
        self._check_certificate_files()
        if self.plain_text:
            self._check_plain_text()

    def _check_certificate_files(self) -> None:
        if bool(self.certificate_file) != bool(self.key_file):
            raise ConfigError(
                f"certificate_file is {self.certificate_file!r} and key_file is "
                f"{self.key_file!r}; a certificate and its key go together. Give both, or "
                "neither for a certificate that is made for the run."
            )
        if self.root_certificates_file and not self.certificate_file:
            raise ConfigError(
                f"root_certificates_file is {self.root_certificates_file!r}, but there is no "
                "certificate_file for these roots to vouch for. Give certificate_file and "
                "key_file too, or leave it out."
            )

    def _check_plain_text(self) -> None:
        for name in ("address", "advertise"):
            value = getattr(self, name)
            if value and not is_loopback(value):
                raise ConfigError(
                    f"plain_text is set and {name} is {value!r}; plain text stays on one machine. "
                    "Leave plain_text out, or use a loopback address such as '127.0.0.1:0'."
                )
        if self.certificate_file:
            raise ConfigError(
                f"plain_text is set and certificate_file is {self.certificate_file!r}; plain text "
                "has no use for a certificate. Leave one of them out."
            )
