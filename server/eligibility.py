"""Finds why a request cannot run under its policy. Such a request is passed through to the engine.

The first reason that applies is reported, in the header ``x-adjourn-passed-through`` and in the
metric ``adjourn_passed_through_total``; docs/api.md lists those of the request parser too.

    reason                         condition
    -----------------------------  ---------------------------------------------------------------
    unexamined-model               the engine was never examined, or does not serve this model
    no-dialect                     no dialect fits the model's vocabulary
    engine-cannot-resume           the engine cannot cut a response of this endpoint
    unexamined-api                 the endpoint is translated only for engines that were compared
    several-choices                a sampling policy answers with one choice, the client wants more
    engine-cannot-reopen           the policy may extend a trace, the engine ends traces in place
    engine-cannot-probe            the policy probes, the engine cannot continue from token ids
    engine-cannot-score-endings    the policy needs log-probabilities of chosen tokens
    learned-of-another-model       the policy was trained on other models
    engine-tells-no-hidden-states  the policy needs hidden states that the engine does not return
    engine-tells-no-logprobs       the policy needs log-probabilities with each token
    no-embedder                    the policy needs embeddings, ``embeddings_url`` is not set
    no-reward-model                the policy needs rewards, ``reward_url`` is not set
    no-messages                    a reward model reads messages, a raw completion has none
    dialect-lacks-an-inducer       the policy needs a text that the model's dialect does not define
    stop-strings                   the engine cannot apply stop strings to the answer only

A test compares this table with the reasons in the code.
"""

from __future__ import annotations

from dataclasses import dataclass

from adjourn.policies.policy import Needs, Policy
from adjourn.policies.sampling import SamplingPolicy
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.server.api.chat import CHAT_PATH
from adjourn.server.api.completions import COMPLETIONS_PATH, can_separate_stops
from adjourn.server.api.request import ParsedRequest
from adjourn.server.engines.adapter import Adapter
from adjourn.server.engines.capabilities import Capabilities
from adjourn.server.upstream.client import Model

__all__ = ["Backends", "find_ineligible_reason"]


@dataclass(frozen=True, slots=True)
class Backends:
    """What a policy can run on: the engine, and whether the auxiliary models are configured.

    ``capabilities`` is None until the engine was examined.
    """

    adapter: Adapter
    capabilities: Capabilities | None
    has_embedder: bool
    has_reward_scorer: bool


def find_ineligible_reason(
    backends: Backends,
    policy: Policy,
    model: Model | None,
    request: ParsedRequest | None = None,
    endpoint: str = CHAT_PATH,
) -> str | None:
    """Why the policy cannot run for this model, or for this request; None if it can.

    ``model`` is None if the engine does not serve it. Without a ``request``, only the model is
    checked.
    """
    adapter, capabilities = backends.adapter, backends.capabilities
    if capabilities is None or model is None:
        return "unexamined-model"
    if model.dialect is None:
        return "no-dialect"
    if not (adapter.supports(endpoint) and capabilities.can_cut(endpoint)):
        return "engine-cannot-resume"
    if endpoint not in (CHAT_PATH, COMPLETIONS_PATH) and not adapter.supports_translation:
        return "unexamined-api"
    if isinstance(policy, SamplingPolicy) and request is not None and request.num_choices > 1:
        return "several-choices"
    return (
        _find_engine_reason(policy.needs, model, adapter, capabilities)
        or _find_auxiliary_reason(policy.needs, backends, endpoint)
        or _find_text_reason(policy.needs, model.dialect, adapter, request)
    )


def _find_engine_reason(
    needs: Needs, model: Model, adapter: Adapter, capabilities: Capabilities
) -> str | None:
    """What the policy needs of the engine or the model, and cannot get."""
    if adapter.ends_in_place and (needs.trace_endings or needs.end_bias):
        return "engine-cannot-reopen"
    if needs.probes and not capabilities.can_probe:
        return "engine-cannot-probe"
    if needs.end_logprob and not capabilities.can_score_endings:
        return "engine-cannot-score-endings"
    if needs.models - {model.id}:
        return "learned-of-another-model"
    if needs.hidden_states - capabilities.hidden_state_layers:
        return "engine-tells-no-hidden-states"
    if needs.logprobs and not capabilities.can_return_logprobs:
        return "engine-tells-no-logprobs"
    return None


def _find_auxiliary_reason(needs: Needs, backends: Backends, endpoint: str) -> str | None:
    """Why an auxiliary model that the policy needs cannot be used."""
    if needs.embeddings and not backends.has_embedder:
        return "no-embedder"
    if needs.rewards and not backends.has_reward_scorer:
        return "no-reward-model"
    if needs.rewards and endpoint == COMPLETIONS_PATH:
        return "no-messages"
    return None


def _find_text_reason(
    needs: Needs, dialect: TokenizedDialect, adapter: Adapter, request: ParsedRequest | None
) -> str | None:
    """Why texts of the policy or of the client cannot be used with this model."""
    if needs.inducers - dialect.inducers.keys():
        return "dialect-lacks-an-inducer"
    # An engine that ends a trace in place applies them to the one stream of trace and answer.
    if (
        request is not None
        and request.has_stop_strings
        and (adapter.ends_in_place or not can_separate_stops(request.prompt, dialect))
    ):
        return "stop-strings"
    return None
