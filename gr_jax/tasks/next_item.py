"""seqio tasks: a user's history -> the next item, as tokens.

The examples are those of `windows.py`, token for token. Nothing registers
itself on import: a stage calls `register`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from jaxtyping import Int32

from gr_jax.core import checks
from gr_jax.data import interactions as interactions_lib
from gr_jax.data import splits
from gr_jax.sids import sid_catalog
from gr_jax.tasks import seqio_vocabulary, windows

# Examples in random order pass through a buffer of this size on top, so that
# epochs differ from each other.
_SHUFFLE_BUFFER = 1 << 16


class ExampleSource(seqio.DataSource):
  """Yields {"history": int32 [H], "target": int32 [], "user_token": int32 []}.

  Item indices, histories oldest first and at most `max_history` long. Shards
  take every num_shards-th example, so hosts share the work evenly.
  """

  def __init__(
    self,
    items: Int32[np.ndarray, "T"],
    user_tokens: Int32[np.ndarray, "U"],
    examples: Mapping[str, splits.Examples],
    *,
    max_history: int,
  ):
    """Holds the interactions and each split's examples.

    Args:
      items: Item indices, users back to back, oldest first.
      user_tokens: Token of every user; anything where the layout has none.
      examples: By split name.
      max_history: Items kept, counted from the newest.
    """
    self._items = items
    self._user_tokens = user_tokens
    self._examples = dict(examples)
    self.max_history = max_history
    sizes = {name: int(some.user_index.size) for name, some in examples.items()}
    super().__init__(
      splits=tuple(examples),
      num_input_examples=sizes,
      performs_internal_shuffling=True,
    )

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: examples are addressed one by one."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns one shard; more are cut on demand."""
    return [split]

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused,
  ) -> tf.data.Dataset:
    """Returns a split's examples; see `seqio.DataSource.get_dataset`.

    Unshuffled, the order is that of the examples. Shuffled, it is a random
    permutation of all of them (by `seed`), shuffled a little more each epoch.
    """
    del unused
    some = self._examples[split]
    num_examples = int(some.user_index.size)
    order = tf.data.Dataset.range(num_examples)
    if shuffle:
      if seed is None:
        seed = int(np.random.default_rng().integers(2**31))
      order_seed = tf.constant([seed, 0], tf.int64)

      @tf.autograph.experimental.do_not_convert
      def permute(index: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.index_shuffle(
          index, order_seed, num_examples - 1
        )

      order = order.map(permute)
    if shard_info is not None and shard_info.num_shards > 1:
      order = order.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      order = order.shuffle(min(num_examples, _SHUFFLE_BUFFER), seed=seed)
    items = tf.constant(self._items)
    user_tokens = tf.constant(self._user_tokens)
    user = tf.constant(some.user_index)
    first = tf.constant(some.history_start)
    target = tf.constant(some.target_position)

    @tf.autograph.experimental.do_not_convert
    def to_example(index: tf.Tensor) -> dict[str, tf.Tensor]:
      end = target[index]
      start = tf.maximum(first[index], end - self.max_history)
      return {
        "history": items[start:end],
        "target": items[end],
        "user_token": user_tokens[user[index]],
      }

    return order.map(to_example, num_parallel_calls=tf.data.AUTOTUNE)


def history_to_tokens(
  dataset: tf.data.Dataset,
  *,
  sid_tokens: Int32[np.ndarray, "N L"],
  max_history: int,
  has_user_token: bool,
) -> tf.data.Dataset:
  """Maps item indices to tokens; see `windows.WindowLayout` for their order.

  Args:
    dataset: Yields "history", "target" and, where wanted, "user_token".
    sid_tokens: Tokens of every item, pad after an item's last.
    max_history: Items kept, counted from the newest.
    has_user_token: Whether inputs begin with the user's token.

  Returns:
    Yields "inputs" and "targets" int32 [n] without EOS, and "target_item"
    int32 [], which no model reads but evaluation does.
  """
  table = tf.constant(sid_tokens)

  @tf.autograph.experimental.do_not_convert
  def tokens_of(items: tf.Tensor) -> tf.Tensor:
    tokens = tf.reshape(tf.gather(table, items), [-1])
    return tf.boolean_mask(tokens, tokens != 0)

  @tf.autograph.experimental.do_not_convert
  def to_tokens(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    inputs = tokens_of(example["history"][-max_history:])
    if has_user_token:
      inputs = tf.concat([example["user_token"][None], inputs], axis=0)
    return {
      "inputs": inputs,
      "targets": tokens_of(example["target"]),
      "target_item": example["target"],
    }

  return dataset.map(to_tokens, num_parallel_calls=tf.data.AUTOTUNE)


def refuse_trimming(
  dataset: tf.data.Dataset,
  sequence_length: Mapping[str, int] | None = None,
  *,
  needed: Mapping[str, int],
) -> tf.data.Dataset:
  """Refuses lengths to which seqio would trim without a word.

  seqio keeps the first tokens: the newest items and the EOS would be lost,
  and an ID could be cut in two.

  Raises:
    InputError: A feature's length is below what its longest example needs.
  """
  for feature, length in (sequence_length or {}).items():
    if length is not None and length < needed.get(feature, 0):
      raise checks.InputError(
        f"sequence_length of {feature!r} is {length}, but examples take up "
        f"to {needed[feature]} tokens and seqio would cut off their end; "
        f"raise it to {needed[feature]} or lower max_history."
      )
  return dataset


def register(
  name: str,
  *,
  source: seqio.DataSource,
  vocabulary: seqio_vocabulary.SidSeqioVocabulary,
  sid_tokens: Int32[np.ndarray, "N L"],
  max_history: int,
  postprocess_fn: Callable[..., Any] | None = None,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> seqio.Task:
  """Adds the task `name` to seqio; a stage calls it, no import ever does.

  Args:
    name: Registry name, e.g. "beauty_rkmeans_next_item".
    source: Yields {"history": int32 [H], "target": int32 []} item indices,
      and "user_token" int32 [] where the vocabulary has user buckets.
    vocabulary: Token layout that produced `sid_tokens`.
    sid_tokens: The token ids of every catalog item, pad after its last.
    max_history: Items kept per user, counted from the most recent.
    postprocess_fn: For `seqio.Evaluator`; see `seqio_metrics`.
    metric_fns: For `seqio.Evaluator`.

  Returns:
    The task. It can be cached (`cache.cache_task`).

  Raises:
    InputError: A token lies outside `vocabulary`, or `name` is taken.
  """
  top, bottom = int(sid_tokens.max()), int(sid_tokens.min())
  if top >= vocabulary.vocab_size or bottom < 0:
    raise checks.InputError(
      f"Tokens span {bottom}..{top}, but the vocabulary has "
      f"{vocabulary.vocab_size}; make both from one SID catalog."
    )
  _check_free(name)
  layout = vocabulary.layouts[0]
  has_user_token = layout.num_user_buckets > 0
  to_tokens = functools.partial(
    history_to_tokens,
    sid_tokens=sid_tokens,
    max_history=max_history,
    has_user_token=has_user_token,
  )
  needed = seqio_vocabulary.sequence_lengths(
    vocabulary, [sid_tokens.shape[1]], max_history
  )
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      to_tokens,
      seqio.CacheDatasetPlaceholder(),
      functools.partial(refuse_trimming, needed=needed),
      seqio.preprocessors.append_eos,
    ],
    output_features={
      "inputs": seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32),
      "targets": seqio.Feature(
        vocabulary, add_eos=layout.append_eos, dtype=tf.int32
      ),
    },
    postprocess_fn=postprocess_fn,
    metric_fns=list(metric_fns),
  )


def register_splits(
  name: str,
  *,
  interactions: interactions_lib.Interactions,
  split: splits.Split,
  catalog: sid_catalog.SidCatalog,
  vocabulary: seqio_vocabulary.SidSeqioVocabulary,
  max_history: int,
  augmentation: str = "subsequences",
  layout_index: int = 0,
  postprocess_fn: Callable[..., Any] | None = None,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> seqio.Task:
  """Adds a task with splits "train", "validation" and "test".

  Its training examples are `windows.training_examples`, in that order where
  they are not shuffled.

  Args:
    name: Registry name.
    interactions: All interactions.
    split: The protocol's split of them.
    catalog: The items' semantic IDs.
    vocabulary: Token layout, of this catalog or of several.
    max_history: Items kept per user, counted from the most recent.
    augmentation: See `windows.training_examples`.
    layout_index: Which of the vocabulary's layouts is this catalog's.
    postprocess_fn: For `seqio.Evaluator`.
    metric_fns: For `seqio.Evaluator`.

  Raises:
    InputError: `name` is taken, an item is not in the catalog, or the layout
      is another catalog's.
  """
  _check_free(name)
  interactions.check_items(catalog.num_items)
  layout = vocabulary.layouts[layout_index]
  if layout.codebook_sizes != catalog.codebook_sizes:
    raise checks.InputError(
      f"Layout {layout_index} of the vocabulary has codebook sizes "
      f"{layout.codebook_sizes}, the catalog {catalog.codebook_sizes}; make "
      "the vocabulary from this catalog."
    )
  source = ExampleSource(
    interactions.items,
    layout.user_tokens(interactions.user_ids),
    {
      "train": windows.training_examples(
        interactions, split, augmentation, max_history
      ),
      "validation": split.validation,
      "test": split.test,
    },
    max_history=max_history,
  )
  return register(
    name,
    source=source,
    vocabulary=vocabulary,
    sid_tokens=np.asarray(layout.tokens_from_codes(catalog.codes)),
    max_history=max_history,
    postprocess_fn=postprocess_fn,
    metric_fns=metric_fns,
  )


def register_mixture(name: str, rates: Mapping[str, float]) -> seqio.Mixture:
  """Adds a mixture of registered tasks.

  Args:
    name: Registry name.
    rates: How often each task is drawn from, relative to the others.

  Raises:
    InputError: `name` is taken, a task is unknown or has another vocabulary
      than the first, or a rate is not positive.
  """
  _check_free(name)
  if not rates:
    raise checks.InputError(f"Mixture {name!r} needs at least one task.")
  features = None
  for task_name, rate in rates.items():
    checks.check_known(task_name, seqio.TaskRegistry.names(), "seqio task")
    if rate <= 0:
      raise checks.InputError(
        f"The rate of task {task_name!r} must be above 0; got {rate}."
      )
    task = seqio.TaskRegistry.get(task_name)
    vocabulary = task.output_features["targets"].vocabulary
    features = features or (task_name, vocabulary)
    if vocabulary != features[1]:
      raise checks.InputError(
        f"Tasks {features[0]!r} and {task_name!r} have different "
        "vocabularies; register both with one made by SidVocabulary.joint."
      )
  return seqio.MixtureRegistry.add(name, list(rates.items()))


def _check_free(name: str) -> None:
  taken = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if name in taken:
    raise checks.InputError(
      f"The seqio name {name!r} is taken; choose another, or call "
      f"seqio.TaskRegistry.remove({name!r}) first."
    )
