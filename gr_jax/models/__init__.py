"""Networks only: no data, no loss, no loop."""

from gr_jax.models.config import T5Config
from gr_jax.models.decoder_only import DecoderOnly
from gr_jax.models.encoder_decoder import (
  DecodeContext,
  EncoderDecoder,
  shift_right,
)
from gr_jax.models.sharding import logical_axes

# Networks of one interface, each made from a T5Config.
MODELS = {"encoder_decoder": EncoderDecoder, "decoder_only": DecoderOnly}

__all__ = [
  "MODELS",
  "DecodeContext",
  "DecoderOnly",
  "EncoderDecoder",
  "T5Config",
  "logical_axes",
  "shift_right",
]
