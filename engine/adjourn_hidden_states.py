"""A KV connector for vLLM that returns hidden states in the response, for the policy `lynx`.

It runs in the engine, not in the gateway: put this file on the engine's PYTHONPATH, and start vLLM
with the `--speculative-config` and `--kv-transfer-config` of docs/engines.md. If a completion
request contains `"kv_transfer_params": {"hidden_states": true}`, its response contains, in
`kv_transfer_params`, the hidden states of the prompt's last token after each selected layer. Other
requests are not affected, and nothing is written to disk.

vLLM's own connector for hidden states writes files, which a gateway on another machine cannot
read, and needs CUDA's pinned memory. The lookup of the states in the KV cache is inherited from it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
)
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

__all__ = ["HiddenStatesConnector", "SlotMetadata", "StateMetadata"]

_PARAMETER = "hidden_states"


@dataclass
class SlotMetadata(KVConnectorMetadata):
    """From the scheduler to the workers: the KV-cache slot of the last prompt token, by request id,
    of each request whose prompt is complete after this step."""

    slots: dict[str, int] = field(default_factory=dict)


@dataclass
class StateMetadata(KVConnectorWorkerMetadata):
    """From the workers to the scheduler: the states in those slots by request id, as base64 of
    bfloat16, shape (layers, width)."""

    states: dict[str, str] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StateMetadata:
        """The states of two workers in one object."""
        assert isinstance(other, StateMetadata)
        return StateMetadata(self.states | other.states)


class HiddenStatesConnector(ExampleHiddenStatesConnector):
    """Reads hidden states in the worker and adds them to responses in the scheduler.

    A request for one token finishes in the step that computes its last prompt token. In that step
    vLLM calls `request_finished` before `update_connector_output`, and sends the response after
    both: so `request_finished` returns a dictionary that `update_connector_output` fills.

    State of the scheduler: `_requests` that want states; `_early_states` of requests that are not
    finished yet; `_pending_answers`, dictionaries to be filled in this step. State of a worker:
    `_step_states`, the states read in this step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self._vllm_config.speculative_config.draft_model_config.hf_config
        self._state_format = {
            "layers": list(config.eagle_aux_hidden_state_layer_ids),
            "width": self._vllm_config.model_config.get_hidden_size(),
            "dtype": "bfloat16",
        }
        self._requests: dict[str, Request] = {}
        self._early_states: dict[str, str] = {}
        self._pending_answers: dict[str, dict[str, Any]] = {}
        self._step_states = StateMetadata()
        if current_platform.is_cpu():
            rejection_sampler.expand_batch_to_tokens = _expand_batch_to_tokens

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    def on_new_request(self, request: Request) -> None:
        if (request.kv_transfer_params or {}).get(_PARAMETER) is True:
            self._requests[request.request_id] = request

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> SlotMetadata:
        meta = SlotMetadata()
        for request_id, request in self._requests.items():
            last = request.num_prompt_tokens - 1
            start = request.num_computed_tokens
            if start <= last < start + scheduler_output.num_scheduled_tokens.get(request_id, 0):
                assert self._kv_cache_manager is not None
                blocks = self._kv_cache_manager.get_block_ids(request_id)[self._cache_kv_group_id]
                block, offset = divmod(last, self._block_size)
                meta.slots[request_id] = blocks[block] * self._block_size + offset
        return meta

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        request_id = request.request_id
        if self._requests.pop(request_id, None) is None:
            return False, None
        answer = self._pending_answers[request_id] = {_PARAMETER: None}
        if (states := self._early_states.pop(request_id, None)) is not None:
            self._fill_answer(request_id, states)
        return False, answer

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [])  # also called for requests never scheduled

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        meta = connector_output.kv_connector_worker_meta
        for request_id, states in meta.states.items() if isinstance(meta, StateMetadata) else ():
            if request_id in self._pending_answers:
                self._fill_answer(request_id, states)
            elif request_id in self._requests:
                self._early_states[request_id] = states
        self._pending_answers.clear()  # states that are not here in the last step never come

    def _fill_answer(self, request_id: str, states: str) -> None:
        self._pending_answers.pop(request_id)[_PARAMETER] = {**self._state_format, "data": states}

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._step_states = StateMetadata()

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Read the states: vLLM has just written this layer, which may hold them, to the cache."""
        meta = self._get_connector_metadata()
        if not meta.slots or layer_name not in self.cache_layers or not self._is_tp_rank_zero:
            return
        slots = torch.tensor(list(meta.slots.values()), device=self._kv_cache.device)
        # Shape of the cache: (blocks, layers, tokens per block, width).
        states = self._kv_cache[slots // self._block_size, :, slots % self._block_size]
        rows = states.to(torch.bfloat16).flatten(1).cpu().view(torch.uint8)
        for request_id, row in zip(meta.slots, rows, strict=True):
            self._step_states.states[request_id] = base64.b64encode(row.numpy().tobytes()).decode()

    def build_connector_worker_meta(self) -> StateMetadata | None:
        # vLLM may call this before the states are written; `save_kv_layer` then fills the object.
        return self._step_states if self._get_connector_metadata().slots else None

    def wait_for_save(self) -> None:
        """Nothing to wait for: `save_kv_layer` copies the states synchronously."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, None]:
        return None, None


def _expand_batch_to_tokens(
    values: torch.Tensor,
    ends: torch.Tensor,
    count: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Repeat each request's value, for example its temperature, for each of its tokens.

    Replaces vLLM 0.32's function on the CPU, which writes into a copy (fixed by its pull request
    42638): with speculative decoding it samples noise at any temperature but 0.
    """
    replaced = (
        torch.where(values == replace_from, replace_to, values)
        if replace_from != replace_to
        else values
    )
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    return replaced.repeat_interleave(counts, output_size=count)
