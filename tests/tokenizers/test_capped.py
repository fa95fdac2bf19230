"""Assignment under a cap, against deferred acceptance one item at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks, nearest
from gr_jax.core import mesh as meshes
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import capped
from gr_jax.tokenizers.balanced import BalancedResidualKMeans


def reference(x, centers, cap):
  """Gale and Shapley's procedure: who is turned away asks the next."""
  distance = np.square(x[:, None] - centers[None]).sum(-1)
  wishes = np.argsort(distance, axis=1, kind="stable")
  asked, free = np.zeros(len(x), int), list(range(len(x)))
  held = [[] for _ in centers]
  while free:
    item = free.pop()
    code = wishes[item, asked[item]]
    asked[item] += 1
    held[code] = sorted([*held[code], (distance[item, code], item)])
    free += [other for _, other in held[code][cap:]]
    held[code] = held[code][:cap]
  codes = np.full(len(x), -1)
  for code, items in enumerate(held):
    codes[[item for _, item in items]] = code
  return codes


def whole_numbers(num_rows, num_codes, seed=0):
  """Rows and centers of mean 0, whose distances float32 holds exactly."""
  draw = np.random.default_rng(seed)
  half = draw.integers(-6, 7, (num_codes // 2, 3))
  x = draw.integers(-6, 7, (num_rows, 3))
  x[: num_rows // 2] = np.abs(x[: num_rows // 2])  # crowded on one side
  return x.astype(np.float32), np.concatenate([half, -half]).astype(np.float32)


def test_four_items_by_hand():
  x, centers = jnp.array([[0.0], [1.0], [2.0], [10.0]]), jnp.array([[0.0], [9]])
  found = capped.capped_assign(x, centers, cap=2)
  assert found.tolist() == [0, 0, 1, 1]  # 2 is turned away
  found = capped.capped_assign(x, centers, cap=3)
  assert found.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("slack", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("num_rows", "num_codes"), [(400, 16), (97, 10)])
def test_equals_deferred_acceptance(num_rows, num_codes, slack):
  x, centers = whole_numbers(num_rows, num_codes)
  cap = capped.cap_of(num_rows, num_codes, slack)
  want = reference(x, centers, cap)
  found = capped.capped_assign(jnp.asarray(x), jnp.asarray(centers), cap=cap)
  np.testing.assert_array_equal(found, want)
  assert np.bincount(want).max() <= cap


def test_without_a_cap_the_nearest_code_wins():
  x, centers = map(jnp.asarray, whole_numbers(300, 12))
  found = capped.capped_assign(x, centers, cap=300)
  np.testing.assert_array_equal(found, nearest.nearest_code(x, centers))


def test_blocks_of_rows_and_devices_change_nothing(monkeypatch):
  x, centers = whole_numbers(203, 8)  # 203 rows: the last device has zeros
  want = reference(x, centers, 30)
  split = RowSplit(meshes.make_mesh(jax.devices()), 203)
  run = split.run(
    lambda x, c: capped.capped_assign(x, c, cap=30, split=split),
    takes_rows=(True, False),
    gives_rows=True,
  )
  found = jax.jit(run)(split.place(x), split.copy(jnp.asarray(centers)))
  np.testing.assert_array_equal(split.to_host(found), want)
  monkeypatch.setattr(capped, "_BLOCK_ELEMENTS", 256)
  capped.capped_assign.clear_cache()
  found = capped.capped_assign(jnp.asarray(x), jnp.asarray(centers), cap=30)
  np.testing.assert_array_equal(found, want)


def test_slack_trades_balance_for_error(key):
  draw = np.random.default_rng(0)
  x = draw.normal(size=(600, 4)) * draw.choice([0.2, 3.0], (600, 1))
  x = jnp.asarray(x, jnp.float32)
  errors, sizes = [], []
  for slack in (None, 0.2, 1.0):
    tokenizer = BalancedResidualKMeans((8, 8), slack=slack)
    _, report = tokenizer.fit(x, key=key)
    errors.append(report.relative_mse)
    sizes.append(np.bincount(report.codes[:, 0]).max())
  assert errors[0] > errors[1] > errors[2]
  assert sizes[0] == 75
  assert 75 < sizes[1] <= 90
  assert sizes[2] <= 150


def test_refusals():
  with pytest.raises(checks.InputError, match="slack=-1.0; want >= 0"):
    BalancedResidualKMeans(slack=-1.0)
  with pytest.raises(checks.InputError, match="leave order='random' out"):
    BalancedResidualKMeans(slack=0.1, order="random")
