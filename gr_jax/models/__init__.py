"""Networks only: no data, no loss, no loop."""

from gr_jax.models.config import T5Config
from gr_jax.models.encoder_decoder import (
  DecodeContext,
  EncoderDecoder,
  shift_right,
)

__all__ = ["DecodeContext", "EncoderDecoder", "T5Config", "shift_right"]
