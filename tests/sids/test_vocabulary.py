import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary


def test_layout_by_hand():
  vocabulary = SidVocabulary((3, 2), num_user_buckets=4)
  assert (vocabulary.pad_id, vocabulary.eos_id) == (0, 1)
  assert vocabulary.level_offsets == (6, 9)
  assert vocabulary.code_ranges == ((6, 3), (9, 2))
  assert vocabulary.vocab_size == 11
  assert [vocabulary.padded_size(m) for m in (1, 8, 11, 128)] == [
    11,
    16,
    11,
    128,
  ]
  codes = np.array([[2, 1], [0, -1]], np.int32)
  tokens = vocabulary.tokens_from_codes(codes)
  np.testing.assert_array_equal(tokens, [[8, 10], [6, 0]])
  np.testing.assert_array_equal(vocabulary.codes_from_tokens(tokens), codes)
  # EOS, a user bucket and the other level's tokens are no codes.
  foreign = np.array([[1, 1], [2, 6], [9, 8]], np.int32)
  assert (vocabulary.codes_from_tokens(foreign) == -1).all()


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_device_and_host_agree_under_jit(shape):
  vocabulary = SidVocabulary((3, 5, 2), num_user_buckets=7)
  rng = np.random.default_rng(0)
  codes = rng.integers(-1, (3, 5, 2), (*shape, 3), dtype=np.int32)
  host = vocabulary.tokens_from_codes(codes)
  device = jax.jit(vocabulary.tokens_from_codes)(jnp.asarray(codes))
  assert isinstance(host, np.ndarray)
  assert isinstance(device, jax.Array)
  assert device.dtype == host.dtype == np.int32
  np.testing.assert_array_equal(device, host)
  back = jax.jit(vocabulary.codes_from_tokens)(device)
  np.testing.assert_array_equal(back, codes)


def test_user_tokens_are_stable_and_spread():
  vocabulary = SidVocabulary((4,), num_user_buckets=50)
  # A golden value: it must not move with versions, platforms or processes.
  assert vocabulary.user_token("A1YJEY40YUW4SE") == 20
  tokens = vocabulary.user_tokens([f"user {n}" for n in range(5000)])
  counts = np.bincount(tokens - 2, minlength=50)
  assert counts.size == 50
  # 100 expected in each bucket with deviation 10: five deviations.
  assert np.abs(counts - 100).max() < 50
  none = SidVocabulary((4,)).user_tokens(["a", "b"])
  np.testing.assert_array_equal(none, [0, 0])
  assert none.dtype == np.int32


def test_readable_and_parse():
  vocabulary = SidVocabulary((13, 4, 8, 1), num_user_buckets=6)
  sid = vocabulary.tokens_from_codes(np.array([12, 3, 7, 0], np.int32))
  text = vocabulary.readable([7, *sid, 1, 0, 99])
  assert text == "<user_5><a_12><b_3><c_7><d_0></s><pad><invalid_99>"
  known = text.removesuffix("<invalid_99>")
  assert vocabulary.parse(known) == [7, *sid.tolist(), 1, 0]
  assert vocabulary.parse("") == []
  many = SidVocabulary((2,) * 30)
  every = np.arange(many.vocab_size)
  assert many.parse(many.readable(every)) == every.tolist()
  assert many.readable([2 + 2 * 27]) == "<ab_0>"


@pytest.mark.parametrize(
  "text", ["<a_13>", "<e_0>", "<user_6>", "a_1", "<a_1> <b_1>", "<invalid_3>"]
)
def test_unreadable_text_is_refused(text):
  vocabulary = SidVocabulary((13, 4, 8, 1), num_user_buckets=6)
  with pytest.raises(checks.InputError, match=r"no token of|Cannot read"):
    vocabulary.parse(text)


def test_a_skipped_level_keeps_every_code_at_its_token():
  levels = np.array([[1, 2, 3], [1, -1, 3]], np.int32)
  catalog = SidCatalog.from_levels(
    ("x", "y"), levels, (4, 5, 6), num_semantic_levels=3
  )
  vocabulary = SidVocabulary.from_catalog(catalog, num_user_buckets=3)
  assert vocabulary.append_eos
  assert vocabulary.vocab_size == 2 + 3 + 4 + 5 + 6  # no token twice
  tokens = vocabulary.tokens_from_codes(catalog.codes)
  assert vocabulary.readable(tokens[0]) == "<a_1><b_2><c_3>"
  assert vocabulary.readable(tokens[1]) == "<a_1><c_3><pad>"
  np.testing.assert_array_equal(
    vocabulary.codes_from_tokens(tokens), catalog.codes
  )


def test_joint_layouts_share_no_code():
  first = SidCatalog(("x",), np.array([[0, 1]], np.int32), (4, 5), 1)
  second = SidCatalog(("y",), np.array([[2, 0]], np.int32), (3, 2), 1)
  one, two = SidVocabulary.joint([first, second], num_user_buckets=6)
  assert one.level_offsets == (8, 12)
  assert two.level_offsets == (17, 20)
  assert two.vocab_size == 2 + 6 + 4 + 5 + 3 + 2
  assert one.user_token("u") == two.user_token("u")
  tokens = two.tokens_from_codes(second.codes)[0]
  assert two.readable(tokens) == "<c_2><d_0>"
  assert two.parse("<c_2><d_0>") == tokens.tolist()
  assert one.readable(tokens) == "<invalid_19><invalid_20>"
  assert two.readable([8]) == "<invalid_8>"
  assert not one.append_eos
  shorter = SidCatalog(("x",), np.array([[0, -1]], np.int32), (4, 5), 1)
  both = SidVocabulary.joint([first, shorter])
  assert both[0].append_eos
  assert both[1].append_eos


def test_fixed_catalogs_need_no_eos():
  catalog = SidCatalog(("x",), np.zeros((1, 2), np.int32), (4, 5), 1)
  vocabulary = SidVocabulary.from_catalog(catalog)
  assert vocabulary == SidVocabulary((4, 5))
  assert SidVocabulary.from_catalog(catalog, append_eos=True).append_eos


def test_impossible_layouts_are_refused():
  with pytest.raises(checks.InputError, match=r"at least one level.*\(3, 0\)"):
    SidVocabulary((3, 0))
  with pytest.raises(checks.InputError, match=r"0 or more; got -1"):
    SidVocabulary((3,), num_user_buckets=-1)
  with pytest.raises(checks.InputError, match=r"one entry per level"):
    SidVocabulary((3,), level_starts=(0, 1))
  with pytest.raises(checks.InputError, match=r"more than int32 holds"):
    SidVocabulary((2**30,) * 2)
  with pytest.raises(checks.InputError, match=r"at least 1; got 0"):
    SidVocabulary((3,)).padded_size(0)
  with pytest.raises(checks.InputError, match=r"set num_user_buckets above 0"):
    SidVocabulary((3,)).user_token("x")
  with pytest.raises(checks.InputError, match=r"codes have 2 levels; .* has 1"):
    SidVocabulary((3,)).tokens_from_codes(np.zeros((4, 2), np.int32))
  with pytest.raises(checks.InputError, match=r"tokens have 2 levels"):
    SidVocabulary((3,)).codes_from_tokens(np.zeros((4, 2), np.int32))
  variable = SidCatalog(("x",), np.array([[0, -1]], np.int32), (4, 5), 1)
  with pytest.raises(checks.InputError, match=r"cannot tell where IDs"):
    SidVocabulary.from_catalog(variable, append_eos=False)
