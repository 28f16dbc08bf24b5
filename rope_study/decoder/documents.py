"""Documents that share a window: which of them each token is of, and its position there.

B batch, T tokens.
"""

import jax
import jax.numpy as jnp

from rope_study.decoder.config import DecoderConfig

Array = jax.Array


def in_window(tokens: Array, config: DecoderConfig) -> tuple[Array, Array]:
    """The number of its document, from 0 or 1 on, and the position in it, of tokens int[B, T].

    A document begins at `document_start` or after `document_end` of the configuration, and at the
    beginning of a window whatever stands there.

    Returns:
      (documents int[B, T], positions int[B, T]).
    """
    if config.document_start is not None:
        begins = tokens == config.document_start
    else:
        begins = jnp.pad(tokens[:, :-1] == config.document_end, [(0, 0), (1, 0)])
    places = jnp.arange(tokens.shape[1])
    first = jax.lax.cummax(jnp.where(begins, places, 0), axis=1)
    return jnp.cumsum(begins, axis=1), places - first
