"""Trained models: opening, captioning and saving them, and ensembles."""
