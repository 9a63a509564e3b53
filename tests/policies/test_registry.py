"""Policies are found by name; a specification is parsed, or refused with a helpful message."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies import registry
from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs
from adjourn.policies.registry import BadPolicy, available, build, parse
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.deer_pro import DeerPro
from adjourn.policies.stopping.entropy import Entropy
from adjourn.policies.stopping.first_try import FirstTry
from adjourn.policies.stopping.loop import Loop
from adjourn.policies.stopping.no_thinking import NoThinking

NAMES = [
    *("all_of", "any_of", "budget", "convergence", "cusum", "deer", "deer-pro", "deviation"),
    *("entropy", "first-try", "loop", "margin", "never", "no-thinking", "redundancy", "tilt"),
    "utility",
]


def test_the_builtin_policies_are_installed() -> None:
    """They are entry points, like those of a third party."""
    assert set(NAMES) <= set(available())


@pytest.mark.parametrize("name", sorted(available()))
def test_the_entry_point_has_the_policys_name(name: str) -> None:
    """Users write the same name that metrics and messages show."""
    assert available()[name].name == name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deer", Deer()),
        (" deer ", Deer()),
        ("deer()", Deer()),
        ("deer(threshold=0.9)", Deer(threshold=0.9)),
        ("deer(gate=None, gap=3)", Deer(gate=None, gap=3)),
        ("deer(gate=0)", Deer(gate=0)),
        ("convergence(effort='max')", Convergence(effort="max")),
        ("any_of(deer, loop)", AnyOf((Deer(), Loop()))),
        ("any-of(deer, loop)", AnyOf((Deer(), Loop()))),
        ("all_of(never)", AllOf((Never(),))),
        ("deer-pro", DeerPro()),
        ("deer-pro(threshold=0.9, alpha=0)", DeerPro(threshold=0.9, alpha=0)),
        ("any_of(first-try(hard=2), no-thinking)", AnyOf((FirstTry(hard=2), NoThinking()))),
        ("entropy(at='sentence')", Entropy(at="sentence")),
        (
            "any_of(all_of(deer, budget(max=9)), loop(repeats=2))",
            AnyOf((AllOf((Deer(), Budget(max=9))), Loop(repeats=2))),
        ),
    ],
)
def test_specifications_are_parsed(text: str, expected: Any) -> None:
    """A name, a call with options, a composition."""
    assert parse(text) == expected


def test_options_override_those_in_the_specification() -> None:
    """A model alias has one threshold, the request another."""
    policy = parse("deer(threshold=0.9, gap=3)", {"threshold": 0.8})
    assert policy == Deer(threshold=0.8, gap=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dear", "unknown policy 'dear': choose one of .*, budget, "),
        ("any_of(dear)", "unknown policy 'dear'"),
        ("deer(treshold=0.9)", "has no option 'treshold': its options are threshold, max_tokens"),
        ("never(x=1)", "has no options"),
        ("deer(threshold='high')", "'threshold' of policy 'deer' must be a number"),
        ("deer(threshold=True)", "must be a number"),
        ("deer(max_tokens=2.5)", "must be a whole number"),
        ("deer(max_tokens=None)", "must be a whole number"),
        ("deer(threshold=2)", "between 0 and 1"),
        ("deer(gate='x')", "must be a number or null"),
        ("convergence(effort='extreme')", "must be one of 'mild', 'low'"),
        ("convergence(effort=['mild'])", "must be one of 'mild', 'low'"),
        ("deer(loop)", "takes options by name only"),
        ("any_of()", "at least one policy"),
        ("any_of(policies=1)", "has no option 'policies'"),
        ("any_of(deer, 5)", "cannot read policy '5'"),
        ("deer(threshold=max)", "'max' is not a number or a quoted string"),
        ("deer(**{'gap': 1})", "cannot read the options"),
        ("deer(gap=1, gap=2)", "cannot read"),
        ("deer(*loop)", "cannot read"),
        ("deer.start()", "cannot read"),
        ("deer; loop", "cannot read"),
        ("", "cannot read policy ''"),
        ("dee\0r", "cannot read"),
        ("deer(", "cannot read"),
        ("__import__('os')", "takes|unknown|cannot read"),
    ],
)
def test_an_invalid_specification_is_refused_with_a_helpful_message(
    text: str, message: str
) -> None:
    """The message names the valid policies, options or values."""
    with pytest.raises(BadPolicy, match=message):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "a" + "+a" * 900,
        "deer(threshold=" + "-" * 900 + "1)",
        "deer(threshold=" + "(" * 150 + "1" + ")" * 150 + "+a)",
        "a" + ".a" * 900,
        "any_of(" * 190 + "dear" + ")" * 190,
        "deer(x=" + "[" * 190 + "]" * 190 + ")",
        "deer" + "()" * 900,
        "not " * 900 + "a",
    ],
)
def test_deeply_nested_specifications_are_refused(text: str) -> None:
    """Any text in a client's header raises BadPolicy at worst."""
    with pytest.raises(BadPolicy):
        parse(text)


@pytest.mark.parametrize(
    ("name", "option"),
    [("deer", "max_tokens"), ("deer", "gap"), ("deer", "backoff"), ("budget", "max")],
)
@pytest.mark.parametrize("value", [10**400, 10**30], ids=["10^400", "10^30"])
def test_a_huge_number_is_refused_or_works(name: str, option: str, value: int) -> None:
    """It raises BadPolicy, or the policy starts with it."""
    try:
        policy = parse(name, {option: value})
    except BadPolicy:
        return
    policy.start()


@given(st.text("deranyof_lp(),=.0123'[]-* ", max_size=30))
def test_any_text_is_a_policy_or_raises_bad_policy(text: str) -> None:
    """No other exception is raised."""
    try:
        policy = parse(text)
    except BadPolicy:
        return
    assert policy.name in available()


@given(
    st.sampled_from(["deer", "budget", "loop", "convergence", "never", "any_of"]),
    st.dictionaries(
        st.sampled_from(["threshold", "max", "gap", "window", "floor", "repeats", "effort"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=4)
        | st.lists(st.integers(), max_size=2),
        max_size=3,
    ),
)
def test_any_options_give_a_policy_or_raise_bad_policy(name: str, options: dict[str, Any]) -> None:
    """The options of a request are arbitrary JSON."""
    try:
        policy = parse(name, options)
    except BadPolicy:
        return
    assert policy.start() is not None


@dataclass(frozen=True)
class Custom:
    """A third party's policy."""

    wanted: str
    mode: Literal["one-two", "three"] = "three"
    label: str = ""
    share: float = math.e
    name: ClassVar[str] = "my-own"

    @property
    def needs(self) -> Needs:
        return Needs()

    def start(self) -> Custom:
        return self


@pytest.fixture
def custom(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {**available(), "my-own": Custom}
    monkeypatch.setattr(registry, "available", lambda: kinds)


@pytest.mark.usefixtures("custom")
@pytest.mark.parametrize("name", ["my-own", "my_own"])
def test_a_third_party_policy_is_parsed(name: str) -> None:
    """A hyphen in its name may be written as an underscore."""
    assert parse(f"{name}(wanted='x')") == Custom("x")
    assert parse(f"any_of({name}(wanted='x'), deer)") == AnyOf((Custom("x"), Deer()))


@pytest.mark.usefixtures("custom")
def test_hyphens_in_quoted_text_are_kept() -> None:
    """Only names are converted."""
    policy = parse("my-own(wanted='a-b', mode='one-two', label='half-way-up')")
    assert policy == Custom("a-b", "one-two", "half-way-up")


@pytest.mark.usefixtures("custom")
def test_a_missing_required_option_is_refused() -> None:
    """The message names the option."""
    with pytest.raises(BadPolicy, match="wanted"):
        parse("my-own")


def test_only_compositions_take_members() -> None:
    """``build`` takes a name, options and members instead of text."""
    assert build("any_of", {}, (Deer(),)) == AnyOf((Deer(),))
    with pytest.raises(BadPolicy, match="by name only"):
        build("deer", {}, (Deer(),))


@pytest.mark.parametrize("name", NAMES)
def test_policies_are_values(name: str) -> None:
    """Policies with equal options are equal: measurements are kept by policy."""
    text = f"{name}(deer)" if name.endswith("_of") else name
    assert parse(text) == parse(text)
    assert hash(parse(text)) == hash(parse(text))
