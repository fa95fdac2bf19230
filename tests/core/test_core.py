"""core: streams, permutations, artifacts, metric rows, meshes, checks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import (
  artifact,
  checks,
  mesh,
  metric_writer,
  permutation,
  progress,
  rng,
)


def test_streams_depend_on_name_and_key_alone(key):
  same = jax.random.key_data(rng.stream(key, "dropout"))
  np.testing.assert_array_equal(
    same, jax.random.key_data(rng.stream(key, "dropout"))
  )
  other = jax.random.key_data(rng.stream(key, "init"))
  assert not np.array_equal(same, other)
  draws = [rng.numpy_generator(key, "users").integers(1 << 30) for _ in "ab"]
  assert draws[0] == draws[1]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permutation_is_one_to_one(key, size):
  keys = permutation.round_keys(key)
  image = permutation.permute(jnp.arange(size), keys, size=size)
  np.testing.assert_array_equal(np.sort(image), np.arange(size))


def test_permutation_spreads_neighbours_and_differs_by_key(key):
  size = 20_000
  first, second = map(permutation.round_keys, jax.random.split(key))
  image = np.asarray(permutation.permute(jnp.arange(size), first, size=size))
  # A random permutation's correlation with the identity has deviation
  # 1 / sqrt(size) = 0.007, and about one fixed point.
  assert abs(np.corrcoef(image, np.arange(size))[0, 1]) < 0.03
  assert np.sum(image == np.arange(size)) < 10
  # Steps between neighbours: the mean of |i - j| over pairs is size / 3.
  assert abs(np.abs(np.diff(image)).mean() / size - 1 / 3) < 0.02
  other = np.asarray(permutation.permute(jnp.arange(size), second, size=size))
  assert np.mean(image == other) < 0.001


def test_permutation_takes_keys_by_position(key):
  a, b = (permutation.round_keys(k) for k in jax.random.split(key))
  index = jnp.array([3, 3], jnp.int32)
  both = permutation.permute(index, jnp.stack([a, b]), size=100)
  alone = [permutation.permute(index[:1], k, size=100)[0] for k in (a, b)]
  np.testing.assert_array_equal(both, alone)


def test_permutation_refuses_sizes_beyond_its_range(key):
  keys = permutation.round_keys(key)
  with pytest.raises(checks.InputError, match=r"got size=0"):
    permutation.permute(jnp.arange(1), keys, size=0)


def _save(path, value=1.0):
  return artifact.save(
    path,
    kind="thing",
    config={"sizes": (1, 2)},
    arrays={"state/codebook": np.full((2, 3), value, np.float32)},
    parents={"embeddings": "abc"},
    metadata={"note": "x"},
  )


def test_artifact_round_trip_and_hash(tmp_path):
  saved = _save(tmp_path / "a")
  loaded = artifact.load(tmp_path / "a", kind="thing")
  assert loaded.hash == saved.hash
  assert loaded.config == {"sizes": [1, 2]}
  np.testing.assert_array_equal(
    loaded.arrays["state/codebook"], np.ones((2, 3), np.float32)
  )
  assert artifact.group(loaded.arrays, "state").keys() == {"codebook"}
  # Same content, same hash; other content, other hash; replaced in place.
  assert _save(tmp_path / "b").hash == saved.hash
  assert _save(tmp_path / "a", 2.0).hash != saved.hash
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_metadata_does_not_enter_the_hash(tmp_path):
  kwargs = {"kind": "thing", "config": {}, "arrays": {"x": np.ones(2)}}
  fast = artifact.save(tmp_path / "a", **kwargs, metadata={"seconds": 1.0})
  slow = artifact.save(tmp_path / "b", **kwargs, metadata={"seconds": 2.0})
  assert fast.hash == slow.hash
  assert artifact.load(tmp_path / "b", kind="thing").hash == slow.hash


def test_artifact_refusals(tmp_path):
  with pytest.raises(checks.InputError, match="No thing at"):
    artifact.load(tmp_path / "none", kind="thing")
  _save(tmp_path / "a")
  with pytest.raises(checks.InputError, match="holds a thing, want a other"):
    artifact.load(tmp_path / "a", kind="other")
  file = tmp_path / "a" / "state.codebook.npy"
  np.save(file, np.zeros((2, 3), np.float32))
  with pytest.raises(checks.InputError, match="differs from its manifest"):
    artifact.load(tmp_path / "a", kind="thing")
  file.write_bytes(b"short")
  with pytest.raises(checks.InputError, match="cannot be read"):
    artifact.load(tmp_path / "a", kind="thing")
  manifest = tmp_path / "a" / "manifest.json"
  text = manifest.read_text()
  manifest.write_text(text.replace('schema_version": 1', 'schema_version": 99'))
  with pytest.raises(checks.InputError, match="schema version 99"):
    artifact.load(tmp_path / "a", kind="thing")
  manifest.write_text("{")
  with pytest.raises(checks.InputError, match="is damaged"):
    artifact.load(tmp_path / "a", kind="thing")


def test_failed_save_leaves_the_old_artifact(tmp_path):
  _save(tmp_path / "a")
  with pytest.raises(checks.InputError, match="dtype"):
    artifact.save(
      tmp_path / "a", kind="thing", config={}, arrays={"x": np.array(["s"])}
    )
  with pytest.raises(checks.InputError, match="Not writable as JSON"):
    artifact.save(tmp_path / "a", kind="thing", config={"f": print}, arrays={})
  assert artifact.load(tmp_path / "a", kind="thing").metadata == {"note": "x"}


def test_strings_round_trip():
  strings = ("", "nail polish", "Crème brûlée", "日本")
  assert artifact.unpack_strings(artifact.pack_strings(strings)) == strings
  assert artifact.unpack_strings(artifact.pack_strings(())) == ()


def test_metric_rows_of_lost_steps_are_dropped(tmp_path):
  writer = metric_writer.MetricWriter(tmp_path)
  for step in (10, 20, 30):
    writer.write(step, {"loss": step / 10})
  writer.write(30, {"bad": float("nan")})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 40, "lo')  # a crash in mid-line
  assert len(metric_writer.read(tmp_path)) == 4
  writer = metric_writer.MetricWriter(tmp_path, start_step=20)
  writer.close()
  assert [row["step"] for row in metric_writer.read(tmp_path)] == [10, 20]
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["loss"] for line in lines] == [1.0, 2.0]


def test_mesh_axes_and_refusals():
  devices = jax.devices()
  grid = mesh.make_mesh(devices, model=2)
  assert dict(grid.shape) == {"data": 4, "model": 2}
  x = jax.device_put(jnp.arange(8), mesh.batch_sharding(grid))
  assert x.addressable_shards[0].data.shape == (2,)
  with pytest.raises(checks.InputError, match=r"model=3 does not divide"):
    mesh.make_mesh(devices, model=3)
  with pytest.raises(checks.InputError, match=r"data=3 x model=1"):
    mesh.make_mesh(devices, data=3)
  with pytest.raises(checks.InputError, match=r"batch_size=6 is not"):
    mesh.check_batch(grid, 6)


def test_unknown_names_suggest_the_closest():
  with pytest.raises(checks.InputError, match="Did you mean 'rq_vae'"):
    checks.check_known("rqvae", ["rq_vae", "lsh"], "tokenizer")


def test_numbers_below_their_bound_are_refused_by_name():
  checks.check_at_least(1, widths=(), num_epochs=1, dims=(4, 1))
  for options, message in (
    ({"num_epochs": 0}, r"num_epochs=0; want >= 1\."),
    ({"dims": (4, 0)}, r"dims=\(4, 0\); want >= 1\."),
    ({"share": float("nan")}, r"share=nan; want >= 1\."),
  ):
    with pytest.raises(checks.InputError, match=message):
      checks.check_at_least(1, **options)


def test_matrix_checks():
  checks.check_matrix("x", np.zeros((2, 3), np.float32))
  with pytest.raises(checks.InputError, match=r"must be a matrix"):
    checks.check_matrix("x", np.zeros(3, np.float32))
  with pytest.raises(checks.InputError, match=r"got float16"):
    checks.check_matrix("x", np.zeros((2, 3), np.float16))
  with pytest.raises(checks.InputError, match=r"at least 3 rows; got 2"):
    checks.check_matrix("x", np.zeros((2, 3), np.float32), min_rows=3)
  bad = np.zeros((4, 3), np.float32)
  bad[2, 1] = np.nan
  with pytest.raises(checks.InputError, match=r"1 NaN .* first in row 2"):
    checks.check_matrix("x", bad)


def test_bars_are_silent_unless_enabled(capsys):
  with progress.bar("work", total=2) as advance:
    advance(2, note="done")
  captured = capsys.readouterr()
  assert captured.out == captured.err == ""
