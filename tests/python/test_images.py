"""Images: what a result carries, and how it is written."""

from __future__ import annotations

import copy
import io
import os
import pickle

import numpy as np
import pytest

from ddpm_rt import OptionError, images


@pytest.fixture
def batch() -> images.Images:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), np.uint8)
    provenance = images.Provenance(
        labels=np.arange(6),
        seeds=np.arange(10, 16, dtype=np.uint64),
        nfe=50,
        seconds=0.5,
        fingerprint="abc",
        settings={"plan": "toy", "sampler": "ddim", "steps": 50, "scale": 3.0, "precision": "fp32"},
    )
    return images.Images(pixels, provenance)


def read_png(data: bytes) -> tuple[np.ndarray, dict[str, str]]:
    Image = pytest.importorskip("PIL.Image")
    picture = Image.open(io.BytesIO(data))
    pixels = np.asarray(picture)
    return (pixels if pixels.ndim == 3 else pixels[..., None]), dict(picture.text)


def test_it_is_an_array_with_its_origin(batch):
    assert isinstance(batch, np.ndarray) and batch.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert (batch.nfe, batch.seconds, batch.fingerprint, batch.bad) == (50, 0.5, "abc", ())


@pytest.mark.parametrize(
    "key",
    [
        slice(2, 5),
        slice(None, None, -1),
        [4, 0],
        np.array([True, False] * 3),
        3,
        (slice(1, 3), slice(0, 2)),
        np.int64(2),
    ],
)
def test_slices_keep_labels_and_seeds_in_step(batch, key):
    part = batch[key]
    first = key[0] if isinstance(key, tuple) else key
    assert (np.asarray(part) == np.asarray(batch)[key]).all()
    assert (part.labels == np.arange(6)[first]).all() and (part.seeds == np.arange(10, 16)[first]).all()


@pytest.mark.parametrize(
    "change", [lambda a: np.roll(a, 1, 0), lambda a: a.reshape(3, 2, 5, 7, 3), lambda a: a[..., 0]]
)
def test_rearranged_arrays_do_not_claim_an_origin(batch, change):
    assert getattr(change(batch), "labels", None) is None


def test_arithmetic_gives_plain_arrays(batch):
    assert type(batch / 255) is np.ndarray and type(batch > 3) is np.ndarray
    assert isinstance(batch.mean(), float)


@pytest.mark.parametrize(
    "twin", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a)), lambda a: a.copy()]
)
def test_copies_keep_everything(batch, twin):
    other = twin(batch)
    assert (other == batch).all() and other.seeds.tolist() == batch.seeds.tolist() and other.fingerprint == "abc"
    other[0] = 0
    assert batch[0].any()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_lossless(channels):
    pixels = np.random.default_rng(1).integers(0, 256, (9, 13, channels), np.uint8)
    back, text = read_png(images.encode_png(pixels, {"plan": "x", "scale": 3.0}))
    assert (back == pixels).all() and text == {"plan": "x", "scale": "3.0"}


def test_png_says_where_it_came_from(batch, tmp_path):
    _, text = read_png(batch.save(tmp_path / "a.png").read_bytes())
    assert text["plan"] == "toy" and text["sampler"] == "ddim" and text["steps"] == "50" and text["scale"] == "3.0"
    assert text["seed"] == "10" and text["seeds"] == "10,11,12,13,14,15" and text["labels"] == "0,1,2,3,4,5"
    assert text["precision"] == "fp32" and text["fingerprint"] == "abc"


def test_grid_places_every_image(batch):
    sheet = images.grid(np.asarray(batch), padding=1)
    assert sheet.shape == (2 * 6 + 1, 3 * 8 + 1, 3)
    assert (sheet[7:12, 9:16] == batch[4]).all() and not sheet[0].any()


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (7, 3), (12, 4), (16, 4), (40, 8), (64, 8)])
def test_grid_shape(n, columns):
    sheet = images.grid(np.zeros((n, 2, 2, 1), np.uint8), padding=0)
    assert sheet.shape[1] == 2 * columns and sheet.shape[0] == 2 * -(-n // columns)


def test_one_image_is_saved_without_a_border(batch, tmp_path):
    back, text = read_png(batch[3].save(tmp_path / "one.png").read_bytes())
    assert (back == np.asarray(batch[3])).all() and text["seed"] == "13"


def test_npz_is_guided_diffusion_s_layout(batch, tmp_path):
    loaded = np.load(batch.save(tmp_path / "a.npz"))
    assert (loaded["arr_0"] == batch).all() and loaded["arr_0"].dtype == np.uint8
    assert loaded["arr_1"].tolist() == [0, 1, 2, 3, 4, 5]


def test_float_images_are_mapped_by_the_data_range(tmp_path):
    x = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 1, 3, 4)
    provenance = images.Provenance(np.array([-1]), np.array([0], np.uint64), 1, 0.0, "f", range=(0.0, 1.0))
    back, _ = read_png(images.Images(x, provenance).save(tmp_path / "f.png").read_bytes())
    assert (back.ravel() == np.rint(x.ravel() * 255)).all()


def test_notebooks_show_the_grid(batch):
    back, _ = read_png(batch._repr_png_())
    assert (back == images.grid(np.asarray(batch))).all()


@pytest.mark.parametrize("name", ["a.jpg", "a", "missing/a.png", "missing/a.npz"])
def test_what_cannot_be_written_leaves_nothing(batch, tmp_path, name):
    with pytest.raises(OptionError, match="path: expected"):
        batch.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_links_stay_and_what_is_no_file_is_refused(batch, tmp_path):
    (tmp_path / "real.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to("real.png")
    batch.save(tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "real.png").stat().st_size > 100
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("folder.png", "pipe.png"):
        with pytest.raises(OptionError, match="not a regular file"):
            batch.save(tmp_path / name)
    assert (tmp_path / "pipe.png").is_fifo() and len(list(tmp_path.iterdir())) == 4


def test_a_failed_write_keeps_the_old_file(batch, tmp_path, monkeypatch):
    path = batch.save(tmp_path / "a.png")
    before = path.read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "replace", full_disk)
    with pytest.raises(OptionError, match="No space left"):
        batch.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
