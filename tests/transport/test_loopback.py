import pytest

from flower_psl.transport.loopback import is_loopback, is_loopback_peer


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "127.255.255.254:9200", "[::1]:9200", "localhost:9200"]
)
def test_addresses_that_no_other_machine_can_reach(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:9200",
        "[::]:9200",
        "10.0.0.1:9200",
        "128.0.0.1:9200",
        "localhost.example.org:9200",
        "127.0.0.1.example.org:9200",
        "127.1:9200",
        "ipv4:127.0.0.1:9200,10.0.0.1:9200",
        "dns:///localhost:9200",
        "localhost",
        "",
    ],
)
def test_all_others_are_not(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000"])
def test_peers_of_this_machine(peer: str) -> None:
    assert is_loopback_peer(peer)


@pytest.mark.parametrize(
    "peer", ["ipv4:10.0.0.1:5000", "ipv6:%5B2001:db8::1%5D:5000", "unix:", ""]
)
def test_all_other_peers_are_not(peer: str) -> None:
    assert not is_loopback_peer(peer)
