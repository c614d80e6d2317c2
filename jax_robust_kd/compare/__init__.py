"""Any set of methods at one budget: `python -m jax_robust_kd.compare`."""
