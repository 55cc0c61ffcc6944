"""What save_packed refuses, and that a refusal or a failure leaves the folder as it was."""

import json

import pytest
import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import save_packed

from .helpers import dit, mixed, output, pipeline


def test_a_foreign_folder_is_refused_and_an_own_export_replaced(tmp_path) -> None:
    model, out = dit(), tmp_path / "out"
    out.mkdir()
    save_packed(model, None, {}, out)  # empty: fine
    save_packed(model, None, mixed(model), out, {"run": 2})
    assert json.loads((out / "qua2sedimo.json").read_text())["extra"] == {"run": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"sea")
    with pytest.raises(Qua2SeDiMoError, match="not empty and was not written by this program"):
        save_packed(model, None, mixed(model), foreign)
    with pytest.raises(Qua2SeDiMoError, match="is a file"):
        save_packed(model, None, mixed(model), foreign / "photo.jpg")
    assert (foreign / "photo.jpg").read_bytes() == b"sea"


def test_a_failure_on_the_way_leaves_the_earlier_export(tmp_path) -> None:
    model, out = dit(), tmp_path / "out"
    save_packed(model, None, mixed(model), out)
    expected = output(type(model).from_pretrained(out))

    def failing():
        yield from list(mixed(model))[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_packed(model, None, failing(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert torch.equal(output(type(model).from_pretrained(out)), expected)


def test_values_that_do_not_belong_are_refused(tmp_path) -> None:
    model, out = dit(), tmp_path / "out"
    value = METHODS["uaq"].quantize(model.proj_out_2.weight, [4])[0]
    with pytest.raises(Qua2SeDiMoError, match="no Linear or Conv layer 'nose'"):
        save_packed(model, None, {"nose": value}, out)
    with pytest.raises(Qua2SeDiMoError, match="layer 'proj_out_1': quantized weight has shape"):
        save_packed(model, None, {"proj_out_1": value}, out)
    with pytest.raises(Qua2SeDiMoError, match="two quantized weights"):
        save_packed(model, None, [("proj_out_2", value)] * 2, out)
    with pytest.raises(Qua2SeDiMoError, match="no denoiser 'nose'"):
        save_packed(pipeline(model), "nose", {}, out)
    with pytest.raises(Qua2SeDiMoError, match="expected a denoiser, which is a torch module, got dict"):
        save_packed({}, None, {}, out)  # type: ignore[arg-type]
    with pytest.raises(Qua2SeDiMoError, match="written as JSON"):
        save_packed(model, None, {}, out, {"what": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_its_config_does_not_describe_is_refused(tmp_path) -> None:
    model = dit()
    model.extra = nn.Linear(3, 3)
    with pytest.raises(Qua2SeDiMoError, match="weight layers"):
        save_packed(model, None, {}, tmp_path / "out")
    model = dit()
    model.proj_out_2.bias.data[0] = 1e6
    with pytest.raises(Qua2SeDiMoError, match=r"'proj_out_2\.bias' has values beyond the range"):
        save_packed(model, None, {}, tmp_path / "out")


def test_packed_models_and_shared_weights_are_refused(tmp_path) -> None:
    model = dit()
    values = dict(mixed(model))
    save_packed(model, None, values, tmp_path / "out")
    with pytest.raises(Qua2SeDiMoError, match="already quantized"):
        save_packed(type(model).from_pretrained(tmp_path / "out"), None, {}, tmp_path / "again")
    first, second = (block.attn1.to_q for block in model.transformer_blocks)
    second.weight = first.weight
    name = "transformer_blocks.0.attn1.to_q"
    with pytest.raises(Qua2SeDiMoError, match="share a weight"):
        save_packed(model, None, {name: values[name]}, tmp_path / "again")
