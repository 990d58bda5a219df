import re
from typing import Any

import pytest

from flower_psl import ConfigError, ProtocolError
from flower_psl.transport.stream_ticket import StreamSettings, Ticket, check_length

TICKET = Ticket(
    address="10.0.0.1:9200",
    certificate="-----BEGIN CERTIFICATE-----",
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
        ProtocolError, match=r"protocol 99 .*this side speaks 1. Install the same flower-psl"
    ):
        Ticket.from_values(values)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "0.0.0.0:9200", "[::]:9200", "host:1"])
def test_addresses_are_host_and_port(address: str) -> None:
    assert StreamSettings(address=address, advertise=address).address == address


@pytest.mark.parametrize("name", ["address", "advertise"])
@pytest.mark.parametrize("value", ["localhost", ":9200", "host:", "host:ssh", "host:-1"])
def test_an_address_that_is_none_is_refused(name: str, value: str) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; it is host:port, such as"):
        StreamSettings(**settings)


def test_only_the_advertised_address_may_be_empty() -> None:
    assert StreamSettings().advertise == ""
    with pytest.raises(ConfigError, match="address is ''; it is host:port"):
        StreamSettings(address="")


@pytest.mark.parametrize("name", ["connect_timeout_s", "reconnect_timeout_s"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; it is a finite number above 0"):
        StreamSettings(**settings)


@pytest.mark.parametrize("value", [0, -1, 1e6, 2**31, "1000"])
def test_a_frame_size_that_is_none_is_refused(value: Any) -> None:
    reason = f"max_frame_bytes is {value!r}; it is an integer from 1 to 2147483647"
    with pytest.raises(ConfigError, match=re.escape(reason)):
        StreamSettings(max_frame_bytes=value)


def test_a_frame_that_is_too_long_is_not_sent() -> None:
    check_length(b"123", 3, "the reply")
    with pytest.raises(
        ProtocolError,
        match=r"the reply is a frame of 4 bytes; max_frame_bytes is 3. Raise it, or take smaller",
    ):
        check_length(b"1234", 3, "the reply")
