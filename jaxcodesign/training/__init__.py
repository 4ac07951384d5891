"""Models, data, training, reports: the only layer that imports flax, optax, orbax."""
