"""From start curves to lengths that a finer quadrature confirms, and the last word on each."""
