import pytest

from flower_psl import ProtocolError
from flower_psl.transport.stream_ticket import Ticket, channel_options, check_length

TICKET = Ticket(
    address="10.0.0.1:9200",
    session="a1b2",
    certificate="-----BEGIN CERTIFICATE-----",
    server_name="flower-psl",
    token="5ec7e7",
    reconnect_timeout_s=30.0,
    max_frame_bytes=1000,
)


def test_a_ticket_comes_back_as_it_was() -> None:
    assert Ticket.from_values(TICKET.to_values()) == TICKET


def test_a_ticket_does_not_show_its_token() -> None:
    assert "5ec7e7" not in repr(TICKET)
    assert "10.0.0.1:9200" in repr(TICKET)


@pytest.mark.parametrize("name", list(TICKET.to_values()))
def test_a_ticket_without_a_value_is_refused_by_name(name: str) -> None:
    values = {key: value for key, value in TICKET.to_values().items() if key != name}
    with pytest.raises(ProtocolError, match=rf"unusable \['{name}'\].*Install the same"):
        Ticket.from_values(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [("address", 1), ("token", b"5ec7e7"), ("reconnect_timeout_s", "30"), ("version", None)],
)
def test_a_ticket_with_another_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=rf"unusable \['{name}'\]"):
        Ticket.from_values({**TICKET.to_values(), name: value})


def test_a_ticket_of_another_protocol_is_refused() -> None:
    values = {**TICKET.to_values(), "version": 99}
    with pytest.raises(
        ProtocolError, match=r"protocol 99 .*this side speaks \d+. Install the same flower-psl"
    ):
        Ticket.from_values(values)


@pytest.mark.parametrize("address", ["10.0.0.1:9200", "server.example:9200", "0.0.0.0:9200"])
def test_a_ticket_for_plain_text_to_another_machine_is_refused(address: str) -> None:
    plain = {**TICKET.to_values(), "certificate": "", "server_name": ""}
    with pytest.raises(
        ProtocolError, match=f"plain text to '{address}'; plain text stays on one .* Leave plain_t"
    ):
        Ticket.from_values({**plain, "address": address})
    assert Ticket.from_values({**plain, "address": "127.0.0.1:9200"}).certificate == ""


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("reconnect_timeout_s", 0.0, "reconnect_timeout_s 0.0"),
        ("reconnect_timeout_s", float("nan"), "reconnect_timeout_s nan"),
        ("reconnect_timeout_s", float("inf"), "reconnect_timeout_s inf"),
        ("max_frame_bytes", -1, "max_frame_bytes -1"),  # for gRPC: no limit
        ("max_frame_bytes", 2**31, "max_frame_bytes 2147483648"),
        ("num_nodes", -1, "num_nodes -1"),
    ],
)
def test_a_ticket_whose_bounds_are_none_is_refused(name: str, value: float, shown: str) -> None:
    with pytest.raises(ProtocolError, match=f"a ticket with .*{shown}.* Install the same"):
        Ticket.from_values({**TICKET.to_values(), name: value})


@pytest.mark.parametrize(
    ("reconnect_timeout_s", "interval_ms"), [(3600, 10_000), (30, 7_500), (8, 2_000), (0.3, 1_000)]
)
def test_a_dead_peer_is_noticed_in_half_of_the_time_it_has_to_come_back(
    reconnect_timeout_s: float, interval_ms: int
) -> None:
    options = dict(channel_options(reconnect_timeout_s, max_frame_bytes=1000))
    for name in ("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms"):
        assert options[f"grpc.{name}"] == interval_ms
    # Else the server would end a connection for its pings.
    assert options["grpc.http2.min_ping_interval_without_data_ms"] < interval_ms
    assert options["grpc.max_receive_message_length"] == 1000


def test_a_frame_that_is_too_long_is_not_sent() -> None:
    check_length(b"123", 3, "the reply")
    with pytest.raises(
        ProtocolError,
        match=r"the reply is a frame of 4 bytes; max_frame_bytes is 3. Raise it, or take smaller",
    ):
        check_length(b"1234", 3, "the reply")
