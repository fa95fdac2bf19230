"""Tokenizers: maps between item embeddings and codes, one method a file."""

from gr_jax.tokenizers.residual_kmeans import ResidualKMeans

TOKENIZERS = {
  "residual_kmeans": ResidualKMeans,
}
