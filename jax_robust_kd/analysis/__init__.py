"""Features of trained networks: linear probes and similarity."""
