"""Flower apps that compose the public names of flower_psl."""
