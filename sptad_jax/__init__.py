"""SP-TAD: temporal action detection with sparse proposals (arXiv 2109.08847), in JAX and Flax."""

__version__ = "0.1.0"
