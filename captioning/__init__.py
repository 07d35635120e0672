"""Image captioning: train, caption, evaluate and compare."""
