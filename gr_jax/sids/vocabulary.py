"""Token layout: pad, EOS, user buckets, then the codes of every level."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from gr_jax.core import checks
from gr_jax.sids import sid_catalog

PAD_ID = 0
EOS_ID = 1
_NUM_SPECIAL = 2
_READABLE = re.compile(r"<(pad|/s|user_\d+|invalid_\d+|[a-z]+_\d+)>")


@dataclasses.dataclass(frozen=True)
class SidVocabulary:
  """Maps codes of semantic IDs, user buckets and specials to token ids.

  Ids: 0 pad, 1 EOS, then `num_user_buckets` user buckets, then level l's
  codes from `level_offsets[l]` on. Levels of a variable-length catalog may
  overlap on purpose: the same code of the same tokenizer level keeps one
  token wherever it stands in the ID (see `SidCatalog.level_starts`).

  >>> vocabulary = SidVocabulary((4, 4), num_user_buckets=10)
  >>> vocabulary.vocab_size
  20
  >>> tokens = vocabulary.tokens_from_codes(np.array([3, 1], np.int32))
  >>> tokens.tolist(), vocabulary.readable(tokens)
  ([15, 17], '<a_3><b_1>')

  Attributes:
    codebook_sizes: Codes of each level, the extra level included.
    num_user_buckets: Tokens that user ids hash into; 0 turns them off.
    append_eos: Whether targets end with EOS. Needed exactly where IDs differ
      in length; a fixed-length ID ends by itself.
    level_starts: First code of each level in the space of all codes; None
      puts the levels back to back.
    first_letter: Letter of level 0 in text, counted from 0 = a; catalogs that
      share one model (`joint`) go on where the one before ended.
  """

  codebook_sizes: tuple[int, ...]
  num_user_buckets: int = 0
  append_eos: bool = False
  level_starts: tuple[int, ...] | None = None
  first_letter: int = 0

  def __post_init__(self):
    """Refuses empty or impossible layouts."""
    if not self.codebook_sizes or min(self.codebook_sizes) < 1:
      raise checks.InputError(
        "codebook_sizes must name at least one level, each with at least "
        f"one code; got {self.codebook_sizes}."
      )
    if self.num_user_buckets < 0:
      raise checks.InputError(
        f"num_user_buckets must be 0 or more; got {self.num_user_buckets}."
      )
    if self.level_starts is not None and len(self.level_starts) != len(
      self.codebook_sizes
    ):
      raise checks.InputError(
        f"level_starts {self.level_starts} must have one entry per level of "
        f"codebook_sizes {self.codebook_sizes}."
      )
    if self.vocab_size >= 2**31:
      raise checks.InputError(
        f"The vocabulary would have {self.vocab_size} tokens, more than "
        "int32 holds; use smaller codebooks."
      )

  @classmethod
  def from_catalog(
    cls,
    catalog: sid_catalog.SidCatalog,
    *,
    num_user_buckets: int = 0,
    append_eos: bool | None = None,
  ) -> SidVocabulary:
    """Returns the layout of a catalog's IDs.

    Args:
      catalog: The catalog.
      num_user_buckets: Tokens that user ids hash into.
      append_eos: None follows the catalog: True where lengths vary.

    Raises:
      InputError: A variable-length catalog is asked for without EOS.
    """
    if append_eos is None:
      append_eos = catalog.is_variable_length
    if catalog.is_variable_length and not append_eos:
      raise checks.InputError(
        "append_eos=False cannot tell where IDs of different lengths end; "
        "leave it out or set it to True for this catalog."
      )
    return cls(
      codebook_sizes=catalog.codebook_sizes,
      num_user_buckets=num_user_buckets,
      append_eos=append_eos,
      level_starts=catalog.level_starts,
    )

  @classmethod
  def joint(
    cls,
    catalogs: Sequence[sid_catalog.SidCatalog],
    *,
    num_user_buckets: int = 0,
    append_eos: bool | None = None,
  ) -> tuple[SidVocabulary, ...]:
    """Returns layouts under which one model serves several catalogs.

    Specials and user buckets are common, the levels of one catalog follow
    those of the one before, so that no code of two catalogs shares a token.
    The last layout's `vocab_size` is the model's.

    Args:
      catalogs: In the order of their token ranges.
      num_user_buckets: Tokens that user ids hash into.
      append_eos: None: True when any catalog varies in length.
    """
    if append_eos is None:
      append_eos = any(catalog.is_variable_length for catalog in catalogs)
    layouts: list[SidVocabulary] = []
    for catalog in catalogs:
      layout = cls.from_catalog(
        catalog, num_user_buckets=num_user_buckets, append_eos=append_eos
      )
      if layouts:
        before = layouts[-1]
        shift = before.vocab_size - _NUM_SPECIAL - num_user_buckets
        starts = [
          offset - layout.level_offsets[0] + shift
          for offset in layout.level_offsets
        ]
        layout = dataclasses.replace(
          layout,
          level_starts=tuple(starts),
          first_letter=before.first_letter + before.num_levels,
        )
      layouts.append(layout)
    return tuple(layouts)

  @property
  def pad_id(self) -> int:
    """Token of padding."""
    return PAD_ID

  @property
  def eos_id(self) -> int:
    """Token that ends a sequence."""
    return EOS_ID

  @property
  def num_levels(self) -> int:
    """Levels of a semantic ID, L."""
    return len(self.codebook_sizes)

  @property
  def level_offsets(self) -> tuple[int, ...]:
    """First token of each level; code c of level l is offsets[l] + c."""
    starts = self.level_starts
    if starts is None:
      starts = sid_catalog.consecutive_starts(self.codebook_sizes)
    return tuple(_NUM_SPECIAL + self.num_user_buckets + s for s in starts)

  @property
  def code_ranges(self) -> tuple[tuple[int, int], ...]:
    """First token and number of codes of each level."""
    return tuple(zip(self.level_offsets, self.codebook_sizes, strict=True))

  @property
  def vocab_size(self) -> int:
    """Number of tokens, V."""
    return max(first + count for first, count in self.code_ranges)

  def padded_size(self, multiple: int) -> int:
    """Returns `vocab_size` rounded up to a multiple (sharding, tiling).

    Raises:
      InputError: `multiple` is below 1.
    """
    if multiple < 1:
      raise checks.InputError(f"multiple must be at least 1; got {multiple}.")
    return -(-self.vocab_size // multiple) * multiple

  def tokens_from_codes(
    self, codes: Int32[Array | np.ndarray, "*batch L"]
  ) -> Int32[Array | np.ndarray, "*batch L"]:
    """Returns the token of every code; -1 (no code) becomes pad.

    Works on host arrays and, under jit too, on device arrays; the result
    lives where the input did. Codes are taken on trust: a `SidCatalog`
    checked them.

    Raises:
      InputError: The last axis is not `num_levels` long.
    """
    xp = self._namespace(codes, "codes")
    offsets = self._offsets_like(codes)
    return xp.where(codes >= 0, codes + offsets, xp.int32(PAD_ID))

  def codes_from_tokens(
    self, tokens: Int32[Array | np.ndarray, "*batch L"]
  ) -> Int32[Array | np.ndarray, "*batch L"]:
    """Inverts `tokens_from_codes`; a token foreign to its level gives -1.

    Raises:
      InputError: The last axis is not `num_levels` long.
    """
    xp = self._namespace(tokens, "tokens")
    codes = tokens - self._offsets_like(tokens)
    sizes = np.array(self.codebook_sizes, np.int32)
    sizes = sizes.reshape((1,) * (tokens.ndim - 1) + (-1,))
    return xp.where((codes >= 0) & (codes < sizes), codes, xp.int32(-1))

  def user_token(self, user_id: str) -> int:
    """Returns the bucket token of a user, the same on every machine.

    Raises:
      InputError: The layout has no user buckets.
    """
    if self.num_user_buckets == 0:
      raise checks.InputError(
        "This vocabulary has no user tokens; set num_user_buckets above 0."
      )
    digest = hashlib.blake2b(user_id.encode(), digest_size=8).digest()
    bucket = int.from_bytes(digest, "little") % self.num_user_buckets
    return _NUM_SPECIAL + bucket

  def user_tokens(self, user_ids: Sequence[str]) -> Int32[np.ndarray, "U"]:
    """Returns the bucket token of each user; pad without user buckets."""
    if self.num_user_buckets == 0:
      return np.full(len(user_ids), PAD_ID, np.int32)
    return np.array([self.user_token(u) for u in user_ids], np.int32)

  def readable(self, tokens: Sequence | np.ndarray | Array) -> str:
    """Writes tokens as text, e.g. "<a_12><b_3><c_7><d_0>".

    Levels are letters (a is the coarsest; after z come aa, ab, ...), EOS is
    "</s>", padding "<pad>", a user bucket "<user_5>". `parse` inverts it.
    """
    return "".join(self._token_text(int(t)) for t in np.asarray(tokens).ravel())

  def parse(self, text: str) -> list[int]:
    """Reads tokens written by `readable`.

    Raises:
      InputError: Something in `text` is not a token of this layout.
    """
    tokens, end = [], 0
    for match in _READABLE.finditer(text):
      if match.start() != end:
        break
      tokens.append(self._token_of_text(match.group(1)))
      end = match.end()
    if end != len(text):
      raise checks.InputError(
        f"Cannot read a token at position {end} of {text[:80]!r}; write "
        "semantic IDs as '<a_12><b_3>'."
      )
    return tokens

  def _token_text(self, token: int) -> str:
    if token == PAD_ID:
      return "<pad>"
    if token == EOS_ID:
      return "</s>"
    if _NUM_SPECIAL <= token < _NUM_SPECIAL + self.num_user_buckets:
      return f"<user_{token - _NUM_SPECIAL}>"
    if not self.level_offsets[0] <= token < self.vocab_size:
      return f"<invalid_{token}>"
    # The last level that starts at or before the token owns it, also where
    # ranges overlap: an overlap shows the codes of deeper tokenizer levels.
    level = int(np.searchsorted(self.level_offsets, token, "right")) - 1
    return f"<{self._letter(level)}_{token - self.level_offsets[level]}>"

  def _token_of_text(self, text: str) -> int:
    if text == "pad":
      return PAD_ID
    if text == "/s":
      return EOS_ID
    name, number = text.rsplit("_", 1)
    if name == "user" and int(number) < self.num_user_buckets:
      return _NUM_SPECIAL + int(number)
    levels = {self._letter(level): level for level in range(self.num_levels)}
    if name in levels:
      level = levels[name]
      if int(number) < self.codebook_sizes[level]:
        return self.level_offsets[level] + int(number)
    raise checks.InputError(
      f"<{text}> is no token of levels of {self.codebook_sizes} codes and "
      f"{self.num_user_buckets} user buckets."
    )

  def _letter(self, level: int) -> str:
    return _letters(self.first_letter + level)

  def _namespace(self, array, name: str):
    if array.shape[-1] != self.num_levels:
      raise checks.InputError(
        f"{name} have {array.shape[-1]} levels; this vocabulary has "
        f"{self.num_levels}."
      )
    return jnp if isinstance(array, jax.Array) else np

  def _offsets_like(self, array) -> np.ndarray:
    offsets = np.array(self.level_offsets, np.int32)
    return offsets.reshape((1,) * (array.ndim - 1) + (-1,))


def _letters(level: int) -> str:
  """Names a level as spreadsheets name columns: a..z, aa, ab, ..."""
  name = ""
  level += 1
  while level:
    level, digit = divmod(level - 1, 26)
    name = chr(ord("a") + digit) + name
  return name
