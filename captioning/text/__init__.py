"""Tokens and vocabularies."""
