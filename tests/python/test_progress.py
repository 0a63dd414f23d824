"""The progress bar."""

from __future__ import annotations

import builtins

import pytest

from ddpm_rt import progress


@pytest.fixture(params=["tqdm", "plain"])
def drawn(request, monkeypatch, capfd):
    """What a bar has written, with and without tqdm."""
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0.0)
    if request.param == "tqdm":
        pytest.importorskip("tqdm")
    else:
        real = builtins.__import__

        def without_tqdm(name, *arguments, **keywords):
            if name == "tqdm":
                raise ImportError(name)
            return real(name, *arguments, **keywords)

        monkeypatch.setattr(builtins, "__import__", without_tqdm)
    return lambda: capfd.readouterr().err


def test_it_says_compiling_until_the_first_row(drawn):
    bar = progress.Progress(True, "digits")
    bar.update(0, 50)
    text = drawn()
    assert "digits" in text and "compiling" in text
    bar.update(7, 50)
    text = drawn()
    assert "compiling" not in text and "7/50" in text
    bar.close()
    assert drawn().endswith("\r")


def test_it_is_silent_where_standard_error_is_no_terminal(drawn):
    bar = progress.Progress(None, "digits")
    bar.update(1, 2)
    bar.close()
    assert drawn() == ""


def test_it_is_silent_before_the_delay(drawn, monkeypatch):
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 60.0)
    bar = progress.Progress(True, "digits")
    bar.update(1, 2)
    bar.close()
    assert drawn() == ""
