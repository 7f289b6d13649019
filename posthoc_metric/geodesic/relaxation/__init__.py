"""Curves made shorter: the discrete energy, its models, and the steps taken on them."""
