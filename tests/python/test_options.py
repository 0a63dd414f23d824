"""One table of options: signatures, docstrings, the command line and the page agree with it."""

from __future__ import annotations

import argparse
import inspect

import pytest
from conftest import ROOT

import ddpm_rt
from ddpm_rt import _core, cli_sample, options
from ddpm_rt.row import NO_EVAL

TABLE = _core.options()
SIGNATURES = {"engine": ddpm_rt.Engine.__init__, "sample": ddpm_rt.Engine.sample}
DOCS = {"engine": ddpm_rt.Engine.__doc__, "sample": ddpm_rt.Engine.sample.__doc__}


def parameters(scope: str) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_KEYWORD,)
    found = inspect.signature(SIGNATURES[scope]).parameters
    return {name: p for name, p in found.items() if name not in ("self", "plan") and p.kind not in kinds}


@pytest.mark.parametrize("scope", ["engine", "sample"])
def test_signatures_have_the_table_s_names_and_defaults(scope):
    table = {row["name"]: row["default"] for row in TABLE if row["scope"] == scope}
    found = {
        name: p.default if isinstance(p.default, str) else repr(p.default) for name, p in parameters(scope).items()
    }
    assert found == table


@pytest.mark.parametrize("scope", ["engine", "sample"])
def test_docstrings_explain_every_option(scope):
    named = {row["name"] for row in TABLE if row["scope"] == scope} - {"n"}
    assert [
        name for name in named if f"\n        {name}: " not in f"\n    {DOCS[scope]}" and f"{name}: " not in DOCS[scope]
    ] == []


def test_every_option_has_a_flag_or_a_reason():
    parser = argparse.ArgumentParser()
    cli_sample.add_options(parser)
    flags = set(parser._option_string_actions)
    for row in TABLE:
        if row["name"] in cli_sample.NO_FLAG:
            assert row["type"] in ("array", "callable") or row["name"] == "output"
        else:
            assert set(cli_sample.flags(row)) <= flags
            action = parser._option_string_actions[cli_sample.flags(row)[0]]
            if row["type"].startswith("choice:"):
                assert list(action.choices) == row["type"].removeprefix("choice:").split("|")


def test_the_page_is_the_table():
    assert (ROOT / "docs" / "options.md").read_text() == options.markdown()


def test_samplers_are_the_table_s():
    assert [s.name for s in ddpm_rt.samplers()] == list(options.choices("sampler"))
    for s in ddpm_rt.samplers():
        rows = ddpm_rt.rows(s.name, 3, clip="none")
        evaluations = int(((rows["flags"] & NO_EVAL) == 0).sum())
        assert s.nfe_first + 3 * s.nfe_each == evaluations, s.name


def test_rows_are_complete():
    for row in TABLE:
        assert row["scope"] in SIGNATURES and row["help"] and row["type"]
        assert row["type"] in ("int", "float", "string", "bool", "array", "callable", "mapping", "pair", "engine") or row["type"].startswith(
            "choice:"
        )


@pytest.mark.parametrize(
    ("wrong", "meant"), [("step", "steps"), ("lables", "labels"), ("num_inference_step", "num_inference_steps")]
)
def test_an_unknown_name_is_told_its_neighbours(engine, wrong, meant):
    with pytest.raises(ddpm_rt.OptionError, match=f"did you mean .*{meant}"):
        engine.sample(1, **{wrong: 1})


def test_an_unknown_engine_option_is_told_its_neighbours(mixture_plan):
    with pytest.raises(ddpm_rt.OptionError, match="did you mean threads"):
        ddpm_rt.Engine(mixture_plan, thread=2)


def test_a_name_and_its_alias_together_are_refused(engine):
    with pytest.raises(ddpm_rt.OptionError, match="got both"):
        engine.sample(1, steps=5, num_inference_steps=5)
    with pytest.raises(ddpm_rt.OptionError, match="got both"):
        engine.sample(1, scale=2.0, w=1.0)
