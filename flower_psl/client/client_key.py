"""The stable name of a client, on which order, permutations and random streams hang."""

import hashlib
from collections.abc import Mapping

from flower_psl.errors import ConfigError

_KEYS = ("partition-id", "client-key")


def client_key(node_config: Mapping[str, bool | float | int | str]) -> int | None:
    """Return a node's client key, or None if its configuration names none.

    ``partition-id`` comes first, then ``client-key``. Flower draws node ids anew in every
    run, so a node without either cannot be recognized in the next one.

    Parameters
    ----------
    node_config : mapping
        The node's configuration, as in ``flower-supernode --node-config``.

    Returns
    -------
    int or None
        An integer in ``[0, 2**63)``. A name, such as ``"camera-7"``, is turned into one by
        SHA-256; the server refuses two nodes with the same key.

    Raises
    ------
    ConfigError
        If the value is neither an integer of 0 or more nor a name.
    """
    for key in _KEYS:
        value = node_config.get(key)
        if value is None:
            continue
        if isinstance(value, str) and value and not value.isdecimal():
            digest = hashlib.sha256(value.encode()).digest()
            return int.from_bytes(digest[:8], "big") >> 1
        if isinstance(value, str) and value:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise ConfigError(
                f"node config {key} = {value!r}; a client key is an integer from 0 to 2**63 - 1 "
                "or a name"
            )
        return value
    return None
