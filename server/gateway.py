"""What all requests share: the engine, what it can do, the metrics, what was learned of prices."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import httpx
import msgspec

from policies.appraisal import Appraiser
from policies.dialect import builtin, override
from policies.policy import Needs, Policy
from policies.registry import parse
from policies.sampling import Sampling
from server.adapters.adapter import Adapter
from server.adapters.recognise import recognised
from server.adapters.vllm import VLLM
from server.apis.habits import Habits
from server.chat import ENDPOINT as CHAT
from server.choose import Asked
from server.completions import ENDPOINT as COMPLETIONS
from server.completions import stops_apart
from server.config import Settings
from server.engine import BadReply, Engine, Model
from server.equality import Equality
from server.errors import GatewayError
from server.metrics import Metrics
from server.pooling import Embedder, Rewarder
from server.selftest import Report, authorization, examine, served

__all__ = ["Gateway"]

log = logging.getLogger("adjourn.gateway")

_APPRAISERS = 256
_EXAMINATION = 120.0
"""Seconds that an examination may take; an engine that hangs is not ready."""
_AGAIN = 3


class Gateway:
    """Made once a process; ``watch`` runs beside the server."""

    def __init__(
        self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.settings = settings
        self.engine = Engine(settings, transport)
        self.adapter: Adapter = VLLM(self.engine)  # until it was asked
        self.equality = Equality()
        self.metrics = Metrics()
        self.embedder = self._embedder(transport)
        self.rewarder = self._rewarder(transport)
        self.default = (
            None if settings.policy == "off" else parse(settings.policy, probes=settings.probes)
        )
        self.dialects = override(builtin(), settings.dialects)
        self.report: Report | None = None
        self.up = False
        self.draining = False
        self._again = 0
        self._appraisers: dict[tuple[str, Policy], Appraiser] = {}

    def _embedder(self, transport: httpx.AsyncBaseTransport | None) -> Embedder | None:
        """None where none is configured, as below."""
        settings = self.settings
        if settings.embeddings_url is None:
            return None
        engine = Engine(settings, transport, settings.embeddings_url)
        model, key = settings.embeddings_model, settings.embeddings_api_key
        return Embedder(engine, model, key, self.metrics)

    def _rewarder(self, transport: httpx.AsyncBaseTransport | None) -> Rewarder | None:
        settings = self.settings
        if settings.reward_url is None:
            return None
        engine = Engine(settings, transport, settings.reward_url)
        model, key = settings.reward_model, settings.reward_api_key
        return Rewarder(engine, model, key, self.metrics, settings.reward_step)

    @property
    def models(self) -> dict[str, Model]:
        return dict(self.report.models) if self.report else {}

    @property
    def habits(self) -> Habits:
        return self.report.habits if self.report else Habits()

    @property
    def ready(self) -> bool:
        return self.up and not self.draining

    def appraiser(self, model: str, policy: Policy) -> Appraiser:
        """One a model and policy; requests with options of their own share a bounded number."""
        key = (model, policy)
        appraiser = self._appraisers.pop(key, None) or Appraiser()
        self._appraisers[key] = appraiser  # the latest last: what goes is what nobody asks for
        if len(self._appraisers) > _APPRAISERS:
            self._appraisers.pop(next(iter(self._appraisers)))
        return appraiser

    def refusal(
        self,
        policy: Policy,
        model: Model | None,
        asked: Asked | None = None,
        endpoint: str = CHAT,
    ) -> str | None:
        """Why this policy cannot judge this model here, or not this request of it, or None."""
        if self.report is None or model is None:
            return "unexamined-model"
        if model.marks is None:
            return "no-dialect"
        if not (self.adapter.speaks(endpoint) and self.report.can_cut(endpoint)):
            return "engine-cannot-resume"
        if endpoint not in (CHAT, COMPLETIONS) and not self.adapter.retold:
            return "unexamined-api"
        if isinstance(policy, Sampling) and asked is not None and asked.choices > 1:
            return "several-choices"  # it answers with one
        needs, in_place = policy.needs, self.adapter.in_place
        if in_place and (needs.extends or needs.bias):
            return "engine-cannot-reopen"
        if needs.probes and not self.report.can_probe:
            return "engine-cannot-probe"
        if needs.ending and not self.report.can_score_endings:
            return "engine-cannot-score-endings"
        if needs.models - {model.id}:
            return "learned-of-another-model"
        if needs.hidden_states - self.report.layers:
            return "engine-tells-no-hidden-states"
        if needs.logprobs and not self.report.can_tell_logprobs:
            return "engine-tells-no-logprobs"
        if needs.embeddings and self.embedder is None:
            return "no-embedder"
        if needs.rewards and self.rewarder is None:
            return "no-reward-model"
        if needs.rewards and endpoint == COMPLETIONS:
            return "no-messages"  # a reward model reads a conversation
        if needs.inducers - model.marks.inducers.keys():
            return "dialect-lacks-an-inducer"
        if (
            asked is not None
            and asked.stops
            and (in_place or not stops_apart(asked.prompt, model.marks))
        ):
            return "stop-strings"  # they are not the answer's alone, and text lags behind them
        return None

    async def watch(self) -> None:
        """Look whether the engine is there, and examine it when it came (back), serves other
        models, or failed an examination that it may pass now."""
        while True:
            was = self.up
            try:
                async with asyncio.timeout(_EXAMINATION):
                    await self._look()
                self.up = True
            except (TimeoutError, GatewayError, BadReply, msgspec.MsgspecError) as error:
                self.up = False
                if was or self.report is None:
                    log.warning("the engine at %s is not ready: %s", self.engine.url, error)
            except Exception:  # whatever it was, the next look may find better
                self.up = False
                log.exception("looking at the engine at %s", self.engine.url)
            self.metrics.engine_up.set(self.up)
            await asyncio.sleep(self.settings.recheck if self.up else 1.0)

    async def _look(self) -> None:
        ids = await served(self.engine)
        known = self.report is not None and ids == set(self.report.models)
        if known and self.up and not (self.report and self.report.missing and self._again > 0):
            status, _ = await self.engine.get("/health", ())
            if status != 200:
                raise BadReply(f"/health answered {status}")
            return
        # What an engine lacks it may only have lacked for a moment: ask a few times.
        self._again = _AGAIN if not known else self._again - 1
        self.adapter, version = await recognised(
            self.engine, self.settings.engine, authorization(self.settings)
        )
        report = await examine(self.adapter, version, self.dialects, self.settings.dialect)
        changed, self.report = report != self.report, report
        if changed:
            self._say(report)
            await self._try_beside()

    async def _try_beside(self) -> None:
        """Whether the models beside the engine's answer; what needs one that does not goes on
        without, and asks it again each time."""
        hi = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
        asked = (self.embedder, {"input": "Hi"}), (self.rewarder, {"messages": hi})
        for endpoint, fields in asked:
            if endpoint is None:
                continue
            if isinstance(told := await endpoint.asked(**fields), str):
                log.warning("the %s model at %s: %s", endpoint.kind, endpoint.engine.url, told)

    def _say(self, report: Report) -> None:
        for model in report.models.values():
            name = model.marks.dialect.name if model.marks else "none, so it is handed through"
            log.info("engine %s, model %s, dialect %s", report.engine, model.id, name)
            if self.default is not None:
                if why := self.refusal(self.default, model):
                    log.warning("policy %s is off for %s: %s", self.default.name, model.id, why)
                else:
                    self.metrics.foresee(model.id, self.default.name, _beside(self.default.needs))
            warnings = model.marks.dialect.warnings if model.marks else {}
            if self.default is not None and self.default.name in warnings:
                log.warning("%s: %s", model.id, warnings[self.default.name])

    async def aclose(self) -> None:
        await self.equality.aclose()
        for endpoint in (self.embedder, self.rewarder):
            if endpoint is not None:
                await endpoint.engine.aclose()
        with contextlib.suppress(Exception):
            await self.engine.aclose()


def _beside(needs: Needs) -> list[str]:
    """The kinds of models that are asked beside the engine's."""
    kinds = (Embedder.kind, needs.embeddings), (Rewarder.kind, needs.rewards)
    return [kind for kind, wanted in kinds if wanted]
