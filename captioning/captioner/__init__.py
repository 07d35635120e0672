"""The model as one thing: open, caption, score, save; ensembles; predictions."""
