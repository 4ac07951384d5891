"""Functions to functions, functions to data: tracing and rewriting JAX programs."""
