"""The commands of `captioning`, one module each."""
