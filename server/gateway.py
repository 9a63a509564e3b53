"""The state that all requests share: settings, engine, auxiliary models, metrics, probe costs."""

from __future__ import annotations

import contextlib
import logging

from adjourn.policies.policy import Needs, Policy
from adjourn.policies.registry import parse
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.text.dialect import builtin_dialects, override_dialects
from adjourn.server.api.chat import CHAT_PATH
from adjourn.server.api.request import ParsedRequest
from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.config import Settings
from adjourn.server.eligibility import Backends, find_ineligible_reason
from adjourn.server.engine_watch import EngineWatch
from adjourn.server.engines.adapter import Adapter
from adjourn.server.engines.capabilities import Capabilities
from adjourn.server.metrics import Metrics
from adjourn.server.upstream import http
from adjourn.server.upstream.client import EngineClient, Model
from adjourn.server.upstream.equality import EqualityChecker
from adjourn.server.upstream.pooling import Embedder, RewardScorer

__all__ = ["Gateway"]

log = logging.getLogger("adjourn.gateway")

_MAX_COST_MODELS = 256


class Gateway:
    """One per process. ``watch.run`` must run next to the server, or the engine is never examined.

    ``embedder`` and ``reward_scorer`` are None if not configured. ``default_policy`` is None if
    the setting ``policy`` is ``off``.

    State: ``watch`` holds what is known of the engine. ``draining`` is set at shutdown.
    ``_cost_models`` maps a model and a policy to what was learned of the cost of its probes; only
    ``get_cost_model`` changes it.
    """

    def __init__(
        self, settings: Settings, transport: http.AsyncBaseTransport | None = None
    ) -> None:
        self.settings = settings
        self.engine = EngineClient(settings, transport)
        self.equality_checker = EqualityChecker()
        self.metrics = Metrics()
        self.embedder = self._make_embedder(transport)
        self.reward_scorer = self._make_reward_scorer(transport)
        self.default_policy = (
            None
            if settings.policy == "off"
            else parse(settings.policy, readiness_probes=settings.probes)
        )
        self.dialects = override_dialects(builtin_dialects(), settings.dialects)
        self.watch = EngineWatch(
            self.engine, self.dialects, self.metrics, self._on_capabilities_changed
        )
        self.draining = False
        self._cost_models: dict[tuple[str, Policy], ProbeCostModel] = {}

    def _make_embedder(self, transport: http.AsyncBaseTransport | None) -> Embedder | None:
        settings = self.settings
        if settings.embeddings_url is None:
            return None
        engine = EngineClient(settings, transport, settings.embeddings_url)
        model, key = settings.embeddings_model, settings.embeddings_api_key
        return Embedder(engine, model, key, self.metrics)

    def _make_reward_scorer(self, transport: http.AsyncBaseTransport | None) -> RewardScorer | None:
        settings = self.settings
        if settings.reward_url is None:
            return None
        engine = EngineClient(settings, transport, settings.reward_url)
        model, key = settings.reward_model, settings.reward_api_key
        return RewardScorer(engine, model, key, self.metrics, settings.reward_step)

    @property
    def adapter(self) -> Adapter:
        """The adapter of the detected kind of engine; vLLM's until it is detected."""
        return self.watch.adapter

    @property
    def capabilities(self) -> Capabilities | None:
        """What the engine can do; None until it was examined."""
        return self.watch.capabilities

    @property
    def models(self) -> dict[str, Model]:
        """The models that the engine serves, by id; empty until it was examined."""
        return dict(self.capabilities.models) if self.capabilities else {}

    @property
    def engine_defaults(self) -> EngineDefaults:
        return self.capabilities.engine_defaults if self.capabilities else EngineDefaults()

    @property
    def is_ready(self) -> bool:
        """True if the engine answered the last check and the gateway is not shutting down."""
        return self.watch.is_up and not self.draining

    def get_cost_model(self, model: str, policy: Policy) -> ProbeCostModel:
        """The cost model of this model under this policy; a new one if there is none.

        Clients may send any options, so the number is limited: the one that was not requested for
        the longest time is dropped.
        """
        key = (model, policy)
        cost_model = self._cost_models.pop(key, None) or ProbeCostModel()
        self._cost_models[key] = cost_model  # the latest last
        if len(self._cost_models) > _MAX_COST_MODELS:
            self._cost_models.pop(next(iter(self._cost_models)))
        return cost_model

    def find_ineligible_reason(
        self,
        policy: Policy,
        model: Model | None,
        request: ParsedRequest | None = None,
        endpoint: str = CHAT_PATH,
    ) -> str | None:
        """Why the policy cannot run for this model or request, or None; see ``eligibility``."""
        backends = Backends(
            self.adapter,
            self.capabilities,
            has_embedder=self.embedder is not None,
            has_reward_scorer=self.reward_scorer is not None,
        )
        return find_ineligible_reason(backends, policy, model, request, endpoint)

    async def _on_capabilities_changed(self, report: Capabilities) -> None:
        self._log_capabilities(report)
        await self._check_auxiliary_models()

    async def _check_auxiliary_models(self) -> None:
        """Log a warning for each auxiliary model that does not answer. Policies that need it run
        without its results, and each request tries it again."""
        hi = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
        requests = (self.embedder, {"input": "Hi"}), (self.reward_scorer, {"messages": hi})
        for client, fields in requests:
            if client is None:
                continue
            if isinstance(error := await client.request(**fields), str):
                log.warning("the %s model at %s: %s", client.kind, client.engine.url, error)

    def _log_capabilities(self, report: Capabilities) -> None:
        """Log each model, and whether the default policy runs for it. Create its metrics' series
        if it does."""
        for model in report.models.values():
            name = (
                model.dialect.definition.name
                if model.dialect
                else "none, so its requests are passed through"
            )
            log.info("engine %s, model %s, dialect %s", report.engine_version, model.id, name)
            if self.default_policy is not None:
                if why := self.find_ineligible_reason(self.default_policy, model):
                    log.warning(
                        "policy %s is off for %s: %s", self.default_policy.name, model.id, why
                    )
                else:
                    self.metrics.initialize_series(
                        model.id,
                        self.default_policy.name,
                        _pooling_kinds(self.default_policy.needs),
                    )
            warnings = model.dialect.definition.warnings if model.dialect else {}
            if self.default_policy is not None and self.default_policy.name in warnings:
                log.warning("%s: %s", model.id, warnings[self.default_policy.name])

    async def aclose(self) -> None:
        """Close the connections and end the helper process."""
        await self.equality_checker.aclose()
        for client in (self.embedder, self.reward_scorer):
            if client is not None:
                await client.engine.aclose()
        with contextlib.suppress(Exception):
            await self.engine.aclose()


def _pooling_kinds(needs: Needs) -> list[str]:
    """The kinds of auxiliary models that are needed."""
    kinds = (Embedder.kind, needs.embeddings), (RewardScorer.kind, needs.rewards)
    return [kind for kind, needed in kinds if needed]
