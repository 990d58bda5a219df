"""What every process of an experiment that trains does first."""

import logging

import torch


def one_thread() -> None:
    """Let torch compute with one thread, and flower_psl log nothing below warnings."""
    torch.set_num_threads(1)
    logging.getLogger("flwr.psl").setLevel(logging.WARNING)
