"""Image classification by parallel split learning: a complete Flower app."""
