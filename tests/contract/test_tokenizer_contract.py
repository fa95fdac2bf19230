"""What every entry of TOKENIZERS has to hold, whatever the method."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import artifact, checks
from gr_jax.tokenizers import TOKENIZERS, base, pq, residual_kmeans

N, D = 96, 12
TRAINED = {
  "num_epochs": 60,
  "batch_size": 32,
  "check_every_epochs": 30,
  "learning_rate": 1e-2,
}

# A small configuration of every entry: a new tokenizer adds its line here.
SMALL = {
  "autoencoder": {
    "hidden_dims": (8,),
    "code_dim": 4,
    "quantizer": pq.PQ(codebook_sizes=(8, 4), max_iters=5),
    **TRAINED,
  },
  "balanced_residual_kmeans": {"codebook_sizes": (8, 5), "max_iters": 5},
  "fsq": {
    "num_tokens": 2,
    "levels": (4, 3),
    "hidden_dims": (),
    "sub_dim": 4,
    **TRAINED,
  },
  "lsh": {"num_tokens": 2, "num_bits": 5},
  "minibatch_residual_kmeans": {
    "codebook_sizes": (8, 4),
    "batch_size": 40,
    "num_passes": 2,
  },
  "opmq": {
    "codebook_sizes": (8, 4),
    "hidden_dims": (8,),
    "code_dim": 4,
    **TRAINED,
  },
  "opq": {"codebook_sizes": (8, 4), "num_iters": 4, "max_iters": 5},
  "pq": {"codebook_sizes": (8, 4), "max_iters": 5},
  "random": {"codebook_sizes": (16, 16)},
  "residual_kmeans": {"codebook_sizes": (8, 4), "max_iters": 5},
  "rq_opq": {
    "residual_sizes": (8,),
    "subspace_sizes": (4, 4),
    "max_iters": 5,
    "num_iters": 3,
  },
  "rq_vae": {
    "codebook_sizes": (8, 4),
    "hidden_dims": (8,),
    "code_dim": 4,
    **TRAINED,
  },
  "rvq": {"codebook_sizes": (8, 4), **TRAINED},
  "sinkhorn_residual_kmeans": {"codebook_sizes": (8, 5), "max_iters": 5},
  "vae": {
    "hidden_dims": (8,),
    "code_dim": 4,
    "quantizer": residual_kmeans.ResidualKMeans(
      codebook_sizes=(8, 4), max_iters=5
    ),
    **TRAINED,
  },
  "vq_vae": {
    "codebook_sizes": (8,),
    "hidden_dims": (8,),
    "code_dim": 4,
    **TRAINED,
  },
}
# These fit no codebook, so they need no row per code.
ANY_NUMBER_OF_ROWS = {"fsq", "lsh", "random"}
# These give fitted rows codes that `encode` alone would not.
OWN_CODES = {"balanced_residual_kmeans", "sinkhorn_residual_kmeans"}


@dataclasses.dataclass(frozen=True)
class Fitted:
  name: str
  tokenizer: base.Tokenizer
  state: base.State
  report: base.FitReport
  x: np.ndarray


def rows(seed=0, num_rows=N):
  """Rows in ten clusters, so that codes have something to find."""
  rng = np.random.default_rng(seed)
  centers = 3 * rng.normal(size=(10, D))
  x = centers[rng.integers(0, 10, num_rows)] + rng.normal(size=(num_rows, D))
  return x.astype(np.float32)


@functools.cache
def fitted(name):
  tokenizer = TOKENIZERS[name](**SMALL[name])
  x = rows()
  state, report = tokenizer.fit(x, key=jax.random.key(0))
  return Fitted(name, tokenizer, state, report, x)


@pytest.fixture(params=sorted(TOKENIZERS))
def case(request):
  return fitted(request.param)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_entry_is_covered():
  assert SMALL.keys() == TOKENIZERS.keys()


def test_codes_and_decoded_rows_have_the_promised_form(case):
  sizes = case.tokenizer.codebook_sizes
  codes = case.tokenizer.encode(case.state, case.x)
  assert codes.dtype == jnp.int32
  assert codes.shape == (N, len(sizes))
  assert (np.asarray(codes) >= 0).all()
  assert (np.asarray(codes) < np.array(sizes)[None]).all()
  decoded = case.tokenizer.decode(case.state, codes)
  assert decoded.dtype == jnp.float32
  assert decoded.shape == (N, D)
  assert np.isfinite(np.asarray(decoded)).all()
  assert isinstance(case.tokenizer.hierarchical, bool)
  assert dataclasses.is_dataclass(case.tokenizer)
  assert case.tokenizer == TOKENIZERS[case.name](**SMALL[case.name])
  hash(case.tokenizer)


def test_the_report_describes_the_hard_codes(case):
  report, num_levels = case.report, len(case.tokenizer.codebook_sizes)
  assert report.num_rows == N
  assert report.codes.dtype == np.int32
  for field in ("utilization", "dead_codes", "perplexity", "gini", "revived"):
    assert len(getattr(report, field)) == num_levels, field
  if case.name not in OWN_CODES:
    codes = case.tokenizer.encode(case.state, case.x)
    np.testing.assert_array_equal(report.codes, codes)
  decoded = case.tokenizer.decode(case.state, report.codes)
  mse = np.mean(np.sum((case.x - np.asarray(decoded)) ** 2, axis=-1))
  np.testing.assert_allclose(report.mse, mse, rtol=1e-4)
  json.dumps(report.to_dict())


def test_jit_changes_nothing(case):
  codes = case.tokenizer.encode(case.state, case.x)
  traced = jax.jit(case.tokenizer.encode)(case.state, case.x)
  np.testing.assert_array_equal(codes, traced)
  np.testing.assert_allclose(
    case.tokenizer.decode(case.state, codes),
    jax.jit(case.tokenizer.decode)(case.state, codes),
    rtol=1e-5,
    atol=1e-5,
  )


def test_splitting_the_batch_changes_no_code(case):
  whole = np.asarray(case.tokenizer.encode(case.state, case.x))
  for size in (1, 7):
    parts = base.encode_in_chunks(
      case.tokenizer, case.state, case.x[:20], chunk_size=size
    )
    np.testing.assert_array_equal(parts, whole[:20])


def test_the_same_key_gives_the_same_state(case):
  state, report = case.tokenizer.fit(case.x, key=jax.random.key(0))
  assert_same(state, case.state)
  np.testing.assert_array_equal(report.codes, case.report.codes)


def test_abstract_state_is_the_state(case):
  template = case.tokenizer.abstract_state(D)
  assert jax.tree.structure(template) == jax.tree.structure(case.state)
  jax.tree.map(
    lambda want, have: (
      None
      if (want.shape, want.dtype) == (have.shape, have.dtype)
      else pytest.fail(f"{want} != {have}")
    ),
    template,
    case.state,
  )


def test_save_and_load_round_trip(case, tmp_path):
  artifact.save(
    tmp_path / "tokenizer",
    kind="tokenizer",
    config=dataclasses.asdict(case.tokenizer),
    arrays=base.state_to_arrays(case.state),
  )
  arrays = artifact.load(tmp_path / "tokenizer", kind="tokenizer").arrays
  template = case.tokenizer.abstract_state(D)
  state = base.state_from_arrays(template, arrays)
  assert_same(state, case.state)
  np.testing.assert_array_equal(
    case.tokenizer.encode(state, case.x),
    case.tokenizer.encode(case.state, case.x),
  )


def test_a_warm_start_keeps_its_source_and_is_no_worse(case):
  before = base.state_to_arrays(case.state)
  before = {name: array.copy() for name, array in before.items()}
  state, report = case.tokenizer.fit(
    case.x, key=jax.random.key(1), init=case.state
  )
  assert_same(base.state_to_arrays(case.state), before)
  assert jax.tree.structure(state) == jax.tree.structure(case.state)
  assert report.mse <= case.report.mse * 1.05 + 1e-6


def test_a_warm_start_from_another_width_is_refused(case):
  with pytest.raises(checks.InputError, match="State does not fit"):
    case.tokenizer.fit(
      np.ascontiguousarray(np.tile(case.x, 2)),
      key=jax.random.key(0),
      init=case.state,
    )


def test_a_state_with_missing_arrays_is_refused(case):
  arrays = base.state_to_arrays(case.state)
  name = next(iter(arrays))
  template = case.tokenizer.abstract_state(D)
  with pytest.raises(checks.InputError, match=f"{name} on one side only"):
    base.state_from_arrays(
      template, {k: v for k, v in arrays.items() if k != name}
    )


def test_decoding_beats_the_mean_row(case):
  if case.name == "random":
    return
  assert case.report.relative_mse < 1.0


def test_too_few_rows_are_refused(case):
  if case.name in ANY_NUMBER_OF_ROWS:
    return
  with pytest.raises(checks.InputError, match=r"got N=3, num_codes=\d+"):
    case.tokenizer.fit(case.x[:3], key=jax.random.key(0))


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda x: np.full_like(x, 2.0), "All 96 embeddings are equal"),
    (lambda x: np.where(x == x[5, 3], np.nan, x), "in 1 rows.*in row 5"),
    (lambda x: x.astype(np.float16), "must be float32, got float16"),
    (lambda x: x[:, :0], r"embedding_dim=0|got \(96, 0\)|\[96, 0\]"),
    (lambda x: x[:0], r"at least 1 rows; got 0|no rows"),
  ],
  ids=["constant", "nan", "float16", "no columns", "no rows"],
)
def test_unusable_embeddings_are_refused(case, spoil, message):
  with pytest.raises(checks.InputError, match=message):
    case.tokenizer.fit(spoil(case.x), key=jax.random.key(0))


# Options of any tokenizer, and the largest value that makes no sense.
TOO_SMALL = {
  "batch_size": 0,
  "check_every_epochs": 0,
  "code_dim": 0,
  "codebook_sizes": (8, 0),
  "commitment_weight": -1.0,
  "hidden_dims": (8, 0),
  "learning_rate": 0.0,
  "max_iters": 0,
  "num_bits": 0,
  "num_epochs": 0,
  "num_iters": 0,
  "num_passes": 0,
  "num_tokens": 0,
  "residual_sizes": (0,),
  "sub_dim": 0,
  "tol": -1.0,
  "subspace_sizes": (0, 4),
  "weight_decay": -1.0,
}


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_options_that_make_no_sense_are_refused_by_name(name):
  kind = TOKENIZERS[name]
  options = {field.name for field in dataclasses.fields(kind)}
  for option in sorted(options & TOO_SMALL.keys()):
    named = "codebook_sizes" if option.endswith("_sizes") else option
    with pytest.raises(checks.InputError, match=named):
      kind(**{**SMALL[name], option: TOO_SMALL[option]})


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_codes_beyond_int32_are_refused(name):
  beyond = {
    "codebook_sizes": (2**31, 4),
    "residual_sizes": (2**31,),
    "subspace_sizes": (2**31, 4),
    "levels": (2**16, 2**15),
    "num_bits": 31,
  }
  kind = TOKENIZERS[name]
  options = {field.name for field in dataclasses.fields(kind)}
  if "quantizer" in options:
    return  # its own entry
  assert options & beyond.keys()
  for option in sorted(options & beyond.keys()):
    with pytest.raises(checks.InputError, match=r"int32.*|2\^31-1"):
      kind(**{**SMALL[name], option: beyond[option]})


def test_encode_refuses_other_widths_dtypes_and_nan(case):
  encode = functools.partial(case.tokenizer.encode, case.state)
  with pytest.raises(checks.InputError, match=r"\(96, 11\).*width D=12"):
    encode(case.x[:, :-1])
  with pytest.raises(checks.InputError, match="float32, got float16"):
    encode(case.x.astype(np.float16))
  spoilt = case.x.copy()
  spoilt[7, 0] = np.inf
  with pytest.raises(checks.InputError, match="NaN or infinite.*row 7"):
    encode(spoilt)


def test_decode_refuses_codes_that_do_not_exist(case):
  sizes = case.tokenizer.codebook_sizes
  decode = functools.partial(case.tokenizer.decode, case.state)
  codes = np.asarray(case.report.codes).copy()
  with pytest.raises(checks.InputError, match=f"want .B, L={len(sizes)}"):
    decode(np.pad(codes, ((0, 0), (0, 1))))
  with pytest.raises(checks.InputError, match="must be int32, got int64"):
    decode(codes.astype(np.int64))
  for wrong in (-1, sizes[-1]):
    codes[4, -1] = wrong
    with pytest.raises(
      checks.InputError, match=f"Code {wrong} of row 4, level {len(sizes) - 1}"
    ):
      decode(codes)
