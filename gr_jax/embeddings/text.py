"""TF-IDF of the item texts, reduced by a truncated SVD; downloads nothing."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from absl import logging

from gr_jax.core import artifact, rng
from gr_jax.core.checks import InputError
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.embeddings import normalization as normalization_lib
from gr_jax.embeddings import table as table_lib
from gr_jax.embeddings.table import EmbeddingTable


@dataclasses.dataclass(frozen=True)
class TfidfSvd:
  """Latent semantic analysis of the item texts (Deerwester et al. 1990).

  Attributes:
    dim: Width of the vectors before normalization.
    max_terms: Only the most frequent terms count.
    min_items: Terms in fewer items do not count.
    max_words: Longest term, in words.
    normalization: One of `normalization.KINDS`.
    output_dim: Width after "pca" or "whiten"; 0: see there.
  """

  dim: int = 256
  max_terms: int = 50_000
  min_items: int = 2
  max_words: int = 1
  normalization: str = "none"
  output_dim: int = 0

  reads_files: ClassVar[bool] = False

  def embed(self, dataset: Dataset, *, key: jax.Array) -> EmbeddingTable:
    """Learns terms, weights and directions from the catalog and applies them.

    Raises:
      InputError: Settings out of range, or texts too few or too poor for
        `dim` directions.
    """
    from sklearn import decomposition

    catalog = dataset.catalog
    normalization_lib.check_options(self.normalization, self.output_dim)
    if min(self.dim, self.max_terms, self.min_items, self.max_words) < 1:
      raise InputError(
        f"Need {self.dim=}, {self.max_terms=}, {self.min_items=} and "
        f"{self.max_words=} of at least 1.".replace("self.", "")
      )
    vectorizer = self._vectorizer()
    try:
      weights = vectorizer.fit_transform(catalog.texts)  # sparse [N, terms]
    except ValueError as error:  # scikit-learn: nothing left after pruning
      raise InputError(
        f"No term occurs in min_items={self.min_items} of the "
        f"{catalog.num_items} item texts; lower min_items."
      ) from error
    if self.dim > min(weights.shape):
      raise InputError(
        f"dim={self.dim} exceeds what {weights.shape[0]} items with "
        f"{weights.shape[1]} terms span; set dim={min(weights.shape)} or less."
      )
    seed = int(rng.numpy_generator(key, "tfidf_svd").integers(2**31))
    svd = decomposition.TruncatedSVD(self.dim, random_state=seed)
    svd.fit(weights)
    encoder = {
      "idf": vectorizer.idf_,  # float64 [terms]
      "components": svd.components_.astype(np.float32),  # [dim, terms]
      **artifact.prefixed(
        artifact.pack_strings(vectorizer.get_feature_names_out().tolist()),
        "terms",
      ),
    }
    return table_lib.make_table(
      catalog,
      _project(weights, encoder["components"]),
      normalization=self.normalization,
      output_dim=self.output_dim,
      encoder=encoder,
    )

  def embed_new(
    self,
    table: EmbeddingTable,
    catalog: ItemCatalog,
    *,
    path: str = "",
  ) -> EmbeddingTable:
    """Embeds new items with the terms and directions of `table`.

    Raises:
      InputError: `table` was not made by this embedder.
    """
    del path  # Reads texts only.
    if "components" not in table.encoder:
      raise InputError(
        "The embeddings were not made by tfidf_svd; embed new items with the "
        "embedder that made the table."
      )
    terms = artifact.unpack_strings(artifact.group(table.encoder, "terms"))
    vectorizer = self._vectorizer(terms)
    vectorizer.idf_ = table.encoder["idf"]
    weights = vectorizer.transform(catalog.texts)
    raw = _project(weights, table.encoder["components"])
    return table.embed_raw(catalog.item_ids, raw)

  def _vectorizer(self, terms: tuple[str, ...] | None = None):
    """The vectorizer, to be fitted or with the terms of an earlier fit."""
    from sklearn.feature_extraction import text

    return text.TfidfVectorizer(
      sublinear_tf=True,
      token_pattern=r"(?u)\b\w+\b",  # "5 ml" and "L" tell items apart
      ngram_range=(1, self.max_words),
      min_df=self.min_items,
      max_features=self.max_terms,
      vocabulary=terms,
    )


def _project(weights, components: np.ndarray) -> np.ndarray:
  """Sparse [N, terms] times [dim, terms] transposed; float32 [N, dim]."""
  silent = int(np.sum(np.diff(weights.indptr) == 0))
  if silent:
    logging.warning(
      "%d of %d item texts hold no known term; their embeddings are zero.",
      silent,
      weights.shape[0],
    )
  return np.asarray(weights.astype(np.float32) @ components.T, np.float32)
