"""Adjourn: end a reasoning model's chain of thought once the answer is known.

This module is the API for plug-ins: everything that a policy of your own imports.
``docs/policies/writing.md`` explains it with an example package. The other modules, such as the
gateway in ``adjourn.server`` and the laboratory in ``adjourn.lab``, are no stable API.
"""

__version__ = "0.1.0"

from adjourn.policies.events import (
    Checkpoint,
    CheckpointKind,
    Command,
    Embed,
    EmbeddingFailed,
    EmbeddingResult,
    Event,
    Extend,
    Probe,
    ProbeFailed,
    ProbeResult,
    Query,
    QueryResult,
    ReasoningChunk,
    Stop,
    TraceEnded,
    TraceEnding,
)
from adjourn.policies.policy import Needs, Policy, Stopper, SupportsPatience, scale_patience
from adjourn.policies.registry import BadPolicy, available, parse
from adjourn.policies.sampling import (
    AbortTraces,
    ChooseTrace,
    ConfidenceReport,
    OpenTraces,
    RequestStarted,
    Sampler,
    SamplingCommand,
    SamplingEvent,
    SamplingPolicy,
    ScoreTrace,
    TokensReached,
    TraceAnswered,
    TraceClosed,
    TraceFailed,
    TraceScored,
)

__all__ = [
    "AbortTraces",
    "BadPolicy",
    "Checkpoint",
    "CheckpointKind",
    "ChooseTrace",
    "Command",
    "ConfidenceReport",
    "Embed",
    "EmbeddingFailed",
    "EmbeddingResult",
    "Event",
    "Extend",
    "Needs",
    "OpenTraces",
    "Policy",
    "Probe",
    "ProbeFailed",
    "ProbeResult",
    "Query",
    "QueryResult",
    "ReasoningChunk",
    "RequestStarted",
    "Sampler",
    "SamplingCommand",
    "SamplingEvent",
    "SamplingPolicy",
    "ScoreTrace",
    "Stop",
    "Stopper",
    "SupportsPatience",
    "TokensReached",
    "TraceAnswered",
    "TraceClosed",
    "TraceEnded",
    "TraceEnding",
    "TraceFailed",
    "TraceScored",
    "__version__",
    "available",
    "parse",
    "scale_patience",
]
