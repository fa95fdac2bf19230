"""EmbeddingTable: one float32 vector an item, and how to embed new items."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import jax
import numpy as np
from jaxtyping import Float32

from gr_jax.core import artifact
from gr_jax.core.checks import InputError
from gr_jax.data import catalog as catalog_lib
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.embeddings import normalization as normalization_lib
from gr_jax.embeddings.normalization import Normalization


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddingTable:
  """One normalized vector an item, in catalog order.

  Raises:
    InputError: Rows and items differ in number, an item appears twice, or a
      vector is not finite.
  """

  item_ids: tuple[str, ...]
  vectors: np.ndarray  # float32 [N, D], normalized
  normalization: Normalization
  # What the embedder learned and needs for new items; empty if nothing.
  encoder: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Refuses rows that do not belong to the items."""
    check_rows(self.item_ids, self.vectors)
    catalog_lib.check_unique("item id", self.item_ids)

  @property
  def num_items(self) -> int:
    """N."""
    return len(self.item_ids)

  @property
  def embedding_dim(self) -> int:
    """D."""
    return int(self.vectors.shape[1])

  def embed_raw(
    self, item_ids: Sequence[str], raw: Float32[np.ndarray, "N D"]
  ) -> "EmbeddingTable":
    """Returns new items alone, normalized with this table's statistics.

    Args:
      item_ids: The new items.
      raw: Their vectors as the embedder made them.

    Raises:
      InputError: As the class, or a width other than this table's was.
    """
    check_rows(item_ids, raw)
    return dataclasses.replace(
      self, item_ids=tuple(item_ids), vectors=self.normalization.apply(raw)
    )

  def append(self, new: "EmbeddingTable") -> "EmbeddingTable":
    """Returns this table with the rows of `new` after its own.

    Raises:
      InputError: Another width, or an item that is here already.
    """
    if new.embedding_dim != self.embedding_dim:
      raise InputError(
        f"New embeddings have width {new.embedding_dim}, the table has "
        f"{self.embedding_dim}; embed new items as the old ones were."
      )
    return dataclasses.replace(
      self,
      item_ids=self.item_ids + new.item_ids,
      vectors=np.concatenate([self.vectors, new.vectors]),
    )

  def check_matches(self, catalog: ItemCatalog) -> None:
    """Refuses a catalog whose items are not this table's, in its order.

    Raises:
      InputError: They differ.
    """
    if self.item_ids == catalog.item_ids:
      return
    if self.num_items != catalog.num_items:
      raise InputError(
        f"The embeddings cover {self.num_items} items, the catalog has "
        f"{catalog.num_items}; embed this catalog again."
      )
    pairs = zip(self.item_ids, catalog.item_ids, strict=True)
    row, (mine, theirs) = next(
      (n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1]
    )
    raise InputError(
      f"Row {row} of the embeddings is item {mine!r}, in the catalog it is "
      f"{theirs!r}; embed this catalog again."
    )

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns the table as numeric arrays for an artifact."""
    return {
      "vectors": self.vectors,
      **artifact.prefixed(artifact.pack_strings(self.item_ids), "item_ids"),
      **artifact.prefixed(self.normalization.to_arrays(), "normalization"),
      **artifact.prefixed(self.encoder, "encoder"),
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "EmbeddingTable":
    """Returns the table that `to_arrays` wrote."""
    return cls(
      item_ids=artifact.unpack_strings(artifact.group(arrays, "item_ids")),
      vectors=arrays["vectors"],
      normalization=Normalization.from_arrays(
        artifact.group(arrays, "normalization")
      ),
      encoder=artifact.group(arrays, "encoder"),
    )


class Embedder(Protocol):
  """A way from items to vectors: a frozen dataclass of settings.

  Attributes:
    reads_files: Whether the vectors depend on files, so that equal settings
      and an equal catalog do not make equal vectors.
  """

  reads_files: ClassVar[bool]

  def embed(self, dataset: Dataset, *, key: jax.Array) -> EmbeddingTable:
    """Embeds the whole catalog and fits everything that is fitted.

    Args:
      dataset: The items, and vectors that came with them.
      key: For whatever is random.
    """
    ...

  def embed_new(
    self,
    table: EmbeddingTable,
    catalog: ItemCatalog,
    *,
    path: str = "",
  ) -> EmbeddingTable:
    """Embeds items that `table` lacks, with what was fitted for it.

    Args:
      table: What `embed` of these settings returned.
      catalog: The new items alone.
      path: A .npy file with the new items' vectors; only an embedder that
        `reads_files` needs it.

    Returns:
      The new items' rows alone.
    """
    ...


def check_rows(item_ids: Sequence[str], vectors: np.ndarray) -> None:
  """Refuses vectors that are not one finite float32 row an item.

  Raises:
    InputError: Another number of rows, dtype or rank; NaN or infinity.
  """
  if vectors.ndim != 2 or not vectors.shape[1] or vectors.dtype != np.float32:
    raise InputError(
      f"Embeddings must be a float32 matrix [N, D]; got {vectors.dtype} "
      f"{vectors.shape}."
    )
  if len(vectors) != len(item_ids):
    raise InputError(
      f"There are {len(vectors)} embedding rows for {len(item_ids)} items; "
      "row n must be item n of the catalog. Compute them again for it."
    )
  # A sum is finite only if all its terms are: no [N, D] mask for large N.
  with np.errstate(invalid="ignore"):  # infinities of both signs
    sums = vectors.sum(axis=1, dtype=np.float64)  # [N]
  bad = np.flatnonzero(~np.isfinite(sums))
  if bad.size:
    raise InputError(
      f"{bad.size} embeddings hold NaN or infinity, the first is of item "
      f"{item_ids[bad[0]]!r} (row {bad[0]}); compute those again or drop the "
      "items."
    )


def make_table(
  catalog: ItemCatalog,
  raw: Float32[np.ndarray, "N D"],
  *,
  normalization: str,
  output_dim: int,
  encoder: Mapping[str, np.ndarray] | None = None,
) -> EmbeddingTable:
  """Checks raw vectors against the catalog, fits and applies normalization.

  Args:
    catalog: The items.
    raw: Their vectors, row n for item n.
    normalization: One of `normalization.KINDS`.
    output_dim: Width after "pca" or "whiten"; 0 as in `normalization.fit`.
    encoder: What the embedder needs to embed new items.

  Raises:
    InputError: Vectors or settings do not fit.
  """
  check_rows(catalog.item_ids, raw)
  fitted = normalization_lib.fit(raw, kind=normalization, output_dim=output_dim)
  return EmbeddingTable(
    catalog.item_ids, fitted.apply(raw), fitted, dict(encoder or {})
  )
