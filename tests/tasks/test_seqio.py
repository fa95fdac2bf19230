import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks, mesh
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import windows
from gr_jax.training import loaders

pytest.importorskip("seqio")

import seqio
import tensorflow as tf

from gr_jax.tasks import batches, cache, next_item, seqio_metrics
from gr_jax.tasks.seqio_vocabulary import SidSeqioVocabulary, sequence_lengths

H = 4


def register(world, name="task", vocabulary=None, **options):
  return next_item.register_splits(
    name,
    interactions=world.interactions,
    split=world.split,
    catalog=world.catalog,
    vocabulary=vocabulary or SidSeqioVocabulary(world.layout),
    max_history=H,
    **options,
  )


def lengths_of(world):
  vocabulary = SidSeqioVocabulary(world.layout)
  return sequence_lengths(vocabulary, [world.catalog.num_levels], H)


def window_rows(world, examples):
  """Inputs and targets of `windows`, without their padding."""
  data = windows.training_data(
    world.interactions, world.catalog, world.layout, examples
  )
  layout = windows.WindowLayout.create(
    world.catalog, world.layout, max_history=H
  )
  index = jnp.arange(data.num_examples, dtype=jnp.int32)
  gather = jax.jit(windows.gather_batch, static_argnames="layout")
  batch = gather(data, index, layout=layout)
  return [
    tuple(tuple(int(t) for t in row if t) for row in pair)
    for pair in zip(
      np.asarray(batch.inputs), np.asarray(batch.targets), strict=True
    )
  ]


def seqio_rows(dataset):
  return [
    tuple(tuple(example[k].tolist()) for k in ("inputs", "targets"))
    for example in dataset.as_numpy_iterator()
  ]


@pytest.mark.parametrize(
  ("variable", "buckets", "augmentation"),
  [
    (False, 3, "prefixes"),
    (True, 3, "none"),
    (True, 0, "subsequences"),
  ],
)
def test_seqio_yields_the_windows(
  world_of, registry, variable, buckets, augmentation
):
  world = world_of(0, variable=variable, buckets=buckets)
  task = register(world, augmentation=augmentation)
  train = windows.training_examples(
    world.interactions, world.split, augmentation, H
  )
  for split, examples in {
    "train": train,
    "validation": world.split.validation,
    "test": world.split.test,
  }.items():
    dataset = task.get_dataset(
      sequence_length=lengths_of(world), split=split, shuffle=False
    )
    assert seqio_rows(dataset) == window_rows(world, examples)
  source = task.source.get_dataset(split="train", shuffle=False)
  histories = [ex["history"].size for ex in source.as_numpy_iterator()]
  assert max(histories) == H
  shuffled = task.get_dataset(
    sequence_length=lengths_of(world), split="train", shuffle=True, seed=3
  )
  rows = seqio_rows(shuffled)
  assert rows != window_rows(world, train)
  assert sorted(rows) == sorted(window_rows(world, train))


def test_training_on_a_device_sees_what_seqio_yields(world_of, registry, key):
  world = world_of(4, variable=True, buckets=2, num_users=120)
  task = register(world, augmentation="subsequences")
  dataset = task.get_dataset(
    sequence_length=lengths_of(world), split="train", shuffle=False
  )
  want = seqio_rows(dataset)
  data = windows.training_data(
    world.interactions,
    world.catalog,
    world.layout,
    windows.training_examples(
      world.interactions, world.split, "subsequences", H
    ),
  )
  loader = loaders.DeviceLoader(
    data,
    windows.WindowLayout.create(world.catalog, world.layout, max_history=H),
    mesh.make_mesh(jax.devices()[:1]),
    batch_size=16,
  )
  cut = jax.jit(loader.sampler.cut)
  plan = loader.plan
  found = []
  steps = jnp.arange(len(want) // 16 + 1)  # one epoch and a little
  for index in jax.jit(loader.sampler.indices)(steps, key[None])[:, 0]:
    batch = cut(loader.data, index, key)
    for row in range(plan.num_rows):
      for segment in range(1, plan.input_segments[row].max() + 1):
        pair = [
          np.asarray(tokens[row])[segments[row] == segment]
          for tokens, segments in (
            (batch.inputs, plan.input_segments),
            (batch.targets, plan.target_segments),
          )
        ]
        found.append(tuple(tuple(part[part > 0].tolist()) for part in pair))
  assert plan.num_rows < 16  # several examples a row
  assert set(found) == set(want)
  assert len(found) < len(want) + 32


def test_batches_of_all_hosts_hold_every_example_once(world_of, registry):
  world = world_of(1, variable=True, buckets=2)
  register(world, augmentation="prefixes")
  lengths = lengths_of(world)
  train = windows.training_examples(
    world.interactions, world.split, "prefixes", H
  )

  def rows(**options):
    found = batches.batches(
      "task",
      split="train",
      batch_size=3,
      sequence_length=lengths,
      shuffle=True,
      seed=5,
      drop_remainder=False,
      **options,
    )
    out = []
    for batch in found:
      assert batch.inputs.shape[1] == lengths["inputs"]
      assert batch.targets.shape[1] == lengths["targets"]
      assert batch.inputs.dtype == batch.targets.dtype == np.int32
      for pair in zip(batch.inputs, batch.targets, strict=True):
        out.append(tuple(tuple(r[r != 0].tolist()) for r in pair))
    return out

  both = [rows(host_index=h, num_hosts=2) for h in (0, 1)]
  assert sorted(both[0] + both[1]) == sorted(window_rows(world, train))
  # A resumed run goes on where it stopped.
  assert rows(skip_batches=2) == rows()[6:]


def test_cached_examples_are_the_same(world_of, registry, tmp_path):
  world = world_of(2, variable=True, buckets=2)
  task = register(world)
  stats = cache.cache_task("task", tmp_path, num_shards=3)
  train = windows.training_examples(
    world.interactions, world.split, max_history=H
  )
  want = window_rows(world, train)
  assert stats["train"]["examples"] == len(want)
  # Statistics count what the files hold: EOS is appended on reading.
  assert stats["train"]["inputs_tokens"] == sum(len(i) - 1 for i, _ in want)
  assert stats["train"]["targets_max_tokens"] == max(
    len(t) - 1 for _, t in want
  )
  found = batches.batches(
    "task",
    split="train",
    batch_size=len(want),
    sequence_length=lengths_of(world),
    shuffle=False,
    cache_dir=str(tmp_path),
  )
  batch = next(found)
  rows = [
    tuple(tuple(r[r != 0].tolist()) for r in pair)
    for pair in zip(batch.inputs, batch.targets, strict=True)
  ]
  assert rows != want  # written in random order
  assert sorted(rows) == sorted(want)
  assert task.get_cached_stats("test") == stats["test"]
  shards = sorted((tmp_path / "task").glob("train.tfrecord-*-of-00003"))
  assert len(shards) == 3
  assert min(shard.stat().st_size for shard in shards) > 0
  with pytest.raises(checks.InputError, match=r"exists; remove it"):
    cache.cache_task("task", tmp_path)
  assert {p.name for p in tmp_path.iterdir()} == {"task"}


def test_packing_keeps_every_example_whole(world_of, registry):
  world = world_of(3, variable=True, buckets=0)
  task = register(world)
  lengths = {"inputs": 64, "targets": 24}
  dataset = task.get_dataset(
    sequence_length=lengths, split="train", shuffle=False
  )
  want = sorted(seqio_rows(dataset))
  packed = seqio.EncDecFeatureConverter(pack=True)(dataset, lengths)
  got = []
  num_rows = 0
  for row in packed.as_numpy_iterator():
    num_rows += 1
    segments = row["decoder_segment_ids"]
    for segment in range(1, segments.max() + 1):
      inside = segments == segment
      targets = row["decoder_target_tokens"][inside]
      inputs = row["encoder_input_tokens"][
        row["encoder_segment_ids"] == segment
      ]
      got.append((tuple(inputs.tolist()), tuple(targets.tolist())))
      # Each segment's decoder starts from 0, not from its neighbour's end.
      shifted = row["decoder_input_tokens"][inside]
      assert shifted.tolist() == [0, *targets[:-1].tolist()]
  assert sorted(got) == want
  assert num_rows < len(want) / 2


def test_mixture_draws_at_its_rates(world_of, registry):
  worlds = [
    world_of(seed, variable=False, buckets=2, num_users=60) for seed in (0, 1)
  ]
  layouts = SidVocabulary.joint(
    [world.catalog for world in worlds], num_user_buckets=2
  )
  vocabulary = SidSeqioVocabulary(*layouts)
  for index, world in enumerate(worlds):
    register(world, f"task{index}", vocabulary, layout_index=index)
  next_item.register_mixture("both", {"task0": 3.0, "task1": 1.0})
  found = batches.batches(
    "both",
    split="train",
    batch_size=400,
    sequence_length=sequence_lengths(vocabulary, [4, 4], H),
    shuffle=True,
    seed=0,
    num_epochs=None,
  )
  targets = next(found).targets
  is_second = targets[:, 0] >= layouts[1].level_offsets[0]
  # 100 of 400 expected with deviation 8.7; five deviations.
  assert abs(int(is_second.sum()) - 100) < 44
  known = {
    tuple(row)
    for world, layout in zip(worlds, layouts, strict=True)
    for row in layout.tokens_from_codes(world.catalog.codes).tolist()
  }
  assert {tuple(row) for row in targets.tolist()} <= known
  text = vocabulary.decode(targets[is_second][0].tolist())
  assert text.startswith("<e_")
  assert vocabulary.encode(text) == targets[is_second][0].tolist()


def test_vocabulary_is_a_seqio_vocabulary(world_of):
  world = world_of(0, variable=True, buckets=4)
  vocabulary = SidSeqioVocabulary(world.layout)
  tokens = world.layout.tokens_from_codes(world.catalog.codes)[1].tolist()
  text = world.layout.readable([t for t in tokens if t])
  assert vocabulary.decode([*tokens, 1, 9]) == text
  assert (
    vocabulary.decode_tf(tf.constant([*tokens, 1, 9])).numpy().decode() == text
  )
  encoded = vocabulary.encode_tf(tf.constant(text)).numpy().tolist()
  assert encoded == vocabulary.encode(text)
  assert vocabulary.encode(text) == [t for t in tokens if t]
  assert vocabulary.vocab_size == world.layout.vocab_size
  assert (vocabulary.pad_id, vocabulary.eos_id) == (0, 1)
  assert (vocabulary.unk_id, vocabulary.bos_id) == (None, None)
  same = SidSeqioVocabulary(world.layout)
  assert vocabulary == same
  assert hash(vocabulary) == hash(same)
  assert vocabulary != SidSeqioVocabulary(SidVocabulary((3,)))
  assert "codebook_sizes" in str(vocabulary)
  with pytest.raises(checks.InputError, match=r"overlap: one ends at 5"):
    SidSeqioVocabulary(SidVocabulary((3,)), SidVocabulary((3,)))


def test_evaluator_computes_item_metrics(world_of, registry):
  world = world_of(0, variable=True, buckets=0, num_users=3)
  metrics = seqio_metrics.ItemMetrics(
    world.catalog, world.layout, cutoffs=(1, 2), best_last=True
  )
  register(world, **metrics.arguments())
  evaluator = seqio.Evaluator(
    "task",
    seqio.EncDecFeatureConverter(pack=False),
    eval_split="test",
    sequence_length=lengths_of(world),
    async_compute_metrics=False,
  )
  tokens = world.layout.tokens_from_codes(world.catalog.codes)
  targets = world.interactions.items[world.split.test.target_position]
  others = [i for i in range(40) if i not in targets.tolist()]

  def predict(dataset):
    # Example 0 finds its target first, 1 second, 2 not at all; worst first.
    ranked = [
      [targets[0], others[0], others[3]],
      [others[1], targets[1], others[3]],
      [others[2], None, others[3]],
    ]
    out = []
    for index, _ in dataset.as_numpy_iterator():
      beams = [np.full(4, 2) if i is None else tokens[i] for i in ranked[index]]
      out.append((int(index), np.stack(beams[::-1])))
    return out[::-1]

  future, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
  found = future.result()["task"]
  second = 1 / np.log2(3)
  assert found == pytest.approx(
    {
      "recall@1": 1 / 3,
      "recall@2": 2 / 3,
      "ndcg@1": 1 / 3,
      "ndcg@2": (1 + second) / 3,
      "mrr": (1 + 1 / 2) / 3,
      "invalid_rate": 1 / 9,
    }
  )


def test_shared_ids_count_in_expectation():
  found = seqio_metrics.ranking_metrics(
    ["a", "b"], [["b", "a"], ["b", "x"]], {"a": 1, "b": 4}, (1, 2)
  )
  assert found["recall@1"] == pytest.approx((0 + 1 / 4) / 2)
  assert found["recall@2"] == pytest.approx((1 + 1 / 4) / 2)
  assert found["mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)
  assert found["invalid_rate"] == pytest.approx(1 / 4)


def test_lengths_that_would_trim_are_refused(world_of, registry):
  world = world_of(0, variable=False, buckets=2)
  task = register(world)
  fits = lengths_of(world)
  assert fits == {"inputs": 1 + H * 4 + 1, "targets": 4}
  for feature in fits:
    short = {**fits, feature: fits[feature] - 1}
    message = (
      rf"'{feature}' is {short[feature]}, .* raise it to {fits[feature]}"
    )
    with pytest.raises(checks.InputError, match=message):
      task.get_dataset(sequence_length=short, split="train", shuffle=False)


def test_bad_tasks_are_refused(world_of, registry, tmp_path):
  world = world_of(0, variable=False, buckets=0)
  task = register(world)
  with pytest.raises(checks.InputError, match=r"'task' is taken"):
    register(world)
  vocabulary = SidSeqioVocabulary(world.layout)
  with pytest.raises(checks.InputError, match=r"span 0\.\.9999, but"):
    next_item.register(
      "other",
      source=task.source,
      vocabulary=vocabulary,
      sid_tokens=np.array([[0, 9999]], np.int32),
      max_history=H,
    )
  small = SidSeqioVocabulary(SidVocabulary((3, 3)))
  with pytest.raises(checks.InputError, match=r"Layout 0 .*\(3, 3\), the cat"):
    register(world, "other", small)
  next_item.register(
    "other",
    source=task.source,
    vocabulary=small,
    sid_tokens=np.array([[2, 5]], np.int32),
    max_history=H,
  )
  with pytest.raises(checks.InputError, match=r"'task' and 'other' have diff"):
    next_item.register_mixture("mix", {"task": 1.0, "other": 1.0})
  with pytest.raises(checks.InputError, match=r"rate of task 'task' .* got 0"):
    next_item.register_mixture("mix", {"task": 0.0})
  with pytest.raises(checks.InputError, match=r"Unknown seqio task 'tusk'"):
    next_item.register_mixture("mix", {"tusk": 1.0})
  with pytest.raises(checks.InputError, match=r"needs at least one task"):
    next_item.register_mixture("mix", {})


def test_bad_batches_and_caches_are_refused(world_of, registry, tmp_path):
  world = world_of(0, variable=False, buckets=0)
  register(world)
  options = {
    "split": "train",
    "batch_size": 2,
    "sequence_length": lengths_of(world),
    "shuffle": False,
  }
  for name, change, message in (
    ("tusk", {}, r"Unknown seqio task 'tusk'.*'task'"),
    ("task", {"split": "dev"}, r"Unknown split of task 'dev'"),
    ("task", {"batch_size": 0}, r"at least 1; got 0"),
    ("task", {"host_index": 1}, r"0\.\.0; got 1"),
    ("task", {"cache_dir": str(tmp_path)}, r"'task' has no cache under"),
  ):
    with pytest.raises(checks.InputError, match=message):
      batches.batches(name, **{**options, **change})
  with pytest.raises(checks.InputError, match=r"Unknown seqio task 'tusk'"):
    cache.cache_task("tusk", tmp_path)
  with pytest.raises(checks.InputError, match=r"Unknown split of task 'dev'"):
    cache.cache_task("task", tmp_path, splits=["dev"])
  with pytest.raises(checks.InputError, match=r"num_shards must be .* got 0"):
    cache.cache_task("task", tmp_path, num_shards=0)
  seqio.TaskRegistry.add(
    "bare",
    source=seqio.TaskRegistry.get("task").source,
    output_features=seqio.TaskRegistry.get("task").output_features,
  )
  with pytest.raises(checks.InputError, match=r"has no seqio.CacheDatasetPl"):
    cache.cache_task("bare", tmp_path)
  assert not list(tmp_path.iterdir())
  with pytest.raises(checks.InputError, match=r"cutoffs must .* got \(0,\)"):
    seqio_metrics.ItemMetrics(world.catalog, world.layout, cutoffs=(0,))
  with pytest.raises(checks.InputError, match=r"Recall at 5 .* got 1"):
    seqio_metrics.ranking_metrics(["a"], [["a"]], {"a": 1}, (5,))
  with pytest.raises(checks.InputError, match=r"No example to evaluate"):
    seqio_metrics.ranking_metrics([], [], {}, (5,))
