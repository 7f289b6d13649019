"""The exponential and the logarithmic map."""
