"""The Fréchet mean."""
