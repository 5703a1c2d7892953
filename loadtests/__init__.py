"""Load: a crowd at a running service and the verifier of what it was told, and benchmarks."""
