"""Curves to start from: straight lines, and shortest paths on grids and graphs of the metric."""
