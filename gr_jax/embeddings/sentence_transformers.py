"""Sentence encoders of the `sentence-transformers` package (extra `text`)."""

import dataclasses
import importlib.util
import pathlib
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float32

from gr_jax.core import progress
from gr_jax.core.checks import InputError
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.embeddings import normalization as normalization_lib
from gr_jax.embeddings import table as table_lib
from gr_jax.embeddings.table import EmbeddingTable


@dataclasses.dataclass(frozen=True)
class SentenceTransformers:
  """Item texts through a pretrained sentence encoder (arXiv:1908.10084).

  Attributes:
    model: A local folder with the model's files, an installed Python package
      that holds them, or a name that sentence-transformers downloads.
    batch_size: Texts encoded at once.
    normalization: One of `normalization.KINDS`.
    output_dim: Width after "pca" or "whiten"; 0: see there.
  """

  model: str = "sentence-transformers/all-MiniLM-L6-v2"
  batch_size: int = 256
  normalization: str = "none"
  output_dim: int = 0

  reads_files: ClassVar[bool] = False

  def embed(self, dataset: Dataset, *, key: jax.Array) -> EmbeddingTable:
    """Encodes every item text.

    Raises:
      InputError: The package is not installed or the model cannot be loaded.
    """
    del key  # Nothing is random.
    normalization_lib.check_options(self.normalization, self.output_dim)
    return table_lib.make_table(
      dataset.catalog,
      self._encode(dataset.catalog),
      normalization=self.normalization,
      output_dim=self.output_dim,
    )

  def embed_new(
    self,
    table: EmbeddingTable,
    catalog: ItemCatalog,
    *,
    path: str = "",
  ) -> EmbeddingTable:
    """Encodes new items, normalized with the statistics of `table`.

    Raises:
      InputError: As `embed`.
    """
    del path  # Reads texts only.
    return table.embed_raw(catalog.item_ids, self._encode(catalog))

  def _encode(self, catalog: ItemCatalog) -> Float32[np.ndarray, "N D"]:
    encoder = _load(self.model)
    parts = []
    with progress.bar(
      "embedding", total=catalog.num_items, unit="item"
    ) as advance:
      for start in range(0, catalog.num_items, self.batch_size):
        texts = list(catalog.texts[start : start + self.batch_size])
        vectors = encoder.encode(
          texts, batch_size=self.batch_size, show_progress_bar=False
        )
        parts.append(np.asarray(vectors, np.float32))
        advance(len(texts))
    return np.concatenate(parts)


def _load(model: str):
  """Loads the encoder from a folder, an installed package or by its name."""
  try:
    import sentence_transformers
  except ImportError as error:
    raise InputError(
      "embedding 'sentence_transformers' needs the package of that name "
      f"({error}); install it with `pip install -e .[text]`, or use "
      "'tfidf_svd' or 'precomputed'."
    ) from error
  source = model
  if not pathlib.Path(model).is_dir() and model.isidentifier():
    spec = importlib.util.find_spec(model)
    if spec is not None and spec.submodule_search_locations:
      source = spec.submodule_search_locations[0]
  try:
    return sentence_transformers.SentenceTransformer(source)
  except (OSError, ValueError) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InputError(
      f"Sentence encoder {model!r} cannot be loaded ({reason}); set "
      "embedding.model to a local folder with its files."
    ) from error
