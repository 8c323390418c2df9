"""Training the chosen architecture with labels, and judging its frozen features."""
