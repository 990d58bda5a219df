"""What tests with devices behind Flower's messages share."""

import pytest

from flower_psl.client import split_client_app
from flower_psl.client.client_cache import ClientCache


@pytest.fixture
def device_processes(flower_run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `InNewProcesses` play Flower's processes; what it puts into ours is taken away again."""
    monkeypatch.setattr(split_client_app, "_CLIENTS", ClientCache())
