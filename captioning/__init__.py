"""Image captioning: train, caption, evaluate and compare."""

__version__ = "0.1.0"
