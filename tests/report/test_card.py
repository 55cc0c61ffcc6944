"""The model card: the hub reads its front matter, its code runs, and no text of a study becomes markup in it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Study
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.generate import Generation
from qua2sedimo.measuring.exported import FILE, evaluate_export, read_evaluation
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.options import Option
from qua2sedimo.report.card.markdown import fenced, render_card, write_card
from qua2sedimo.report.data import OWN, BaseModel, CardData, CardPicture, OperationOptions
from qua2sedimo.report.fill.base_model import base_model
from qua2sedimo.report.fill.card import card_data
from qua2sedimo.study.stages.export import save_configuration

from .synthetic import synthetic_data

EVIL = "<script>alert(1)</script> | [x](y) ```\n# `*_"


def synthetic_card(evil: str = "", **changes: Any) -> CardData:
    data = synthetic_data(blocks=1, evil=evil)
    pixels = np.full((16, 16, 3), 40, np.uint8)
    card = CardData(
        title=f"small at 3.5 bits{evil}",
        base=BaseModel(f"small{evil}", "owner/small", "other", f"small licence{evil}", "https://example.org/licence"),
        pipeline="PixArtAlphaPipeline",
        denoiser="PixArtTransformer2DModel",
        average_bits=3.4912,
        weights=1_000_000,
        quantized_bytes=436_400,
        other_bytes=1200,
        act_bits=8,
        operations=[OperationOptions("SA-Q", {"uaq-4": 2, "kmeans_a-3": 1}, 3000, 1400)],
        code=f"prompt = {evil!r}",
        task="text-to-image",
        own_row="ours, 3.5 bits",
        rows=data.table,
        metric_infos=data.metric_infos,
        pictures=[CardPicture(f"red hair{evil}", pixels, pixels)],
        provenance={"seed": f"0{evil}"},
        commands=[f"qua2sedimo fit study{evil}"],
    )
    return dataclasses.replace(card, **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("card")
    model = folder / "base"
    pipeline = small_pipeline()
    pipeline.save_pretrained(model)
    (model / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# Base\n")
    return Study.create(folder / "study", small_settings(model=str(model), options="paper"), pipeline)


@pytest.fixture(scope="module")
def export(study: Study) -> Path:
    out = study.folder.parent / "packed"
    provenance = {
        "model": study.workspace.settings.model,
        "arguments": study.workspace.settings.arguments,
        "inputs": [1, 2],
    }
    save_configuration(study.workspace, study.workspace.space.uniform(Option.parse("kmeans_a-4")), out, provenance)
    return out


def test_the_hub_reads_the_front_matter() -> None:
    read = huggingface_hub.ModelCard(render_card(synthetic_card())).data.to_dict()
    assert read == {
        "base_model": "owner/small",
        "base_model_relation": "quantized",
        "library_name": "diffusers",
        "license": "other",
        "license_name": "small licence",
        "license_link": "https://example.org/licence",
        "pipeline_tag": "text-to-image",
        "tags": ["qua2sedimo", "quantized", "diffusers:PixArtAlphaPipeline"],
    }


def test_what_is_unknown_is_not_in_the_front_matter_and_called_unknown() -> None:
    card = synthetic_card(base=BaseModel(""), task="", pipeline="", rows=[], pictures=[], own_row="", act_bits=None)
    text = render_card(card)
    read = huggingface_hub.ModelCard(text).data.to_dict()
    assert read.keys() == {"library_name", "tags"}
    assert "Not measured where this card was written" in text and "was not stated" in text
    assert "activations" not in text and "## Pictures" not in text


def test_the_table_has_intervals_and_marks_the_export() -> None:
    text = render_card(synthetic_card())
    assert "| **ours, 3.5 bits** | 3.49 | 3.02 MB | 27.1 (26.3 to 28.0) |" in text
    assert "| full precision | 16.00 | 13.8 MB | same | same | 96.4 (95.0 to 97.6) |" in text
    assert "3.4912" in text and "(4.6 times smaller)" in text and "rounded to 8 bits" in text
    assert "| SA-Q | 3 | 3.73 | 1.40 kB | 1 | 2 |" in text


def test_the_larger_measurement_comes_first_that_of_the_export_where_they_are_equal() -> None:
    measured = [synthetic_data(blocks=1).table[0], dataclasses.replace(synthetic_data(blocks=1).table[1], name=OWN)]
    infos = synthetic_data(blocks=1).metric_infos[:1]
    both = synthetic_card(measured=measured, measured_infos=infos, measured_how=f"Measured here: {EVIL}")
    text = render_card(both)
    own, study = text.index("| **this export** | 4.13 |"), text.index("| **ours, 3.5 bits** |")
    assert text.index("Measured here") < own < text.index("cannot be mixed") < study
    alone = render_card(dataclasses.replace(both, rows=[], own_row=""))
    assert "**this export**" in alone and "cannot be mixed" not in alone and "Not measured where" not in alone
    assert not re.search(r"(?<!\\)<script", text)
    few = [dataclasses.replace(row, metrics={"psnr": Estimate(27.0, 26.0, 28.0, 16)}) for row in measured]
    text = render_card(dataclasses.replace(both, measured=few))
    assert text.index("cannot be mixed") < text.index("| **ours, 3.5 bits** |") < text.index("| **this export** |")


def test_an_evaluation_is_kept_in_the_export_and_told_by_its_card(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    save_configuration(
        study.workspace, study.workspace.space.uniform(Option.parse("kmeans_a-4")), out, {"inputs": [1, 2]}
    )
    generation = Generation([1, 2], study.workspace.settings.arguments, 5)
    model = study.workspace.settings.model
    found = evaluate_export(out, model, generation, ["psnr"], 3, lambda *_: None)
    found.keep(out)
    found.model_copy(update={"metrics": {"ssim": Estimate(0.5, 0.4, 0.6, 9)}, "full": {}}).keep(out)
    kept = read_evaluation(out)
    assert kept is not None and kept.metrics == {**found.metrics, "ssim": Estimate(0.5, 0.4, 0.6, 9)}
    text = render_card(card_data(out))
    value = found.metrics["psnr"]
    assert value.images == 3 and "over 3, 9 images" in text and "2 inputs, seed 5" in text
    assert "| **this export** | " in text and f"{value.value:.1f}" in text and "| full precision | 16.00 |" in text
    found.model_copy(update={"seed": 6}).keep(out)  # measured in another way: not mixed
    assert (again := read_evaluation(out)) is not None and again.metrics == found.metrics
    loaded = diffusers.DiffusionPipeline.from_pretrained(out)  # the file inside does not disturb
    assert type(loaded).__name__ == type(study.workspace.pipeline).__name__
    kept_file = (out / FILE).read_text()
    save_configuration(study.workspace, study.workspace.space.uniform(Option.parse("kmeans_a-3")), out, {})
    assert read_evaluation(out) is None  # exported again
    (out / FILE).write_text(kept_file)
    with pytest.raises(Qua2SeDiMoError, match="measured on other files"):
        card_data(out)
    (out / FILE).write_text('{"format": 2}')
    with pytest.raises(Qua2SeDiMoError, match="is damaged"):
        card_data(out)
    (out / FILE).write_text('{"format": 1}')
    with pytest.raises(Qua2SeDiMoError, match="format 1 is not 2"):
        card_data(out)


def test_no_text_of_a_study_is_markup() -> None:
    harmless, evil = (render_card(synthetic_card(text)) for text in ("", EVIL))
    assert [cells(line) for line in tables(harmless)] == [cells(line) for line in tables(evil)]
    prose = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", evil.split("\n---\n", 1)[1], flags=re.S | re.M)
    assert "alert" in prose and not re.search(r"(?<!\\)<script", prose) and "\n# `" not in prose


def tables(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_code_cannot_end_its_own_fence() -> None:
    assert fenced("a", "python") == "```python\na\n```"
    assert fenced("a\n````\nb").startswith("`````\n")


def test_a_card_is_never_overwritten_unless_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(Qua2SeDiMoError, match=r"README\.md exists"):
        write_card(synthetic_card(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine" and not (tmp_path / "images").exists()
    write_card(synthetic_card(), tmp_path, force=True)
    assert (tmp_path / "README.md").read_text().startswith("---\n")


def test_pictures_lie_beside_the_card_neither_tiny_nor_huge(tmp_path: Path) -> None:
    large = CardPicture("large", np.zeros((1024, 2048, 3), np.uint8), np.zeros((1024, 2048), np.uint8))
    card = synthetic_card()
    text = write_card(dataclasses.replace(card, pictures=[*card.pictures, large]), tmp_path).read_text()
    shown = re.findall(r"\]\((images/[^)]+)\)", text)
    assert shown == ["images/1-full.png", "images/1-ours.png", "images/2-full.png", "images/2-ours.png"]
    assert [Image.open(tmp_path / name).size for name in shown] == [(128, 128)] * 2 + [(512, 256)] * 2


def test_the_code_of_the_card_paints_with_the_export(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_card(card_data(export), export, force=True).read_text()
    code = re.search(r"```python\n(.*?)\n```", text, re.S)
    assert code is not None and 'from_pretrained("packed")' in code[1] and "class_labels=[1]" in code[1]
    (tmp_path / "packed").symlink_to(export)
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})  # the claim is that just this text works
    assert Image.open("picture.png").size == (8, 8)
    assert "owner/name" in card_data(export, repo="owner/name").code


def test_the_card_of_an_export_knows_its_layers_and_the_licence_of_its_base(study: Study, export: Path) -> None:
    data = card_data(export)
    assert data.base == BaseModel("base", None, "mit") and data.title.startswith("base at ")
    assert sum(sum(row.options.values()) for row in data.operations) == len(study.workspace.space.layers)
    assert sum(row.nbytes for row in data.operations) == data.quantized_bytes
    assert sum(row.weights for row in data.operations) == data.weights == study.workspace.space.weights
    assert {"SA-Q", "FF 1", "t-Embed"} <= {row.operation for row in data.operations}
    assert card_data(export, licence="Apache-2.0").base.licence == "apache-2.0"


def test_an_export_of_another_study_and_no_export_are_refused(study: Study, export: Path, tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="none of the choices"):
        card_data(export, study.folder)
    with pytest.raises(Qua2SeDiMoError, match="is not an exported model"):
        card_data(tmp_path)


def test_a_base_model_is_named_by_what_its_folder_says(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--stabilityai--sdxl-turbo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: other\nlicense_name: sai\nlicense_link: LICENSE.md\n---\n")
    link = "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md"
    name = "stabilityai/sdxl-turbo"
    assert base_model(str(snapshot)) == BaseModel(name, name, "other", "sai", link)
    plain = tmp_path / "plain"
    plain.mkdir()
    assert base_model(str(plain)) == BaseModel("plain")
    (plain / "model_index.json").write_text('{"_name_or_path": "owner/name"}')
    assert base_model(str(plain)) == BaseModel("owner/name", "owner/name")
    (plain / "model_index.json").write_text('{"_name_or_path": "/home/me/name"}')
    assert base_model(str(plain)) == BaseModel("plain")
    (plain / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(Qua2SeDiMoError, match="front matter cannot be read"):
        base_model(str(plain))
    assert base_model("digits-dit").licence == "apache-2.0" and base_model("/gone/model") == BaseModel("model")


def test_where_the_hub_cannot_be_asked_the_licence_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("qua2sedimo.report.fill.base_model.hf_hub_download", unreachable)
    assert base_model("owner/name") == BaseModel("owner/name", "owner/name")
