"""ddpm_rt/training: data, config, loop, checkpoint, report."""

import dataclasses
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_rt.errors import NumericError, OptionError
from ddpm_rt.reference import samplers
from ddpm_rt.training import data as sets
from ddpm_rt.training.checkpoint import load_checkpoint
from ddpm_rt.training.config import PRESETS, TrainConfig
from ddpm_rt.training.distributed import Group
from ddpm_rt.training.loop import Trainer, batch_indices, crop_and_flip, generator, learning_rate
from ddpm_rt.training.report import Log, sample, save_grid
from ddpm_rt.training.run import run

MODEL = {
    "image_size": (8, 8), "in_channels": 1, "channels": 8, "channel_mult": (1, 2), "res_blocks": 1, "attention": (1,),
    "heads": 2, "groups": 4, "num_classes": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def toy(n=24, size=8, classes=3):
    rng = np.random.default_rng(0)
    names = tuple(f"class {k}" for k in range(classes))
    return sets.ImageSet(rng.integers(0, 256, (n, size, size, 1), dtype=np.uint8), np.arange(n) % classes, names)


def config(**changes):
    base = TrainConfig(model=dict(MODEL), steps=6, batch=4, warmup=2, sample_every=0, save_every=2)
    return dataclasses.replace(base, **changes)


def weights(trainer):
    return {k: v.clone() for k, v in trainer.model.state_dict().items()} | {
        f"ema.{k}": v for k, v in trainer.ema.items()
    }


def assert_same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    worst = max(float((a[k] - b[k]).abs().max()) for k in a)
    assert worst <= tolerance, worst


# ---- data


def test_mnist5k_holds_out_a_tenth_of_each_class():
    train, held = sets.mnist5k(), sets.mnist5k("held_out")
    assert train.images.shape == (4500, 28, 28, 1) and held.images.shape == (500, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [450] * 10 and np.bincount(held.labels).tolist() == [50] * 10
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in held.images) == 0


def test_mnist5k_is_padded_never_cut():
    data = sets.load("mnist5k", (32, 36))
    assert data.shape == (32, 36, 1) and np.array_equal(data.images[:, 2:30, 4:32], sets.mnist5k().images)
    assert sets.load("mnist5k", None, crop=4).shape == (32, 32, 1)
    with pytest.raises(OptionError, match="image_size"):
        sets.load("mnist5k", (20, 28))
    with pytest.raises(OptionError, match="in_channels"):
        sets.load("mnist5k", None, 3)


def picture(path, color, size=(20, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def test_folder_with_classes(tmp_path, monkeypatch):
    picture(tmp_path / "cat" / "a.png", (255, 0, 0))
    picture(tmp_path / "cat" / "deep" / "b.jpg", (250, 0, 0))
    picture(tmp_path / "ant" / "c.webp", (0, 0, 255))
    picture(tmp_path / ".hidden" / "d.png", (0, 255, 0))
    (tmp_path / "notes.txt").write_text("not an image")
    data = sets.load(str(tmp_path), (8, 16))
    assert data.class_names == ("ant", "cat") and data.labels.tolist() == [0, 1, 1] and len(data) == 3
    images = data.batch(np.array([2, 0]))
    assert images.shape == (2, 8, 16, 3) and images[1, ..., 2].min() > 245 and images[0, ..., 0].min() > 240
    monkeypatch.setattr(sets, "IN_MEMORY", 0)  # decoded anew for every batch
    lazy = sets.load(str(tmp_path), (8, 16))
    assert lazy.cache is None and np.array_equal(lazy.batch(np.array([2, 0])), images)


def test_folder_of_grey_and_of_transparent_images(tmp_path):
    picture(tmp_path / "grey" / "a.png", 77, mode="L")
    data = sets.load(str(tmp_path / "grey"), (8, 8))
    assert data.shape == (8, 8, 1) and data.labels is None and (data.batch(np.array([0])) == 77).all()
    picture(tmp_path / "clear" / "a.png", (0, 0, 0, 0), mode="RGBA")
    assert (sets.load(str(tmp_path / "clear"), (8, 8)).batch(np.array([0])) == 255).all()


def test_folder_errors_name_the_file(tmp_path):
    with pytest.raises(OptionError, match="mnist5k or a folder"):
        sets.load(str(tmp_path / "none"), None)
    with pytest.raises(OptionError, match="found none"):
        sets.load(str(tmp_path), None)
    picture(tmp_path / "a" / "fine.png", (1, 2, 3))
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    for content in (b"no image at all", buffer.getvalue()[: len(buffer.getvalue()) // 2]):
        (tmp_path / "a" / "torn.png").write_bytes(content)
        with pytest.raises(OptionError, match=r"cannot read .*torn\.png"):
            sets.load(str(tmp_path), (8, 8))
    (tmp_path / "a" / "torn.png").unlink()
    picture(tmp_path / "loose.png", (1, 2, 3))
    with pytest.raises(OptionError, match=r"loose\.png"):
        sets.load(str(tmp_path), (8, 8))


def test_crop_and_flip_takes_windows():
    image = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    got = crop_and_flip(np.repeat(image, 200, 0), (4, 5), True, generator(0))
    windows = {image[0, y : y + 4, x : x + 5].tobytes() for y in range(3) for x in range(2)}
    mirrored = {image[0, y : y + 4, x : x + 5][:, ::-1].tobytes() for y in range(3) for x in range(2)}
    assert {g.tobytes() for g in got} == windows | mirrored
    assert {g.tobytes() for g in crop_and_flip(np.repeat(image, 200, 0), (4, 5), False, generator(0))} == windows


# ---- config


def test_preset_is_a_valid_run():
    cfg = TrainConfig(**PRESETS["digits"])
    cfg.validate()
    assert cfg.unet().image_size == (28, 28)


@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", 0), ("batch", 0), ("batch", 2.5), ("accumulate", 0), ("lr", 0), ("lr", float("nan")), ("ema", 1.5),
        ("label_dropout", -0.1), ("crop", -1), ("seed", -1), ("save_every", 0), ("warmup", -1), ("loss", "l1"),
        ("precision", "fp8"), ("flip", 1), ("clip", 0), ("schedule", {"name": "square"}), ("schedule", {"beta": 1}),
        ("model", {"channels": 30}), ("model", {"wings": 2}), ("model", 5),
    ],
)  # fmt: skip
def test_config_names_the_field(field, value):
    with pytest.raises(OptionError, match=field):
        config(**{field: value}).validate()


def test_learned_variance_belongs_to_the_hybrid_loss():
    config(loss="hybrid", model=MODEL | {"learned_variance": True}).validate()
    for loss, learned in (("hybrid", False), ("simple", True)):
        with pytest.raises(OptionError, match="hybrid"):
            config(loss=loss, model=MODEL | {"learned_variance": learned}).validate()


def test_config_of_an_older_or_newer_checkpoint():
    cfg = TrainConfig.from_dict({"steps": 7, "a field of tomorrow": 1})
    assert cfg.steps == 7 and cfg.accumulate == 1


# ---- loop


def test_learning_rate_warms_up_and_decays_to_zero():
    cfg = config(lr=1e-2, warmup=10, steps=100)
    rates = [learning_rate(cfg, k) for k in range(101)]
    assert rates[0] == pytest.approx(1e-3) and max(rates) == pytest.approx(1e-2, rel=0.03)
    assert rates[50] == pytest.approx(5e-3) and rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_an_epoch_sees_every_image_once():
    rows = torch.cat([batch_indices(12, 8, 5, step) for step in range(6)])
    for epoch in rows.split(12):
        assert sorted(epoch.tolist()) == list(range(12))
    assert rows[:12].tolist() != rows[12:24].tolist()


def test_one_seed_one_run():
    a, b, other = (Trainer(config(seed=s), toy()) for s in (1, 1, 2))
    losses = [[float(t.train_step()[0]) for _ in range(4)] for t in (a, b, other)]
    assert losses[0] == losses[1] and losses[0] != losses[2]
    assert_same(weights(a), weights(b))


def test_step_follows_the_formulas():
    """One step written out: eq. 14's loss on the drawn batch, clip, AdamW, EMA."""
    cfg = config(lr=1e-2, warmup=0, clip=0.05)
    trainer, data = Trainer(cfg, toy()), toy()
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    draw, rows = generator(cfg.seed, 0, 0), batch_indices(24, 4, cfg.seed, 0)
    t, eps = torch.randint(1000, (4,), generator=draw), torch.randn(4, 1, 8, 8, generator=draw)
    label = torch.from_numpy(data.labels)[rows]
    label[torch.rand(4, generator=draw) < 0.1] = 3
    x0 = torch.from_numpy(data.images[rows.numpy()]).permute(0, 3, 1, 2) / 127.5 - 1
    ab = trainer.schedule.alpha_bar[t].reshape(-1, 1, 1, 1).float()
    out = trainer.model(ab.sqrt() * x0 + (1 - ab).sqrt() * eps, t, label)
    expected = (out - eps).square().mean()
    grads = torch.autograd.grad(expected, trainer.model.parameters(), allow_unused=True)
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
    loss, got_norm = trainer.train_step()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5) and float(got_norm) == pytest.approx(
        norm, rel=1e-4
    )
    for (name, p), g in zip(trainer.model.named_parameters(), grads, strict=True):
        g = torch.zeros_like(p) if g is None else g * min(1.0, 0.05 / norm)
        moved = before[name] * (1 - 1e-2 * cfg.weight_decay) - 1e-2 * g / (g.abs() + 1e-8)  # Adam's first step
        sure = g.abs() > 1e-6  # below it, rounding decides
        assert torch.allclose(p[sure], moved[sure], atol=1e-5)
        assert torch.allclose(trainer.ema[name], before[name].lerp(p, 1 - 2 / 11), atol=1e-7)  # (1 + 1) / (10 + 1)


@pytest.mark.parametrize("loss", ["simple", "min_snr", "bound", "hybrid"])
def test_every_loss_learns(loss):
    cfg = config(loss=loss, lr=3e-3, steps=60, batch=8, model=MODEL | {"learned_variance": loss == "hybrid"})
    trainer = Trainer(cfg, toy(n=1, classes=1))
    batch = trainer.pictures(torch.zeros(40, dtype=torch.int64), generator(0)), torch.arange(0, 1000, 25)
    batch = *batch, torch.randn(40, 1, 8, 8, generator=generator(1)), torch.zeros(40, dtype=torch.int64)
    before = float(trainer.loss(*batch).detach())
    for _ in range(40):
        trainer.train_step()
    assert float(trainer.loss(*batch).detach()) < 0.9 * before


def test_accumulation_is_one_large_batch():
    whole, halves = Trainer(config(batch=8), toy()), Trainer(config(batch=4, accumulate=2), toy())
    for _ in range(4):
        a, b = whole.train_step()[0], halves.train_step()[0]
        assert float(a) == pytest.approx(float(b), rel=1e-5)
    assert_same(weights(whole), weights(halves), 1e-5)


def test_two_processes_share_what_one_draws(monkeypatch):
    seen = []
    monkeypatch.setattr(Group, "mean", lambda self, value: value)
    loss = Trainer.loss
    monkeypatch.setattr(Trainer, "loss", lambda self, *batch: seen.append(batch) or loss(self, *batch))
    for rank in range(2):
        Trainer(config(batch=4), toy(), group=Group(rank, 2)).train_step()
    Trainer(config(batch=8), toy()).train_step()
    for first, second, whole in zip(*seen, strict=True):
        assert torch.equal(torch.cat([first, second]), whole)


def test_dropout_and_augmentation_resume_exactly(tmp_path):
    cfg = config(model=MODEL | {"dropout": 0.2}, crop=2, flip=True, steps=6)
    data = toy(size=10)
    whole = run(cfg, data, tmp_path / "whole", stream=io.StringIO())
    part = Trainer(cfg, data)
    for _ in range(4):
        part.train_step()
    part.save(tmp_path / "part")
    resumed = run(cfg, data, tmp_path / "part", stream=io.StringIO())
    assert_same(weights(whole), weights(resumed))
    assert_same(load_file(tmp_path / "whole" / "state.safetensors"), load_file(tmp_path / "part" / "state.safetensors"))


def test_unconditional_training(tmp_path):
    data = dataclasses.replace(toy(), labels=None, class_names=())
    trainer = run(config(model=MODEL | {"num_classes": None}, sample_every=6), data, tmp_path, stream=io.StringIO())
    assert trainer.step == 6 and (tmp_path / "samples" / "000006.png").exists()
    model, cfg = load_checkpoint(tmp_path)
    assert model.label is None and cfg.class_names == ()


def test_bf16_autocast_trains():
    """Where it gains nothing it still has to work when asked for."""
    trainer = Trainer(config(precision="bf16"), toy())
    assert math.isfinite(float(trainer.train_step()[0])) and next(trainer.model.parameters()).dtype == torch.float32


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    run(config(steps=2), toy(), tmp_path, stream=io.StringIO())
    before = (tmp_path / "state.safetensors").read_bytes()
    trainer = Trainer(config(), toy())
    trainer.load(tmp_path)
    with torch.no_grad():
        trainer.model.head.bias.fill_(float("nan"))
    trainer.save(tmp_path / "broken")
    with pytest.raises(NumericError, match="step"):
        run(config(steps=9, save_every=9), toy(), tmp_path / "broken", stream=io.StringIO())
    assert (tmp_path / "state.safetensors").read_bytes() == before
    with safe_open(tmp_path / "broken" / "state.safetensors", "pt") as f:
        assert f.metadata()["step"] == "2"


# ---- checkpoint


def test_load_checkpoint_gives_the_ema_weights(tmp_path):
    trainer = run(config(), toy(), tmp_path, stream=io.StringIO())
    torch.manual_seed(3)
    expected_draw = torch.randn(3)
    torch.manual_seed(3)
    for path in (tmp_path, str(tmp_path / "model.safetensors"), tmp_path / "state.safetensors"):
        model, cfg = load_checkpoint(path)
        assert not model.training and cfg.unet() == trainer.model.cfg
        assert dataclasses.replace(cfg, model={}) == dataclasses.replace(trainer.cfg, model={})
        assert_same(dict(model.state_dict()), trainer.ema)
    assert torch.equal(torch.randn(3), expected_draw)  # the caller's random numbers are untouched


def test_first_format_is_still_read(tmp_path):
    """A checkpoint as the first version wrote it: fewer fields, lists for tuples."""
    trainer = Trainer(config(), toy())
    trainer.train_step()
    old = {
        k: v
        for k, v in dataclasses.asdict(trainer.cfg).items()
        if k not in ("accumulate", "crop", "flip", "sample_every", "precision", "images")
    }
    save_file(
        {k: v.contiguous() for k, v in trainer.ema.items()},
        tmp_path / "model.safetensors",
        {"config": json.dumps(old), "step": "1"},
    )
    model, cfg = load_checkpoint(tmp_path)
    assert cfg.sample_every == 1000 and model.cfg.image_size == (8, 8)


def test_bad_checkpoints_are_named(tmp_path):
    with pytest.raises(OptionError, match="found none"):
        load_checkpoint(tmp_path / "nothing")
    run(config(), toy(), tmp_path, stream=io.StringIO())
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for torn in (whole[:100], whole[: len(whole) // 2], b"", b"\xff" * 64):
        path.write_bytes(torn)
        with pytest.raises(OptionError, match="damaged"):
            load_checkpoint(tmp_path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(OptionError, match="metadata"):
        load_checkpoint(path)
    meta = {"config": json.dumps(dataclasses.asdict(config())), "step": "1"}
    save_file({"a": torch.zeros(1)}, path, meta)
    with pytest.raises(OptionError, match="a: expected no such tensor"):
        load_checkpoint(path)
    state = load_file(tmp_path / "state.safetensors")
    state.pop("optimizer.exp_avg.stem.weight")
    save_file(state, tmp_path / "state.safetensors", meta)
    with pytest.raises(OptionError, match=r"optimizer\.exp_avg\.stem\.weight"):
        Trainer(config(), toy()).load(tmp_path)


# ---- report


def test_log_forgets_what_a_resumed_run_does_again(tmp_path):
    log = Log(tmp_path)
    log.start(0)
    log.append([{"step": s, "loss": 1 / s, "grad_norm": 1, "lr": 1e-3, "seconds": s} for s in range(1, 8)])
    with log.path.open("a") as f:
        f.write("8,0.1")  # killed in the middle of a line
    log.start(5)
    assert [int(r["step"]) for r in log.rows()] == [1, 2, 3, 4, 5]


def test_samples_use_the_engines_noise_and_the_reference_sampler():
    from ddpm_rt.reference.philox import noise

    trainer = Trainer(config(), toy())
    for _ in range(3):
        trainer.train_step()
    model, labels = trainer.averaged(), torch.tensor([0, 2])
    got = sample(model, trainer.schedule, labels, 2, seed=2**64 - 1, scale=2.0, steps=5)
    x = torch.from_numpy(np.stack([noise(2**64 - 1, 0, (1, 8, 8)), noise(0, 0, (1, 8, 8))]))
    with torch.no_grad():
        expected = samplers.ddim(samplers.guided(model, labels, 3, 2.0), trainer.schedule, x, [800, 600, 400, 200, 0])
    assert torch.equal(got, expected)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "L"), (3, "RGB")])
def test_grid_png(tmp_path, channels, mode):
    images = torch.full((5, channels, 4, 6), -1.0)
    images[4] = 2.0
    save_grid(images, tmp_path / "a" / "g.png", 3)
    with Image.open(tmp_path / "a" / "g.png") as png:
        pixels = np.asarray(png)
        assert png.mode == mode and png.size == (3 * 7 - 1, 2 * 5 - 1)
    assert (pixels[5:, 7:13] == 255).all() and pixels[:5].max() == 0
    assert [p.name for p in Path(tmp_path / "a").iterdir()] == ["g.png"]


def test_run_leaves_its_files_and_prints_lines(tmp_path):
    stream = io.StringIO()
    run(config(sample_every=3, save_every=3), toy(), tmp_path, stream=stream)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {
        "state.safetensors", "model.safetensors", "log.csv", "loss.png", "samples/000003.png", "samples/000006.png",
    }  # fmt: skip
    assert len(Log(tmp_path).rows()) == 6 and stream.getvalue().count("\n") == 2 and "\r" not in stream.getvalue()


def test_progress_bar_on_a_terminal_only(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    run(config(), toy(), tmp_path, stream=stream)
    assert "loss=" in stream.getvalue() and "6/6" in stream.getvalue() and "step/s" in stream.getvalue()
