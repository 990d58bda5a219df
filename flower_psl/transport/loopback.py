"""Addresses that no other machine can reach."""

import ipaddress
from urllib.parse import unquote


def is_loopback(address: str) -> bool:
    """Tell whether the host of a ``host:port`` is this machine only, by what it says itself.

    That is ``localhost``, ``[::1]`` and all of 127.0.0.0/8. Nothing is looked up.
    """
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_loopback_peer(peer: str) -> bool:
    """Tell the same of what gRPC calls a peer, such as ``ipv4:127.0.0.1:5000``."""
    return is_loopback(unquote(peer).partition(":")[2])
