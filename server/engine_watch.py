"""Checks in the background whether the engine answers, and what it can do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from adjourn.policies.text.dialect import Dialect
from adjourn.server.engines.adapter import Adapter
from adjourn.server.engines.capabilities import (
    Capabilities,
    authorization_headers,
    detect_capabilities,
    list_model_ids,
)
from adjourn.server.engines.detect import detect_adapter
from adjourn.server.engines.vllm import VLLM
from adjourn.server.errors import GatewayError
from adjourn.server.metrics import Metrics
from adjourn.server.upstream.client import BadReply, EngineClient

__all__ = ["EngineWatch"]

log = logging.getLogger("adjourn.gateway")

_DETECTION_TIMEOUT = 120.0
"""Seconds for one check, with detection. An engine that takes longer counts as down."""
_MAX_REDETECTIONS = 3
_DOWN_INTERVAL = 1.0
"""Seconds between checks while the engine is down."""


class EngineWatch:
    """What is known of the engine. ``run`` keeps it up to date.

    engine   condition                 next check after  what the check does
    -------  ------------------------  ----------------  ------------------------------------------
    unknown  ``capabilities`` is None  1 s               lists the models, detects capabilities
    down     not ``is_up``             1 s               the same
    up       ``is_up``                 ``recheck`` s     lists the models and requests /health;
                                                         detects if the models changed, or if a
                                                         capability is missing, up to three times

    A check that fails makes the engine down, and the next one that succeeds makes it up. Something
    that is missing may have failed only once, for example under load, hence the repetitions.

    State: ``adapter``, ``capabilities``, ``is_up`` and ``_redetections_left``. Only the task of
    ``run`` changes it. ``on_change`` is called with capabilities that differ from the last.
    """

    def __init__(
        self,
        engine: EngineClient,
        dialects: Mapping[str, Dialect],
        metrics: Metrics,
        on_change: Callable[[Capabilities], Awaitable[None]],
    ) -> None:
        self.adapter: Adapter = VLLM(engine)  # until the kind of engine is detected
        self.capabilities: Capabilities | None = None
        self.is_up = False
        self._engine = engine
        self._settings = engine.settings
        self._dialects = dialects
        self._metrics = metrics
        self._on_change = on_change
        self._redetections_left = 0

    async def run(self) -> None:
        """Check the engine until cancelled."""
        while True:
            was_up = self.is_up
            try:
                async with asyncio.timeout(_DETECTION_TIMEOUT):
                    await self._check()
                self.is_up = True
            except (TimeoutError, GatewayError, BadReply, msgspec.MsgspecError) as error:
                self.is_up = False
                if was_up or self.capabilities is None:
                    log.warning("the engine at %s is not ready: %s", self._engine.url, error)
            except Exception:  # an error of the gateway must not end the checks
                self.is_up = False
                log.exception("the check of the engine at %s failed", self._engine.url)
            self._metrics.engine_up.set(self.is_up)
            await asyncio.sleep(self._settings.recheck if self.is_up else _DOWN_INTERVAL)

    async def _check(self) -> None:
        """Raises GatewayError, BadReply or MsgspecError if the engine does not answer properly."""
        ids = await list_model_ids(self._engine)
        known = self.capabilities is not None and ids == set(self.capabilities.models)
        if (
            known
            and self.is_up
            and not (
                self.capabilities and self.capabilities.missing and self._redetections_left > 0
            )
        ):
            status, _ = await self._engine.get("/health", ())
            if status != 200:
                raise BadReply(f"/health answered {status}")
            return
        self._redetections_left = _MAX_REDETECTIONS if not known else self._redetections_left - 1
        self.adapter, version = await detect_adapter(
            self._engine, self._settings.engine, authorization_headers(self._settings)
        )
        report = await detect_capabilities(
            self.adapter, version, self._dialects, self._settings.dialect
        )
        changed, self.capabilities = report != self.capabilities, report
        if changed:
            await self._on_change(report)
