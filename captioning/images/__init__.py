"""Read, preprocess and augment images."""
