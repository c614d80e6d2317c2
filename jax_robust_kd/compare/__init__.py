"""Any set of methods at one budget: `jax-robust-kd compare`."""
