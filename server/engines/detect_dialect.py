"""Detects the dialect of a model, from the token ids of a few fixed texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from adjourn.policies.text.dialect import Dialect, TokenizedDialect, candidate_dialects
from adjourn.policies.text.markers import TokenIds
from adjourn.server.engines.adapter import Adapter, Headers
from adjourn.server.errors import GatewayError
from adjourn.server.upstream.client import BadReply

__all__ = ["detect_dialect"]

log = logging.getLogger("adjourn.selftest")


async def detect_dialect(
    adapter: Adapter,
    model: str,
    dialects: Mapping[str, Dialect],
    forced_dialect: str | None,
    headers: Headers,
    missing: dict[str, str],
) -> TokenizedDialect | None:
    """The first candidate whose marker tokens exist in the model's vocabulary, or None.

    Dialects whose ``models`` match the model's name are tried first; ``forced_dialect`` is the only
    one tried, if set. If the engine does not tokenize, that is added to ``missing``.
    """

    async def ids(text: str) -> TokenIds:
        return tuple(await adapter.tokenize(model, text, headers))

    try:
        known: dict[str, TokenIds] = {}
        for dialect in candidate_dialects(model, dialects, forced_dialect):
            for text in dialect.identifying_texts:
                if text not in known:
                    known[text] = await ids(text)
            if dialect.fits_vocabulary(known):
                return TokenizedDialect.from_ids(
                    dialect, {text: await ids(text) for text in dialect.texts_to_tokenize}
                )
    except (GatewayError, BadReply) as error:
        missing["/tokenize"] = f"no dialect can be detected, so nothing is stopped ({error})"
        return None
    log.warning("no dialect fits model %s: its requests are passed through", model)
    return None
