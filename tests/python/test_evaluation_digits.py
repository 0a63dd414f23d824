"""The judge and the figures of a set of images, on a judge trained for two epochs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm_rt.errors import OptionError
from ddpm_rt.evaluation import card, digits, judge
from ddpm_rt.training.data import mnist5k


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    train = mnist5k("train")
    some = np.arange(0, len(train), 3)
    return train.images[some], train.labels[some]


@pytest.fixture(scope="module")
def arbiter(data) -> judge.Judge:
    return judge.train(2, 0, data=data)


def test_the_judge_learns(arbiter):
    assert arbiter.held_out_accuracy > 0.85
    features = arbiter.features(mnist5k("held_out").images)
    assert features.shape == (500, 64) and features.dtype == np.float64 and (features.std(0) > 0).sum() > 32


def test_a_seed_makes_one_judge_and_leaves_the_global_generator_alone(data):
    few = data[0][::10], data[1][::10]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (judge.train(1, seed, data=few) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.net.head.weight, other.net.head.weight)


def test_augmentation_keeps_background_and_range():
    x = torch.full((4, 1, 28, 28), -1.0)
    x[:, :, 10:18, 10:18] = 1.0
    y = judge.augment(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape and float(y.min()) == -1.0 and float(y.max()) <= 1.0 + 1e-5
    assert torch.equal(y[:, :, 0, :], torch.full((4, 1, 28), -1.0))  # nothing bright comes in from outside
    assert not torch.equal(y[0], y[1])
    centre = (y + 1).sum((1, 2, 3)) / (x + 1).sum((1, 2, 3))  # area changes by at most the square of the scale
    assert bool(((centre > 0.7) & (centre < 1.4)).all())


def test_the_cache_returns_the_same_judge_and_survives_damage(tmp_path, data, monkeypatch):
    calls = []

    def counted(epochs, seed, progress=None):
        calls.append(epochs)
        return real(epochs, seed, data=(data[0][::10], data[1][::10]))

    real = judge.train
    monkeypatch.setattr(judge, "train", counted)
    first = judge.load_or_train(1, folder=tmp_path)
    again = judge.load_or_train(1, folder=tmp_path)
    assert len(calls) == 1 and again.held_out_accuracy == first.held_out_accuracy
    image = mnist5k("held_out").images[:3]
    np.testing.assert_array_equal(first.features(image), again.features(image))
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")
    judge.load_or_train(1, folder=tmp_path)
    assert len(calls) == 2
    judge.load_or_train(1, folder=tmp_path / "file.txt" / "under")
    (tmp_path / "file").write_text("")
    judge.load_or_train(1, folder=tmp_path / "file")  # cannot be written: done without
    assert len(calls) == 4


def test_images_of_another_kind_are_refused(arbiter):
    for bad in (
        np.zeros((2, 28, 28, 3), np.uint8),
        np.zeros((2, 28, 28, 1), np.float32),
        np.zeros((2, 8, 8, 1), np.uint8),
    ):
        with pytest.raises(OptionError, match="images: expected uint8"):
            arbiter.predict(bad)
    wide = np.zeros((1, 32, 32, 1), np.uint8)
    wide[:, 2:30, 2:30] = mnist5k("held_out").images[:1]
    assert np.array_equal(arbiter.features(wide), arbiter.features(mnist5k("held_out").images[:1]))


def test_label_accuracy_counts_per_digit(arbiter):
    held = mnist5k("held_out")
    wrong = held.labels.copy()
    wrong[held.labels == 3] = 4
    found = digits.label_accuracy(arbiter, held.images, wrong)
    base = digits.label_accuracy(arbiter, held.images, held.labels)
    assert base["accuracy"] == pytest.approx(arbiter.held_out_accuracy)
    assert found["accuracy"] < base["accuracy"] - 0.07 and "3" not in found["per_digit"]
    assert found["interval95"][0] < found["accuracy"] < found["interval95"][1] and found["n"] == 500


def test_real_digits_are_at_the_floor_and_noise_is_far_away(arbiter):
    held = mnist5k("held_out")
    shuffled = held.images[np.random.default_rng(0).permutation(500)]
    good = digits.distribution(arbiter, shuffled, resamples=10)
    assert good["fid"] == pytest.approx(good["floor"]["fid"], rel=1e-6)
    assert good["precision"] == good["recall"] == 1.0  # each digit lies in its own ball
    noise = np.random.default_rng(0).integers(0, 256, (500, 28, 28, 1)).astype(np.uint8)
    bad = digits.distribution(arbiter, noise, resamples=10)
    assert bad["fid"] > 20 * good["fid"] and bad["kid"] > 20 * abs(good["kid"]) and bad["recall"] < 0.2


def test_memorised_digits_are_found(arbiter):
    train, held = mnist5k("train"), mnist5k("held_out")
    copies = digits.memorisation(train.images[::30])
    fresh = digits.memorisation(held.images)
    assert copies["copies"] == len(train.images[::30]) and copies["nearer"] == 1.0
    assert fresh["copies"] == 0 and fresh["nearer"] <= 0.02 and fresh["samples"] == fresh["held_out"]


def test_the_card_has_every_figure_and_marks_what_is_missing(arbiter):
    held = mnist5k("held_out")
    settings = {"scale": 3.0, "steps": 50, "sampler": "ddim", "seeds": [0, 499], "seconds": 1.5}
    result = {
        "judge": {"held_out_accuracy": 0.9876, "held_out_n": 500, "train_n": 4500, "epochs": 25},
        "engine": {"version": "0.1.0", "backend": "openvino", "precision": "fp32"},
        "label_accuracy": digits.label_accuracy(arbiter, held.images, held.labels) | settings,
        "distribution": digits.distribution(arbiter, held.images, resamples=5) | settings,
        "memorisation": digits.memorisation(held.images) | {"scale": 3.0},
    }
    text = card.render(result)
    assert "98.8%" in text and f"{result['label_accuracy']['accuracy']:.1%}" in text
    assert (
        f"{result['distribution']['fid']:.4g}" in text
        and "FID@digits" in text
        and "FID " not in text.replace("FID in", "").replace("FID falls", "")
    )
    assert card.NOT_MEASURED in text  # no plan in the result: size, steps and checkpoint are not known
    assert card.render({}).count(card.NOT_MEASURED) >= 5
