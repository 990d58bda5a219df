import re
from typing import Any

import pytest

from flower_psl import ConfigError
from flower_psl.transport.stream_settings import StreamSettings


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


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"certificate_file": "/a.crt"},
            "certificate_file is '/a.crt' and key_file is ''; a certificate and its key go "
            "together. Give both, or neither",
        ),
        (
            {"key_file": "/a.key"},
            "certificate_file is '' and key_file is '/a.key'; a certificate and its key",
        ),
        (
            {"root_certificates_file": "/ca.crt"},
            "root_certificates_file is '/ca.crt', but there is no certificate_file for these "
            "roots to vouch for. Give certificate_file and key_file too, or leave it out",
        ),
        (
            {"plain_text": True, "certificate_file": "/a.crt", "key_file": "/a.key"},
            "plain_text is set and certificate_file is '/a.crt'; plain text has no use for a "
            "certificate. Leave one of them out",
        ),
    ],
)
def test_files_that_do_not_go_together_are_refused(files: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        StreamSettings(**files)


@pytest.mark.parametrize("name", ["address", "advertise"])
@pytest.mark.parametrize("value", ["0.0.0.0:9200", "server.example:9200", "[::]:9200"])
def test_plain_text_is_for_loopback_addresses_only(name: str, value: str) -> None:
    settings: dict[str, Any] = {name: value}
    reason = f"plain_text is set and {name} is {value!r}; plain text stays on one machine. Leave"
    with pytest.raises(ConfigError, match=re.escape(reason)):
        StreamSettings(plain_text=True, **settings)
    assert not StreamSettings(**settings).plain_text
    settings[name] = "localhost:0"
    assert StreamSettings(plain_text=True, **settings).plain_text
