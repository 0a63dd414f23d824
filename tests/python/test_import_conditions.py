"""UNet2DConditionModel: its network as a graph of x, t and named conditions, and what the manifest would say of them."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt.export import assemble, checks, conditions, graph

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from ddpm_rt.importers import dispatch, imported

pytestmark = pytest.mark.filterwarnings("ignore")


def folder(path, **changes):
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(**({
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 12,
        "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    } | changes)).eval()  # fmt: skip
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.08 if p.ndim > 1 else 0.3)
    net.save_pretrained(path / "unet")
    diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1).save_pretrained(path / "scheduler")
    return net


SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 20}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, SDXL], ids=["text", "text and sizes"])
def test_the_graph_computes_what_the_network_does(changes, tmp_path, monkeypatch):
    net = folder(tmp_path / "p", **changes)
    kept = {}

    def keep(path, about, models, ports, original, weights):
        kept.update(about=about, model=models["unet"], ports=ports["unet"], original=original)
        return {}

    monkeypatch.setattr(assemble, "write", keep)
    imported.write(dispatch.read(tmp_path / "p", "diffusers"), tmp_path / "x.plan")
    about = kept["about"]
    inputs = checks.cases(about)
    run = checks.compiled(graph.serialize(kept["model"]), "eps")
    added = {"text_embeds": torch.from_numpy(inputs["text_embeds"]), "time_ids": torch.from_numpy(inputs["time_ids"])} if changes else None
    with torch.no_grad():
        mask = torch.from_numpy(inputs["encoder_hidden_states_mask"])
        expected = net(torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["t"]), torch.from_numpy(inputs["encoder_hidden_states"]),
                       encoder_attention_mask=mask, added_cond_kwargs=added).sample.numpy()  # fmt: skip
    got = run(inputs)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(run(inputs | {"encoder_hidden_states": -inputs["encoder_hidden_states"]}) - got).max() > 1e-3
    checks.check_batch(run, inputs)
    manifest = about.manifest({}, {})
    assert manifest["conditions"]["encoder_hidden_states"] == {
        "dtype": "float32", "shape": [12], "max_length": 77, "mask": True, "role": "text", "null": None,
    }  # fmt: skip
    assert manifest["stages"][0]["inputs"]["encoder_hidden_states"] == "request"
    assert manifest["sample"]["role"] == "latent" and manifest["defaults"]["compat"] == "diffusers"
    assert set(kept["ports"][0]) == set(inputs)
    assert len(checks.self_test(inputs, expected)) == 4 * 4 * sum(v[0].size for v in (*inputs.values(), expected)) + 4 * 4


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("in_channels", {"in_channels": 9}),
        ("num_class_embeds", {"num_class_embeds": 5}),
        ("class_embed_type", {"class_embed_type": "identity"}),
        ("encoder_hid_dim_type", {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 12}),
    ],
)
def test_what_has_no_counterpart_is_named(key, changes, tmp_path):
    folder(tmp_path / "p", **changes)
    with pytest.raises(ddpm_rt.PlanError, match=f"config.json: {key}: expected"):
        dispatch.read(tmp_path / "p", "diffusers")


def test_conditions_are_checked():
    assert conditions.checked({"state": {"shape": [7]}})["state"]["max_length"] is None
    assert list(conditions.checked({"b": {}, "a": {"null": "same"}})) == ["a", "b"]
    for given, what in (
        ({"x": {}}, "names other than"),
        ({"a": {"colour": 1}}, r"conditions\.a\.colour"),
        ({"a": {"role": "smell"}}, r"conditions\.a\.role"),
        ({"a": {"shape": [0]}}, "sizes above 0"),
        ({"a": {"mask": True}}, r"conditions\.a\.mask"),
        ({"a": {"max_length": 2, "mask": True}, "a_mask": {}}, r"conditions\.a_mask"),
        ({"é": {}}, "names other than"),
    ):
        with pytest.raises(ddpm_rt.OptionError, match=what):
            conditions.checked(given)
    masks = conditions.examples(conditions.checked({"a": {"shape": [2], "max_length": 5, "mask": True}}), 3)["a_mask"]
    assert masks.shape == (3, 5) and masks.sum(axis=1).tolist() == [1, 3, 5]
