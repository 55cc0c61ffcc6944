"""SDNQ's checkpoints: what is written is read back by an independent decoder, and what does not fit is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tests.interchange.sdnq_reading import codes_of, read
from tests.runtime.helpers import dit, pixart, unet
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.interchange.sdnq import form_of, save_sdnq
from qua2sedimo.interchange.sdnq.packing import pack_codes, packed_shape
from qua2sedimo.interchange.targets import space_for
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight
from qua2sedimo.runtime.table import layer_modules

EVERY = [*((m, b) for b in range(1, 9) for m in ("uaq", "row", "kmeans_c", "kmeans_a")), ("lowrank", 3)]


def every_option(model: nn.Module, first: int = 0) -> dict[str, QuantizedWeight]:
    """Every layer another option, in turn."""
    turns = itertools.islice(itertools.cycle(EVERY), first, None)
    layers = layer_modules(model).items()
    return {name: METHODS[m].quantize(layer.weight, [b])[0] for (name, layer), (m, b) in zip(layers, turns)}


@pytest.mark.parametrize("width", range(1, 9))
def test_codes_are_packed_as_the_loader_reads_them(width: int) -> None:
    codes = torch.randint(0, 2**width, (16, 3, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(width))
    packed = pack_codes(codes, width)
    assert packed.dtype == torch.uint8 and packed.numel() * 8 == codes.numel() * width
    assert tuple(packed.shape) == packed_shape((16, 3, 2), width)
    assert torch.equal(codes_of(packed, width), codes.flatten().long())


@pytest.mark.parametrize("trained_in", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [pixart, unet])
def test_every_option_is_written_as_the_weight_it_stands_for(make, trained_in: torch.dtype, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = make().to(trained_in)
    values = every_option(model)
    size = save_sdnq(model, None, values, tmp_path / "out", any_size=True)
    weights, settings, tensors = read(tmp_path / "out")
    assert settings["quant_method"] == "sdnq" and not settings["add_skip_keys"]
    exact = 0
    for name, value in values.items():
        wanted = dequantize_weight(value).float()
        found = weights[name].reshape(wanted.shape)
        rounded = found.to(trained_in).float()
        if value.method in ("row", "kmeans_a", "kmeans_c") or (trained_in == torch.bfloat16 and value.method == "uaq"):
            assert torch.equal(rounded, wanted), (name, value.option)
            exact += 1
        limit = torch.finfo(trained_in).eps * (2 if value.method == "lowrank" else 1)
        assert (found - wanted).norm() <= limit * wanted.norm(), (name, value.option)
    assert exact > len(values) // 2
    stored = [n for n in tensors if n.rpartition(".")[0] in values and not n.endswith(".bias")]
    assert size.quantized_bytes == sum(tensors[n].numel() * tensors[n].element_size() for n in stored)
    assert size.denoiser_bytes == sum(t.numel() * t.element_size() for t in tensors.values())


def test_every_other_matrix_is_named_as_one_that_is_not_quantized(tmp_path: Path) -> None:
    model = dit().half()
    name = "transformer_blocks.0.attn1.to_q"
    values = {name: METHODS["kmeans_a"].quantize(model.get_submodule(name).weight, [3])[0]}
    save_sdnq(model, None, values, tmp_path / "out")
    _, settings, tensors = read(tmp_path / "out")
    assert list(settings["modules_quant_config"]) == [f"{name}.weight"]
    matrices = {n for n, t in model.state_dict().items() if t.dim() > 1 and n.endswith(".weight")}
    assert set(settings["modules_to_not_convert"]) == matrices - {f"{name}.weight"}
    assert any("embedding_table" in n for n in matrices), "an embedding is among them"
    assert torch.equal(tensors["proj_out_1.weight"], model.proj_out_1.weight)


def test_growth_is_refused_with_the_layers_and_nothing_is_written(tmp_path: Path) -> None:
    model = pixart().half()
    values = {n: METHODS["row"].quantize(m.weight, [4])[0] for n, m in layer_modules(model).items()}
    with pytest.raises(Qua2SeDiMoError, match=r"for 27 of 27 layers.*'adaln_single.linear' \(row-4\) \+") as error:
        save_sdnq(model, None, values, tmp_path / "out")
    assert "--for sdnq" in error.value.remedy and "--any-size" in error.value.remedy
    assert not (tmp_path / "out").exists()
    size = save_sdnq(model, None, values, tmp_path / "out", any_size=True)
    assert size.quantized_bytes > sum(value.nbytes for value in values.values())


def test_parts_become_one_plain_weight(tmp_path: Path) -> None:
    model = unet().half()
    name = "up_blocks.0.resnets.0.conv1"
    weight = model.get_submodule(name).weight
    parts = ((0, 32), (32, weight.shape[1]))
    values = {f"{name}[{a}:{b}]": METHODS["uaq"].quantize(weight[:, a:b].contiguous(), [3])[0] for a, b in parts}
    with pytest.raises(Qua2SeDiMoError, match=r"'up_blocks.0.resnets.0.conv1' \(2 parts\)"):
        save_sdnq(model, None, values, tmp_path / "out")
    save_sdnq(model, None, values, tmp_path / "out", any_size=True)
    whole = torch.cat([dequantize_weight(value) for value in values.values()], dim=1)
    assert torch.equal(read(tmp_path / "out")[0][name], whole.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_space_for_sdnq_has_only_what_keeps_its_bytes(dtype: torch.dtype) -> None:
    shapes = {"linear": (64, 96), "conv": (64, 32, 3, 3), "odd": (5, 7)}
    space = space_for("sdnq", shapes, "default", dtype)
    assert set(space.layers) == {"linear", "conv"}, "35 codes fill no group, so this layer stays in 16 bits"
    for name, options in space.options.items():
        for option in options:
            assert form_of(option, shapes[name], dtype).nbytes == option.nbytes(shapes[name])
    methods = {name: {o.method for o in options} for name, options in space.options.items()}
    uniform = {"uaq"} if dtype == torch.float16 else set()
    assert methods == {"linear": {"kmeans_c", "kmeans_a"} | uniform, "conv": {"kmeans_a"} | uniform}
    with pytest.raises(Qua2SeDiMoError, match=r"sdnq holds none of the options 'row-3'.*'linear' \[64, 96\]"):
        space_for("sdnq", shapes, "row-3", dtype)


def test_the_smallest_form_is_taken() -> None:
    half = torch.float16
    assert form_of(Option("row", 8), (64, 96), half).kind == "plain", "256 levels a row are more than 96 weights"
    assert form_of(Option("row", 3), (64, 96), half).kind == "row codebooks"
    assert form_of(Option("uaq", 1), (64, 96), half).kind == "uniform"
    assert form_of(Option("lowrank", 4), (640, 640), half).kind == "branch"
    assert form_of(Option("kmeans_a", 3), (2, 2), half).kind == "plain"
    assert form_of(Option("uaq", 3), (6, 6), half).bits == 4, "36 codes fill no groups of eight"
