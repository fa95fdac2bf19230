"""Absl mains, one a stage: flags -> settings -> one call of gr_jax.stages."""
