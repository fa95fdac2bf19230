"""Networks only: no data, no loss, no loop."""

from gr_jax.models.config import T5Config
from gr_jax.models.encoder_decoder import (
  DecodeContext,
  EncoderDecoder,
  shift_right,
)
from gr_jax.models.sharding import logical_axes

__all__ = [
  "DecodeContext",
  "EncoderDecoder",
  "T5Config",
  "logical_axes",
  "shift_right",
]
