"""A network in, the configured score out; what stands beside a score: references, a screener, feasibility."""
