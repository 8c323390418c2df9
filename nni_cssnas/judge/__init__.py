"""A network in, the configured score out; what stands beside a score: a screener, feasibility."""
