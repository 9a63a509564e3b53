"""A KV connector for vLLM that tells hidden states in the reply, for the policy `lynx`.

It runs in the engine, not in the gateway: put this file where the engine's Python finds it, and
start vLLM with `--speculative-config` and `--kv-transfer-config` as docs/engines.md gives them. A
completion that asks with `"kv_transfer_params": {"hidden_states": true}` gets back, in the
`kv_transfer_params` of its reply, the states of its prompt's last token behind each of the chosen
layers. Other requests are left alone, and nothing is written to a disk.

vLLM's own connector for these states writes files, which a gateway on another machine cannot
read, and needs CUDA's pinned memory. What finds the states' place in the cache is that
connector's.
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
    """From the scheduler to the workers: for each request whose prompt is whole with this step, the
    slot of its last token."""

    slots: dict[str, int] = field(default_factory=dict)


@dataclass
class StateMetadata(KVConnectorWorkerMetadata):
    """And back: what lay in those slots, bfloat16 in base64, layer by layer."""

    states: dict[str, str] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StateMetadata:
        assert isinstance(other, StateMetadata)
        return StateMetadata(self.states | other.states)


class HiddenStatesConnector(ExampleHiddenStatesConnector):
    """A request ends in the step in which its last prompt token is computed, where it asks for
    one token. In that step the scheduler learns of the end before it learns what the workers
    read, and both before anything is sent: what it answers at the end is filled in afterwards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self._vllm_config.speculative_config.draft_model_config.hf_config
        self._state_format = {
            "layers": list(config.eagle_aux_hidden_state_layer_ids),
            "width": self._vllm_config.model_config.get_hidden_size(),
            "dtype": "bfloat16",
        }
        # The scheduler's: who asked, what was read of those that go on, what waits to be filled in.
        self._requests: dict[str, Request] = {}
        self._early_states: dict[str, str] = {}
        self._pending_answers: dict[str, dict[str, Any]] = {}
        # A worker's: of this step.
        self._step_states = StateMetadata()
        if current_platform.is_cpu():
            rejection_sampler.expand_batch_to_tokens = _expand_batch_to_tokens

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # -- the scheduler's ----------------------------------------------------------------------

    def on_new_request(self, request: Request) -> None:
        if (request.kv_transfer_params or {}).get(_PARAMETER) is True:
            self._requests[request.request_id] = request

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> SlotMetadata:
        meta = SlotMetadata()
        for name, request in self._requests.items():
            last = request.num_prompt_tokens - 1
            begin = request.num_computed_tokens
            if begin <= last < begin + scheduler_output.num_scheduled_tokens.get(name, 0):
                assert self._kv_cache_manager is not None
                blocks = self._kv_cache_manager.get_block_ids(name)[self._cache_kv_group_id]
                block, offset = divmod(last, self._block_size)
                meta.slots[name] = blocks[block] * self._block_size + offset
        return meta

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        name = request.request_id
        if self._requests.pop(name, None) is None:
            return False, None
        answer = self._pending_answers[name] = {_PARAMETER: None}
        if (states := self._early_states.pop(name, None)) is not None:
            self._fill_answer(name, states)
        return False, answer

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [])  # of one that was never scheduled, too

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        meta = connector_output.kv_connector_worker_meta
        for name, states in meta.states.items() if isinstance(meta, StateMetadata) else ():
            if name in self._pending_answers:
                self._fill_answer(name, states)
            elif name in self._requests:
                self._early_states[name] = states
        self._pending_answers.clear()  # what has not come in the step of its end does not come

    def _fill_answer(self, name: str, states: str) -> None:
        self._pending_answers.pop(name)[_PARAMETER] = {**self._state_format, "data": states}

    # -- a worker's ---------------------------------------------------------------------------

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._step_states = StateMetadata()

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """The states of this step have just been written, where the layer is theirs."""
        meta = self._get_connector_metadata()
        if not meta.slots or layer_name not in self.cache_layers or not self._is_tp_rank_zero:
            return
        slots = torch.tensor(list(meta.slots.values()), device=self._kv_cache.device)
        # A block is (layers, tokens, width).
        read = self._kv_cache[slots // self._block_size, :, slots % self._block_size]
        rows = read.to(torch.bfloat16).flatten(1).cpu().view(torch.uint8)
        for name, row in zip(meta.slots, rows, strict=True):
            self._step_states.states[name] = base64.b64encode(row.numpy().tobytes()).decode()

    def build_connector_worker_meta(self) -> StateMetadata | None:
        # It may be asked for before the states are written: they are put into what it gave.
        return self._step_states if self._get_connector_metadata().slots else None

    def wait_for_save(self) -> None:
        """All was read when it was written."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, None]:
        return None, None


def _expand_batch_to_tokens(
    values: torch.Tensor,
    ends: torch.Tensor,
    count: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """A value of each request for each of its tokens: its temperature, for one.

    On the CPU vLLM 0.32 writes these into a copy (its pull request 42638): what is then sampled
    beside speculation, at any temperature but 0, is noise.
    """
    told = (
        torch.where(values == replace_from, replace_to, values)
        if replace_from != replace_to
        else values
    )
    each = torch.diff(ends, prepend=ends.new_zeros(1))
    return told.repeat_interleave(each, output_size=count)
