"""Vectors computed elsewhere, read from .npy files."""

import dataclasses
import pathlib
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float32

from gr_jax.core import checks
from gr_jax.core.checks import InputError
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.embeddings import normalization as normalization_lib
from gr_jax.embeddings import table as table_lib
from gr_jax.embeddings.table import EmbeddingTable


@dataclasses.dataclass(frozen=True)
class Precomputed:
  """Rows of a .npy file, row n for item n, cast to float32.

  Attributes:
    vectors: Which NAME of the data set's `embeddings.NAME.npy`; may stay
      empty where there is one only.
    path: A file anywhere; wins over `vectors`.
    normalization: One of `normalization.KINDS`.
    output_dim: Width after "pca" or "whiten"; 0: see there.
  """

  vectors: str = ""
  path: str = ""
  normalization: str = "none"
  output_dim: int = 0

  reads_files: ClassVar[bool] = True

  def embed(self, dataset: Dataset, *, key: jax.Array) -> EmbeddingTable:
    """Reads the file and normalizes its rows.

    Raises:
      InputError: No such file, not a float matrix, rows that are not one an
        item, NaN or infinity.
    """
    del key  # Nothing is random.
    normalization_lib.check_options(self.normalization, self.output_dim)
    return table_lib.make_table(
      dataset.catalog,
      _read(self.source(dataset)),
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
    """Reads the new items' file, normalized with the statistics of `table`.

    Raises:
      InputError: As `embed`, or no `path`.
    """
    if not path:
      raise InputError(
        f"{catalog.num_items} new items need vectors of their own; give the "
        "path of a .npy file with a row for each."
      )
    return table.embed_raw(catalog.item_ids, _read(path))

  def source(self, dataset: Dataset) -> str:
    """Returns the path of the file that `embed` reads.

    Raises:
      InputError: None is named, or the data set has none of that name.
    """
    if self.path:
      return self.path
    files = dataset.embeddings
    if not files:
      raise InputError(
        "The data set has no embeddings.*.npy; set embedding.path to a .npy "
        "file or use embedding.name='tfidf_svd'."
      )
    if not self.vectors and len(files) > 1:
      raise InputError(
        f"The data set has vectors {', '.join(sorted(files))}; set "
        "embedding.vectors to one of them."
      )
    name = self.vectors or next(iter(files))
    checks.check_known(name, files, "embeddings file of the data set")
    return files[name]


def _read(path: str) -> Float32[np.ndarray, "N D"]:
  """Returns the matrix in a .npy file as float32."""
  if not pathlib.Path(path).is_file():
    raise InputError(f"No embeddings file {path!r}; correct embedding.path.")
  try:
    x = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise InputError(
      f"{path!r} is no .npy file of numbers ({error}); save it with numpy.save."
    ) from error
  if x.ndim != 2 or x.dtype.kind != "f":
    raise InputError(
      f"{path!r} must hold a float matrix [N, D]; got {x.dtype} {x.shape}."
    )
  return np.asarray(x, np.float32)
