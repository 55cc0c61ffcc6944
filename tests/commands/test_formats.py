"""Exports for other programs as a user makes them: the options, what is written, and what is refused before work."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
import yaml
from tests.conftest import choice_of, small_pipeline, small_settings
from tests.interchange.sdnq_reading import read

from qua2sedimo import Study
from qua2sedimo.options import Configuration
from qua2sedimo.quantizers import dequantize_weight


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study for SDNQ with a choice of options in turn, without measurements."""
    folder = tmp_path_factory.mktemp("for-sdnq")
    small_pipeline().save_pretrained(folder / "model")
    settings = small_settings(
        model=str(folder / "model"), target="sdnq", options="uaq-3,kmeans_a-4,kmeans_c-2,row-3", rounding="nearest"
    )
    study = Study.create(folder / "study", settings)
    space = study.workspace.space
    mixed = {name: options[i % len(options)] for i, (name, options) in enumerate(space.options.items())}
    choice_of(study, Configuration(mixed)).save(folder / "study" / "choices" / "plain.json")
    return folder / "study"


@pytest.fixture(scope="module")
def studied_for_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study for GGUF with a choice of all its types in turn, with compensated rounding."""
    folder = tmp_path_factory.mktemp("for-gguf")
    small_pipeline().save_pretrained(folder / "model")
    study = Study.create(folder / "study", small_settings(model=str(folder / "model"), target="gguf"))
    space = study.workspace.space
    mixed = {name: options[i % len(options)] for i, (name, options) in enumerate(space.options.items())}
    choice_of(study, Configuration(mixed)).save(folder / "study" / "choices" / "mixed.json")
    return folder / "study"


def test_a_study_for_sdnq_tries_only_what_its_format_holds(studied: Path) -> None:
    inside = Study(studied).workspace
    assert not any(layer.copies or layer.span for layer in inside.graph.layers.values())
    assert {o.method for options in inside.space.options.values() for o in options} == {"uaq", "kmeans_a", "kmeans_c"}
    assert all("row-3" not in map(str, options) for options in inside.space.options.values())


def test_export_for_sdnq_has_the_promised_size_and_weights(run, studied: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for form in ("packed", "sdnq", "diffusers"):
        ended = run("export", studied, tmp_path / form, "--choice", "plain", "--format", form)
        assert ended.status == 0, ended.err
    packed, sdnq = (json.loads((tmp_path / form / "qua2sedimo.json").read_text()) for form in ("packed", "sdnq"))
    assert sdnq["quantized_bytes"] == packed["quantized_bytes"] and sdnq["format"] == "sdnq"
    sizes = [sum(f.stat().st_size for f in (tmp_path / form).rglob("*.safetensors")) for form in ("packed", "sdnq")]
    assert abs(sizes[1] - sizes[0]) < 0.01 * sizes[0]
    inside = Study(studied)
    choice = inside.workspace.choices()[0]
    weights, _, _ = read(tmp_path / "sdnq" / "transformer")
    for name, value in inside.workspace.values(choice).items():
        wanted = dequantize_weight(value).float()
        assert (weights[name].reshape(wanted.shape) - wanted).norm() <= torch.finfo(torch.float16).eps * wanted.norm()


def test_a_change_in_any_file_of_an_export_is_noticed_by_generate(refused, run, studied: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Diffusers would load all of these without a word, and paint other pictures."""
    files = ["scheduler/scheduler_config.json", "vae/diffusion_pytorch_model.safetensors"]
    weights = "transformer/diffusion_pytorch_model-00001-of-00001.safetensors"
    for form, names in (("packed", files), ("diffusers", [*files, weights])):
        out = tmp_path / form
        assert run("export", studied, out, "--choice", "plain", "--format", form).status == 0
        for name in names:
            raw = (out / name).read_bytes()
            (out / name).write_bytes(raw.replace(b"1000", b"1001") if name.endswith("json") else raw[:-1] + b"\x3c")
            said = refused("generate", out, "--prompt", 1, "--out", tmp_path / "pictures")
            assert name in said and "is not what was exported" in said
            (out / name).write_bytes(raw)
    assert not (tmp_path / "pictures").exists()


def test_export_for_gguf_has_the_promised_size_and_weights(run, studied_for_gguf: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "model.gguf"
    packed, made = (
        run("export", studied_for_gguf, out, "--choice", "mixed", "--format", form)
        for out, form in ((tmp_path / "packed", "packed"), (file, "gguf"))
    )
    assert packed.status == made.status == 0, made.err
    assert packed.out.partition(": ")[2] == made.out.partition(": ")[2], "the same weights, bytes and bits are stated"
    inside = Study(studied_for_gguf)
    (choice,) = inside.workspace.choices()
    assert len(set(choice.configuration.values())) > 3
    rows = {name: inside.workspace.space.shapes[name][1] for name in choice.configuration}
    assert all(rows[n] % (256 if o.method == "gguf_k" else 32) == 0 for n, o in choice.configuration.items())
    tensors = {t.name: t for t in gguf.GGUFReader(file).tensors}
    values = inside.workspace.values(choice)
    found = sum(tensors[f"{name}.weight"].n_bytes for name in values)
    assert found == inside.workspace.space.nbytes(choice.configuration)
    for name, value in values.items():
        tensor = tensors[f"{name}.weight"]
        back = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(back.half(), dequantize_weight(value)), value.option
    kept = set(inside.workspace.graph.layers) - values.keys()
    assert "pos_embed.proj" in kept and all(tensors[f"{n}.weight"].tensor_type.name == "F16" for n in kept)
    assert inside.workspace.bank.errors and all(
        error.output is not None for errors in inside.workspace.bank.errors.values() for error in errors.values()
    ), "the bank's options were rounded by statistics"


def test_a_model_that_no_gguf_type_fits_is_refused_before_anything_is_made(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked = ("init", "digits-dit", tmp_path / "s", "--for", "gguf", "--options", "row-3,kmeans_a-4")
    said = refused(*asked)
    assert "gguf holds none of the options 'row-3,kmeans_a-4' of any layer: 'pos_embed.proj'" in said
    assert "multiple of 32" in said
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_any_work(  # type: ignore[no-untyped-def]
    refused,
    studied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qua2sedimo.study.Study.choose", lambda *_, **__: pytest.fail("work began"))
    assert "unknown export format 'onnx'" in refused("export", studied, tmp_path / "out", "--format", "onnx")
    asked = ("--format", "sdnq", "--act-bits", 8)
    assert "no place for a width of activations" in refused("export", studied, tmp_path / "out", *asked)
    assert "--for: 'comfy' is unknown" in refused("init", "digits-dit", tmp_path / "s", "--for", "comfy")
    assert "a GGUF export is a file" in refused("export", studied, tmp_path / "out", "--format", "gguf")
    assert not list(tmp_path.iterdir())


def test_init_for_a_program_writes_it_down(run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = run("init", model, tmp_path / "s", "--prompt", 1, "--for", "sdnq")
    assert ended.status == 0, ended.err
    assert yaml.safe_load((tmp_path / "s" / "study.yaml").read_text())["target"] == "sdnq"
    assert Study(tmp_path / "s").workspace.settings.protocol == small_settings_protocol(tmp_path / "s")


def small_settings_protocol(study: Path) -> str:
    """The protocol of the same study without a target: the same, so that both can be compared."""
    settings = Study(study).workspace.settings
    return settings.model_copy(update={"target": None}).protocol
