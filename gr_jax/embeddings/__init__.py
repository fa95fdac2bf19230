"""One float32 vector an item."""

from gr_jax.embeddings.co_occurrence import TextAndCoOccurrence
from gr_jax.embeddings.files import Precomputed
from gr_jax.embeddings.sentence_transformers import SentenceTransformers
from gr_jax.embeddings.table import Embedder, EmbeddingTable
from gr_jax.embeddings.text import TfidfSvd

EMBEDDERS = {
  "precomputed": Precomputed,
  "sentence_transformers": SentenceTransformers,
  "text_and_co_occurrence": TextAndCoOccurrence,
  "tfidf_svd": TfidfSvd,
}

__all__ = ["EMBEDDERS", "Embedder", "EmbeddingTable"]
