"""Inspection of trained models: attention, gates, gradients, beam search and rescoring."""
