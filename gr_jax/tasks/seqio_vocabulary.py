"""The token layout as a seqio vocabulary that writes readable IDs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import seqio
import tensorflow as tf

from gr_jax.core import checks
from gr_jax.sids import vocabulary as vocabulary_lib


class SidSeqioVocabulary(seqio.Vocabulary):
  """Decodes tokens to text such as "<a_12><b_3>" and back.

  Of several layouts, made by `SidVocabulary.joint`, each token belongs to the
  layout whose levels hold it. Padding and EOS leave no text.
  """

  def __init__(
    self,
    layout: vocabulary_lib.SidVocabulary,
    *more_layouts: vocabulary_lib.SidVocabulary,
  ):
    """Wraps one layout, or several with disjoint levels.

    Raises:
      InputError: Layouts that overlap or differ in their user buckets.
    """
    super().__init__()
    layouts = (layout, *more_layouts)
    for before, after in zip(layouts[:-1], layouts[1:], strict=True):
      if (
        after.level_offsets[0] < before.vocab_size
        or after.num_user_buckets != before.num_user_buckets
      ):
        raise checks.InputError(
          f"Token layouts overlap: one ends at {before.vocab_size}, the next "
          f"begins at {after.level_offsets[0]}; make them with "
          "SidVocabulary.joint."
        )
    self.layouts = layouts

  @property
  def bos_id(self) -> int | None:
    """None: sequences begin without a token of their own."""
    return None

  @property
  def eos_id(self) -> int:
    """Token that ends a sequence."""
    return vocabulary_lib.EOS_ID

  @property
  def unk_id(self) -> int | None:
    """None: there is no token for the unknown."""
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self.layouts[-1].vocab_size

  def _encode(self, s: str) -> list[int]:
    for layout in self.layouts[:-1]:
      try:
        return layout.parse(s)
      except checks.InputError:
        continue
    return self.layouts[-1].parse(s)

  def _decode(self, ids: Iterable) -> str:
    return "".join(self._text(int(token)) for token in ids)

  def _text(self, token: int) -> str:
    if token in (vocabulary_lib.PAD_ID, vocabulary_lib.EOS_ID):
      return ""
    for layout in self.layouts:
      if token < layout.vocab_size:
        return layout.readable([token])
    return self.layouts[-1].readable([token])

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    ids = tf.py_function(
      lambda text: tf.constant(self._encode(text.numpy().decode()), tf.int32),
      [s],
      tf.int32,
    )
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    table = tf.constant([self._text(t) for t in range(self.vocab_size)])
    return tf.strings.reduce_join(tf.gather(table, ids), axis=-1)

  def __eq__(self, other: object) -> bool:
    """Equal layouts make equal vocabularies; seqio mixtures ask this."""
    return (
      isinstance(other, SidSeqioVocabulary) and self.layouts == other.layouts
    )

  def __hash__(self) -> int:
    """Consistent with equality."""
    return hash(self.layouts)

  def __str__(self) -> str:
    """Names the layouts."""
    return f"SidSeqioVocabulary{self.layouts}"


def sequence_lengths(
  vocabulary: SidSeqioVocabulary,
  num_levels: Sequence[int],
  max_history: int,
) -> dict[str, int]:
  """Returns the shortest seqio `sequence_length` that trims nothing.

  Args:
    vocabulary: The vocabulary.
    num_levels: Levels of the IDs of each catalog of a task or mixture.
    max_history: Items kept per example.
  """
  layout = vocabulary.layouts[0]
  longest = max(num_levels)
  has_user = int(layout.num_user_buckets > 0)
  return {
    "inputs": has_user + max_history * longest + 1,
    "targets": longest + int(layout.append_eos),
  }
