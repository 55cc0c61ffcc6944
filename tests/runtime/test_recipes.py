"""A choice of uniform options as a recipe that torchao and GGUF converters follow; others are refused."""

import copy
import json
import re

import pytest
import torch

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.denoisers.layers import weight_layers
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, dequantize_weight
from qua2sedimo.runtime import recipe
from qua2sedimo.runtime.recipes import FORMS

from .helpers import dit, output


def linear_choice(model: torch.nn.Module) -> dict[str, Option]:
    """UAQ of 1 to 8 bits in turn for every Linear layer."""
    linear = [name for name, layer in weight_layers(model).items() if len(layer.shape) == 2]
    return {name: Option("uaq", 1 + i % 8) for i, name in enumerate(linear)}


def wide(columns: int, rows: int = 8, copies: tuple[str, ...] = ()) -> dict[str, WeightLayer]:
    return {"a.b": WeightLayer("a.b", "a.b", None, (rows, columns), "Linear", "FF 1", "a", 0, "mid", copies)}


def test_torchao_applies_its_recipe_to_each_layer_at_its_width() -> None:
    pytest.importorskip("torchao")
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    model = dit()
    choice = linear_choice(model)
    made = recipe("torchao", choice, weight_layers(model))
    plain = copy.deepcopy(model)
    quantize_(model, config_from_dict(json.loads(made.text)), filter_fn=None)
    for name, option in choice.items():
        own, before = model.get_submodule(name).weight, plain.get_submodule(name).weight
        held = own.dequantize()
        assert own.target_dtype == getattr(torch, f"int{option.bits}")
        assert max(row.unique().numel() for row in held) <= 2**option.bits
        ours = dequantize_weight(METHODS["uaq"].quantize(before.detach(), [option.bits])[0])
        assert (held - before).norm() < 1.5 * (ours - before).norm()
    assert type(model.pos_embed.proj.weight) is torch.nn.Parameter
    assert torch.isfinite(output(model)).all()


def test_torchao_counts_a_byte_a_code_and_its_scales() -> None:
    pytest.importorskip("torchao")
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    model = dit().bfloat16()
    layers = weight_layers(model)
    choice = {name: Option("uaq", 3) for name in layers}  # the patch embedding is a Conv2d
    made = recipe("torchao", choice, layers)
    quantize_(model, config_from_dict(json.loads(made.text)), filter_fn=None)
    weights = [model.get_submodule(name).weight for name in layers]
    held = sum(t.nbytes for w in weights for t in (w.qdata, w.scale, w.zero_point))
    assert made.nbytes == held and made.weights == sum(w.numel() for w in weights)


def test_the_torchao_recipe_names_each_layer_with_its_width() -> None:
    model = dit()
    choice = linear_choice(model)
    content = json.loads(recipe("torchao", choice, weight_layers(model)).text)
    assert content["_type"] == "FqnToConfig"
    configs = content["_data"]["fqn_to_config"]
    widths = {name: entry["_data"]["weight_dtype"]["_data"] for name, entry in configs.items()}
    assert widths == {name: f"int{option.bits}" for name, option in choice.items()}
    assert {entry["_data"]["mapping_type"]["_data"] for entry in configs.values()} == {"ASYMMETRIC"}


@pytest.mark.parametrize(
    ("bits", "columns", "kind", "average"),
    [
        (2, 512, "q2_K", 2.625),
        (3, 512, "q3_K", 3.4375),
        (4, 512, "q4_K", 4.5),
        (4, 1152, "q4_1", 5.0),
        (5, 256, "q5_K", 5.5),
        (5, 96, "q5_1", 6.0),
        (6, 256, "q6_K", 6.5625),
        (8, 96, "q8_0", 8.5),
    ],
)
def test_gguf_types_are_those_whose_blocks_fit(bits: int, columns: int, kind: str, average: float) -> None:
    made = recipe("gguf", {"a.b": Option("uaq", bits)}, wide(columns))
    pattern, _, found = made.text.rpartition("=")
    assert found == kind and made.average_bits == average
    assert re.search(pattern, "a.b.weight") and re.search(pattern, "model.diffusion_model.a.b.weight")
    assert not any(re.search(pattern, name) for name in ("x.a.b.weight", "aXb.weight", "a.b.weights", "a.b.bias"))


def test_gguf_sizes_are_those_of_the_format() -> None:
    gguf = pytest.importorskip("gguf")
    known = {kind.name.upper(): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    for kinds in FORMS["gguf"].types.values():
        for kind in kinds:
            assert known[kind.name.upper()] == (kind.block, kind.nbytes)


def test_copies_get_what_the_layer_gets_and_take_room() -> None:
    alone = recipe("gguf", {"a.b": Option("uaq", 4)}, wide(512))
    both = recipe("gguf", {"a.b": Option("uaq", 4)}, wide(512, copies=("c.d",)))
    assert both.nbytes == 2 * alone.nbytes
    assert [rule.rpartition("=")[2] for rule in both.text.split(",")] == ["q4_K", "q4_K"]
    assert r"c\.d\.weight" in both.text


@pytest.mark.parametrize(
    ("form", "option", "layer", "reason"),
    [
        ("torchao", Option("kmeans_c", 4), wide(512), "kmeans_c-4 has no evenly spaced levels"),
        ("gguf", Option("kmeans_a", 4), wide(512), "kmeans_a-4 has no evenly spaced levels"),
        ("torchao", Option("row", 4), wide(512), "row-4 has no evenly spaced levels"),
        ("gguf", Option("lowrank", 16), wide(512), "lowrank-16 has no evenly spaced levels"),
        ("gguf", Option("uaq", 1), wide(512), "GGUF has no type of 1 bits"),
        ("gguf", Option("uaq", 7), wide(512), "GGUF has no type of 7 bits"),
        ("gguf", Option("uaq", 3), wide(1152), "1152 weights are not a multiple of the block size 256"),
        ("gguf", Option("uaq", 4), wide(40), "40 weights are not a multiple of the block size 32"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_reason(form, option, layer, reason) -> None:
    with pytest.raises(Qua2SeDiMoError, match=reason) as caught:
        recipe(form, {"a.b": option}, layer)
    assert "'a.b'" in caught.value.message and "--methods uaq" in caught.value.remedy


def test_convolutions_and_parts_are_refused_where_there_is_no_type_for_them() -> None:
    conv = WeightLayer("a", "a", None, (8, 32, 3, 3), "Conv2d", "Res In", "a", 0, "mid")
    part = WeightLayer("a[0:32]", "a", (0, 32), (8, 32), "Linear", "FF 1", "a", 0, "mid")
    for form, layer, reason in (
        ("gguf", conv, "the length of its kernel"),
        ("torchao", WeightLayer("a", "a", None, (8, 4, 3), "Conv1d", "Res In", "a", 0, "mid"), "Conv2d layers only"),
        ("torchao", part, "several parts of a layer"),
        ("gguf", part, "several parts of a layer"),
    ):
        with pytest.raises(Qua2SeDiMoError, match=reason):
            recipe(form, {layer.name: Option("uaq", 4)}, {layer.name: layer})
    with pytest.raises(Qua2SeDiMoError, match="unknown recipe format 'onnx'"):
        recipe("onnx", {}, {})
    with pytest.raises(Qua2SeDiMoError, match="quantizes no layer"):
        recipe("gguf", {}, {})
