"""Looks at trained models and at what they cost. Changes nothing."""
