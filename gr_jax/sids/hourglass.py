"""The hourglass: middle levels of which a few codes take most items.

Level-0 residuals mix many small and few large norms, so the codes of the next
level concentrate (Kuai et al. 2024, arXiv:2407.21488). `level_statistics` of
`tokenizers.codebook_stats` has the figures; here are the two remedies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Int64

from gr_jax.core import checks
from gr_jax.tokenizers import codebook_stats


@dataclasses.dataclass(frozen=True)
class Hourglass:
  """Which codes of a middle level are left out of semantic IDs.

  Attributes:
    drop_level: This level is left out altogether; 0 keeps all levels. IDs
      stay of one length.
    remove_top_codes: Adaptive token removal: this many most used codes of
      `remove_level` are left out, so that IDs differ in length; 0 for none.
    remove_level: The level of `remove_top_codes`.
  """

  drop_level: int = 0
  remove_top_codes: int = 0
  remove_level: int = 1

  def __post_init__(self):
    """Refuses impossible options."""
    if self.drop_level < 0 or self.remove_top_codes < 0:
      raise checks.InputError(
        "hourglass needs drop_level and remove_top_codes of 0 or more; got "
        f"{self.drop_level} and {self.remove_top_codes}."
      )
    if self.drop_level and self.remove_top_codes:
      raise checks.InputError(
        f"hourglass has drop_level={self.drop_level} and remove_top_codes="
        f"{self.remove_top_codes}; set one of them to 0."
      )

  def check(self, num_levels: int) -> None:
    """Refuses levels that a tokenizer does not have between its outer ones.

    Args:
      num_levels: L of the tokenizer.

    Raises:
      InputError: A level that is first, last or none.
    """
    if self.drop_level:
      _check_middle("drop_level", self.drop_level, num_levels)
    if self.remove_top_codes:
      _check_middle("remove_level", self.remove_level, num_levels)

  def removed_codes(
    self, codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int]
  ) -> Int64[np.ndarray, "n"]:
    """Returns the most used codes of `remove_level`, ties to the lowest.

    Args:
      codes: The tokenizer's codes of the items that decide.
      codebook_sizes: Codes of each level.

    Raises:
      InputError: The level is not between the first and the last, or codes
        are to be removed of which there are not more.
    """
    if not self.remove_top_codes:
      return np.zeros(0, np.int64)
    self.check(len(codebook_sizes))
    level = self.remove_level
    counts = codebook_stats.code_counts(codes[:, level], codebook_sizes[level])
    used = int((counts > 0).sum())
    if self.remove_top_codes >= used:
      raise checks.InputError(
        f"hourglass.remove_top_codes={self.remove_top_codes} would leave "
        f"nothing of the {used} used codes of level {level}; use "
        f"drop_level={level}, or remove fewer."
      )
    order = np.argsort(-counts, kind="stable")
    return np.sort(order[: self.remove_top_codes])

  def apply(
    self,
    codes: Int32[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
    removed: Int64[np.ndarray, "n"],
  ) -> tuple[Int32[np.ndarray, "N L2"], tuple[int, ...]]:
    """Leaves codes out.

    Args:
      codes: The tokenizer's codes.
      codebook_sizes: Codes of each level.
      removed: From `removed_codes`; for new items that of the known ones.

    Returns:
      Codes by level, -1 where one is left out, and the levels' sizes.

    Raises:
      InputError: `drop_level` is not between the first and the last.
    """
    sizes = tuple(int(size) for size in codebook_sizes)
    self.check(len(sizes))
    if self.drop_level:
      kept = [l for l in range(len(sizes)) if l != self.drop_level]
      return codes[:, kept], tuple(sizes[l] for l in kept)
    if not removed.size:
      return codes, sizes
    codes = codes.copy()
    column = codes[:, self.remove_level]
    column[np.isin(column, removed)] = -1
    return codes, sizes


def report(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int]
) -> list[Mapping[str, float | int]]:
  """Returns the hourglass's figures of every level.

  Entropy (nats), Gini coefficient, standard deviation of the items per code,
  share of the most used code, and distinct prefixes over all that could be.
  """
  names = ("entropy", "gini", "counts_std", "top_share", "path_share")
  levels = codebook_stats.level_statistics(codes, codebook_sizes)
  return [{name: level[name] for name in names} for level in levels]


def _check_middle(name: str, level: int, num_levels: int) -> None:
  if not 0 < level < num_levels - 1:
    raise checks.InputError(
      f"hourglass.{name}={level} must be a middle level of {num_levels}: the "
      "first and the last stay."
    )
