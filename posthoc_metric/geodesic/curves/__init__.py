"""Discrete curves: their nodes, the quadratic elements and splines through them, and how long they are."""
