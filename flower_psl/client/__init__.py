"""A device: its data, its segment, its Flower handlers.

`flower_psl.client.split_client_app` is imported only where Flower runs the device.
"""

from flower_psl.client.split_client import SplitClient

__all__ = ["SplitClient"]
