"""LangChain's standard tests of a chat model: which pass is the reply."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from typing import Any

import pytest
from feature import KEY, MODEL, URL, feature, report
from langchain_core.language_models import BaseChatModel
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

COMMON = {"model": MODEL, "api_key": KEY, "temperature": 0, "max_tokens": 300, "max_retries": 0}


class TestChatOpenAI(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return COMMON | {"base_url": f"{URL}/v1"}


class TestChatDeepSeek(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatDeepSeek

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return COMMON | {"api_base": f"{URL}/v1"}


class Outcomes:
    """What became of each test."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid.rpartition("::")[2]] = report.outcome


def outcomes(name: str) -> dict[str, Any]:
    found = Outcomes()
    arguments = [f"{__file__}::{name}", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    # One loop for all: the models share their connections.
    arguments += ["--asyncio-mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
    arguments += ["--noconftest", "-c", os.devnull]
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main(arguments, plugins=[found])
    assert found.of, "no test was run"
    passed = sum(outcome == "passed" for outcome in found.of.values())
    return {"passed": passed, "tests": dict(sorted(found.of.items()))}


if __name__ == "__main__":  # pytest imports this file as well
    for model in ("ChatOpenAI", "ChatDeepSeek"):
        feature(f"standard tests, {model}", "plain")(partial(outcomes, f"Test{model}"))
    report()
