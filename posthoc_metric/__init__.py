"""Repair the geometry of a trained generative model after training."""
