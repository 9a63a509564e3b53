"""What all requests share: the engine, what it can do, the metrics, what was learned of prices."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from adjourn.policies.policy import Needs, Policy
from adjourn.policies.registry import parse
from adjourn.policies.sampling import SamplingPolicy
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.text.dialect import builtin_dialects, override_dialects
from adjourn.server.api.chat import CHAT_PATH as CHAT
from adjourn.server.api.completions import COMPLETIONS_PATH as COMPLETIONS
from adjourn.server.api.completions import can_separate_stops
from adjourn.server.api.request import ParsedRequest
from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.config import Settings
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
from adjourn.server.upstream import http
from adjourn.server.upstream.client import BadReply, EngineClient, Model
from adjourn.server.upstream.equality import EqualityChecker
from adjourn.server.upstream.pooling import Embedder, RewardScorer

__all__ = ["Gateway"]

log = logging.getLogger("adjourn.gateway")

_MAX_COST_MODELS = 256
_DETECTION_TIMEOUT = 120.0
"""Seconds that an examination may take; an engine that hangs is not ready."""
_MAX_REDETECTIONS = 3


class Gateway:
    """Made once a process; ``watch`` runs beside the server."""

    def __init__(
        self, settings: Settings, transport: http.AsyncBaseTransport | None = None
    ) -> None:
        self.settings = settings
        self.engine = EngineClient(settings, transport)
        self.adapter: Adapter = VLLM(self.engine)  # until it was asked
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
        self.capabilities: Capabilities | None = None
        self.engine_up = False
        self.draining = False
        self._redetections_left = 0
        self._cost_models: dict[tuple[str, Policy], ProbeCostModel] = {}

    def _make_embedder(self, transport: http.AsyncBaseTransport | None) -> Embedder | None:
        """None where none is configured, as below."""
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
    def models(self) -> dict[str, Model]:
        return dict(self.capabilities.models) if self.capabilities else {}

    @property
    def engine_defaults(self) -> EngineDefaults:
        return self.capabilities.engine_defaults if self.capabilities else EngineDefaults()

    @property
    def is_ready(self) -> bool:
        return self.engine_up and not self.draining

    def get_cost_model(self, model: str, policy: Policy) -> ProbeCostModel:
        """One a model and policy; requests with options of their own share a bounded number."""
        key = (model, policy)
        appraiser = self._cost_models.pop(key, None) or ProbeCostModel()
        self._cost_models[key] = appraiser  # the latest last: what goes is what nobody asks for
        if len(self._cost_models) > _MAX_COST_MODELS:
            self._cost_models.pop(next(iter(self._cost_models)))
        return appraiser

    def find_ineligible_reason(
        self,
        policy: Policy,
        model: Model | None,
        request: ParsedRequest | None = None,
        endpoint: str = CHAT,
    ) -> str | None:
        """Why this policy cannot judge this model here, or not this request of it, or None."""
        if self.capabilities is None or model is None:
            return "unexamined-model"
        if model.dialect is None:
            return "no-dialect"
        if not (self.adapter.supports(endpoint) and self.capabilities.can_cut(endpoint)):
            return "engine-cannot-resume"
        if endpoint not in (CHAT, COMPLETIONS) and not self.adapter.supports_translation:
            return "unexamined-api"
        if isinstance(policy, SamplingPolicy) and request is not None and request.num_choices > 1:
            return "several-choices"  # it answers with one
        needs, in_place = policy.needs, self.adapter.ends_in_place
        if in_place and (needs.trace_endings or needs.end_bias):
            return "engine-cannot-reopen"
        if needs.probes and not self.capabilities.can_probe:
            return "engine-cannot-probe"
        if needs.end_logprob and not self.capabilities.can_score_endings:
            return "engine-cannot-score-endings"
        if needs.models - {model.id}:
            return "learned-of-another-model"
        if needs.hidden_states - self.capabilities.hidden_state_layers:
            return "engine-tells-no-hidden-states"
        if needs.logprobs and not self.capabilities.can_return_logprobs:
            return "engine-tells-no-logprobs"
        if needs.embeddings and self.embedder is None:
            return "no-embedder"
        if needs.rewards and self.reward_scorer is None:
            return "no-reward-model"
        if needs.rewards and endpoint == COMPLETIONS:
            return "no-messages"  # a reward model reads a conversation
        if needs.inducers - model.dialect.inducers.keys():
            return "dialect-lacks-an-inducer"
        if (
            request is not None
            and request.has_stop_strings
            and (in_place or not can_separate_stops(request.prompt, model.dialect))
        ):
            return "stop-strings"  # they are not the answer's alone, and text lags behind them
        return None

    async def watch_engine(self) -> None:
        """Look whether the engine is there, and examine it when it came (back), serves other
        models, or failed an examination that it may pass now."""
        while True:
            was = self.engine_up
            try:
                async with asyncio.timeout(_DETECTION_TIMEOUT):
                    await self._check_engine()
                self.engine_up = True
            except (TimeoutError, GatewayError, BadReply, msgspec.MsgspecError) as error:
                self.engine_up = False
                if was or self.capabilities is None:
                    log.warning("the engine at %s is not ready: %s", self.engine.url, error)
            except Exception:  # whatever it was, the next look may find better
                self.engine_up = False
                log.exception("looking at the engine at %s", self.engine.url)
            self.metrics.engine_up.set(self.engine_up)
            await asyncio.sleep(self.settings.recheck if self.engine_up else 1.0)

    async def _check_engine(self) -> None:
        ids = await list_model_ids(self.engine)
        known = self.capabilities is not None and ids == set(self.capabilities.models)
        if (
            known
            and self.engine_up
            and not (
                self.capabilities and self.capabilities.missing and self._redetections_left > 0
            )
        ):
            status, _ = await self.engine.get("/health", ())
            if status != 200:
                raise BadReply(f"/health answered {status}")
            return
        # What an engine lacks it may only have lacked for a moment: ask a few times.
        self._redetections_left = _MAX_REDETECTIONS if not known else self._redetections_left - 1
        self.adapter, version = await detect_adapter(
            self.engine, self.settings.engine, authorization_headers(self.settings)
        )
        report = await detect_capabilities(
            self.adapter, version, self.dialects, self.settings.dialect
        )
        changed, self.capabilities = report != self.capabilities, report
        if changed:
            self._log_capabilities(report)
            await self._check_pooling_models()

    async def _check_pooling_models(self) -> None:
        """Whether the models beside the engine's answer; what needs one that does not goes on
        without, and asks it again each time."""
        hi = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
        asked = (self.embedder, {"input": "Hi"}), (self.reward_scorer, {"messages": hi})
        for endpoint, fields in asked:
            if endpoint is None:
                continue
            if isinstance(told := await endpoint.request(**fields), str):
                log.warning("the %s model at %s: %s", endpoint.kind, endpoint.engine.url, told)

    def _log_capabilities(self, report: Capabilities) -> None:
        for model in report.models.values():
            name = (
                model.dialect.definition.name if model.dialect else "none, so it is handed through"
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
        await self.equality_checker.aclose()
        for endpoint in (self.embedder, self.reward_scorer):
            if endpoint is not None:
                await endpoint.engine.aclose()
        with contextlib.suppress(Exception):
            await self.engine.aclose()


def _pooling_kinds(needs: Needs) -> list[str]:
    """The kinds of models that are asked beside the engine's."""
    kinds = (Embedder.kind, needs.embeddings), (RewardScorer.kind, needs.rewards)
    return [kind for kind, wanted in kinds if wanted]
