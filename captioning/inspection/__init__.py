"""What happens inside a model: attention, gates, gradients, the beam."""
