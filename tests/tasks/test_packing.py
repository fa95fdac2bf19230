"""Packed rows: the same examples, the same loss, less padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.models.config import T5Config
from gr_jax.models.encoder_decoder import EncoderDecoder, shift_right
from gr_jax.tasks import packing, windows
from gr_jax.training import losses

LAYOUT = windows.WindowLayout(max_history=3, num_levels=2)  # 7 + 2 tokens


def test_a_plan_by_hand():
  # Three rows of 8 in place of five: 7; 5 + 3; 3 + 3.
  lengths = np.array([3, 3, 3, 5, 7])
  plan = packing.make_plan(
    lengths, LAYOUT, strata=packing.Strata(5, 5), batch_size=5
  )
  np.testing.assert_array_equal(
    plan.target_source, [[8, 9, -1, -1], [6, 7, 0, 1], [2, 3, 4, 5]]
  )
  np.testing.assert_array_equal(
    plan.input_segments,
    [[1] * 7 + [0], [1] * 5 + [2] * 3, [1] * 3 + [2] * 3 + [0] * 2],
  )
  np.testing.assert_array_equal(
    plan.target_segments, [[1, 1, 0, 0], [1, 1, 2, 2], [1, 1, 2, 2]]
  )
  batch = windows.Batch(
    inputs=np.arange(100, 135, dtype=np.int32).reshape(5, 7),
    targets=np.arange(200, 210, dtype=np.int32).reshape(5, 2),
  )
  packed = packing.pack(batch, plan)
  np.testing.assert_array_equal(
    packed.inputs[1], [121, 122, 123, 124, 125, 100, 101, 102]
  )
  np.testing.assert_array_equal(packed.inputs[0, 6:], [134, 0])
  np.testing.assert_array_equal(packed.targets[1], [206, 207, 200, 201])
  np.testing.assert_array_equal(packed.targets[0], [208, 209, 0, 0])
  # Some of the rows, for a host of its own.
  chosen, part = plan.take_rows(slice(1, 3))
  np.testing.assert_array_equal(chosen, [0, 1, 2, 3])
  some = jax.tree.map(lambda x: x[chosen], batch)
  got = packing.pack(some, part)
  np.testing.assert_array_equal(got.inputs, packed.inputs[1:])
  np.testing.assert_array_equal(got.targets, packed.targets[1:])


def test_sequences_stand_beside_their_targets():
  # Two items and one share a row of three; EOS is left out.
  layout = dataclasses.replace(LAYOUT, every_item=True)
  plan = packing.make_plan(
    np.array([3, 5, 7]), layout, strata=packing.Strata(3, 3), batch_size=3
  )
  batch = windows.Batch(
    inputs=np.arange(100, 121, dtype=np.int32).reshape(3, 7),
    targets=np.arange(200, 218, dtype=np.int32).reshape(3, 6),
  )
  packed = packing.pack(batch, plan)
  np.testing.assert_array_equal(
    packed.inputs,
    [[114, 115, 116, 117, 118, 119], [107, 108, 109, 110, 100, 101]],
  )
  np.testing.assert_array_equal(
    packed.targets,
    [[212, 213, 214, 215, 216, 217], [206, 207, 208, 209, 200, 201]],
  )
  np.testing.assert_array_equal(
    plan.input_segments, [[1] * 6, [1] * 4 + [2] * 2]
  )
  np.testing.assert_array_equal(plan.target_segments, plan.input_segments)
  chosen, part = plan.take_rows(slice(1, 2))
  np.testing.assert_array_equal(chosen, [0, 1])
  got = packing.pack(jax.tree.map(lambda x: x[chosen], batch), part)
  np.testing.assert_array_equal(got.targets, packed.targets[1:])


def test_the_longest_alone_stay_one_a_row():
  plan = packing.make_plan(
    np.full(8, 7), LAYOUT, strata=packing.Strata(8, 4), batch_size=4
  )
  np.testing.assert_array_equal(
    plan.target_source, [[0, 1], [2, 3], [4, 5], [6, 7]]
  )


@pytest.mark.parametrize("seed", range(3))
def test_every_example_has_its_room(seed):
  draw = np.random.default_rng(seed)
  lengths = np.sort(1 + 2 * draw.integers(1, 4, 50))
  strata = packing.Strata(50, 4)
  plan = packing.make_plan(
    lengths, LAYOUT, strata=strata, batch_size=12, row_multiple=8
  )
  assert plan.num_rows % 8 == 0
  used = plan.target_source[plan.target_source >= 0]
  np.testing.assert_array_equal(np.sort(used), np.arange(12 * 2))
  places = plan.input_source[plan.input_source >= 0]
  assert np.unique(places).size == places.size
  room = np.bincount(places // LAYOUT.input_length, minlength=12)
  longest = lengths[strata.starts + strata.sizes - 1]
  np.testing.assert_array_equal(room, np.repeat(longest, 3))


def test_strata_need_examples_enough():
  assert packing.Strata.create(131_072, 1024).count == 32
  assert packing.Strata.create(1_100, 1024).count == 4
  assert packing.Strata.create(100, 1024).count == 1
  assert packing.Strata.create(131_072, 24).count == 8
  strata = packing.Strata(11, 4)
  assert strata.sizes.tolist() == [3, 3, 3, 2]
  assert strata.starts.tolist() == [0, 3, 6, 9]


def test_packed_examples_cost_and_teach_as_unpacked_ones():
  draw = np.random.default_rng(0)
  items = draw.integers(1, 4, 24)
  items.sort()
  lengths = 1 + 2 * items
  layout = dataclasses.replace(LAYOUT, max_history=6)
  inputs = draw.integers(2, 20, (24, 13))
  inputs[np.arange(13)[None] >= lengths[:, None]] = 0
  batch = windows.Batch(
    inputs=jnp.asarray(inputs, jnp.int32),
    targets=jnp.asarray(draw.integers(2, 20, (24, 2)), jnp.int32),
  )
  plan = packing.make_plan(
    lengths, layout, strata=packing.Strata(24, 8), batch_size=24
  )
  assert plan.num_rows < 20
  packed = packing.pack(batch, plan)
  model = EncoderDecoder(
    T5Config(
      vocab_size=20,
      emb_dim=8,
      num_heads=2,
      head_dim=4,
      mlp_dim=16,
      num_encoder_layers=2,
      num_decoder_layers=2,
    )
  )
  params = jax.jit(model.init)(jax.random.key(0), batch.inputs, batch.targets)
  segments = jnp.asarray(plan.target_segments)

  def loss(params, batch, decoder_inputs, **more):
    logits = model.apply(params, batch.inputs, decoder_inputs, **more)
    terms = losses.token_cross_entropy(logits, batch.targets)
    return terms.loss / terms.tokens

  step = jax.jit(jax.value_and_grad(loss))
  want = step(params, batch, shift_right(batch.targets))
  got = step(
    params,
    packed,
    shift_right(packed.targets, segments),
    input_segment_ids=jnp.asarray(plan.input_segments),
    decoder_segment_ids=segments,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want
  )


def test_lengths_count_tokens_of_the_newest_items():
  data = windows.TrainingData(
    items=np.array([0, 1, 1, 0, 1]),
    item_tokens=np.array([[5, 6], [7, 0]]),  # 2 tokens and 1
    user_tokens=np.array([2]),
    user_index=np.zeros(2, np.int32),
    history_start=np.array([0, 0]),
    target_position=np.array([1, 4]),
  )
  layout = dataclasses.replace(LAYOUT, has_user_token=True)
  got = packing.example_lengths(data, layout)
  np.testing.assert_array_equal(got, [2 + 2, 1 + 1 + 2 + 2])
  ordered = packing.sort_examples(data, np.array([4, 1]))
  np.testing.assert_array_equal(ordered.target_position, [4, 1])
