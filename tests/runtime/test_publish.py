"""Exports get published: no file of one tells where on a machine its models lay; names on the hub stay."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from tests.conftest import choice_of, small_pipeline, small_settings

from qua2sedimo import Study, zoo
from qua2sedimo.denoisers.hub_names import public_name
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.generate import Generation
from qua2sedimo.measuring.exported import evaluate_export, read_evaluation
from qua2sedimo.options import Configuration
from qua2sedimo.quantizers import METHODS
from qua2sedimo.report.card.markdown import write_card
from qua2sedimo.report.data import BaseModel
from qua2sedimo.report.fill.base_model import base_model, place_of_base
from qua2sedimo.report.fill.card import card_data
from qua2sedimo.runtime import save_packed
from qua2sedimo.runtime.publish import forget_paths
from qua2sedimo.runtime.table import layer_modules


def files_telling(folder: Path, *secrets: str) -> list[str]:
    """Files, of whatever kind, with one of these texts in their bytes, plain or as JSON escapes it."""
    wanted = [form.encode() for text in secrets for form in (text, json.dumps(text)[1:-1])]
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and any(text in path.read_bytes() for text in wanted)
    )


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A text-to-image pipeline in a folder, as an older program saved it: with paths in its files."""
    folder = tmp_path / "secret place" / "base"
    shutil.copytree(Path(zoo.__file__).parent / "avatars_unet", folder)
    pipe = zoo.load("avatars-unet")
    pipe.save_pretrained(folder)
    home = str(Path.home() / "models" / "vae")
    edit(folder / "model_index.json", _name_or_path=str(folder))
    edit(folder / "vae" / "config.json", _name_or_path=home)
    edit(folder / "text_encoder" / "config.json", _name_or_path=str(folder / "text_encoder"))
    edit(folder / "scheduler" / "scheduler_config.json", _name_or_path="C:\\Users\\me\\base")
    edit(
        folder / "tokenizer" / "tokenizer_config.json",
        name_or_path=str(folder / "tokenizer"),
        special_tokens_map_file=home,
        tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"),
    )
    return folder


def test_no_file_of_an_export_tells_a_path(base: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(base)
    assert str(pipe.config["_name_or_path"]) == str(base)
    layers = list(layer_modules(pipe.unet).items())[:3]
    values = {name: METHODS["uaq"].quantize(module.weight.detach(), [4])[0] for name, module in layers}
    out = tmp_path / "out"
    save_packed(pipe, None, values, out, {"model": "base"})
    secrets = (str(base), "secret place", str(Path.home()), "C:\\Users")
    assert len(files_telling(base, *secrets)) >= 4
    called = {"num_inference_steps": 1, "output_type": "np"}
    evaluate_export(out, str(base), Generation(["red hair"], called, 0), ["psnr"], 2, lambda *_: None).keep(out)
    assert read_evaluation(out) is not None
    assert files_telling(out, *secrets) == []
    again = DiffusionPipeline.from_pretrained(out)
    assert again.tokenizer("red hair").input_ids == pipe.tokenizer("red hair").input_ids


def test_a_denoiser_alone_tells_no_path_either(base: Path, tmp_path: Path) -> None:
    unet = DiffusionPipeline.from_pretrained(base).unet
    assert str(unet.config["_name_or_path"]) == str(base / "unet")
    save_packed(unet, None, {}, tmp_path / "out")
    assert files_telling(tmp_path / "out", "secret place", str(Path.home())) == []


def test_names_on_the_hub_and_plain_file_names_stay(tmp_path: Path) -> None:
    kept = {
        "_name_or_path": "owner/model",
        "vocab_file": "vocab.json",
        "time_embedding_dim": None,
        "a": {"b": [1, "/x"]},
    }
    gone = {"tokenizer_file": "/opt/x/tokenizer.json", "nested": {"name_or_path": "./here"}}
    (tmp_path / "tokenizer").mkdir()
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    file.write_text(json.dumps(kept | gone))
    words = tmp_path / "tokenizer" / "vocab.json"
    words.write_text('{"my_file": "/home"}')
    forget_paths(tmp_path)
    assert json.loads(file.read_text()) == kept | {"nested": {}}
    assert words.read_text() == '{"my_file": "/home"}'
    file.write_text("{")
    with pytest.raises(Qua2SeDiMoError, match=r"tokenizer_config\.json was saved damaged"):
        forget_paths(tmp_path)


def test_what_a_model_is_called_in_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert public_name("digits-dit") == "digits-dit"
    assert public_name("owner/model") == "owner/model"
    assert public_name(str(tmp_path / "gone" / "model")) == "model"
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("owner/model") == "model"  # a folder here, whatever else has that name
    (tmp_path / "owner" / "model" / "model_index.json").write_text('{"_name_or_path": "someone/else"}')
    assert public_name("owner/model") == "someone/else"
    monkeypatch.chdir(tmp_path / "owner" / "model")
    assert public_name(".") == "someone/else"


def test_an_export_and_its_card_name_the_folder_and_the_study_knows_where_it_is(tmp_path: Path) -> None:
    """The base model's licence is found by the study; without one the name is all that is known."""
    model = tmp_path / "secret place" / "base"
    pipeline = small_pipeline()
    pipeline.save_pretrained(model)
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    loaded = type(pipeline).from_pretrained(model)
    study = Study.create(tmp_path / "secret place" / "study", small_settings(model=str(model)), loaded)
    configuration = Configuration({name: options[0] for name, options in study.workspace.space.options.items()})
    choice = choice_of(study, configuration)
    out, inside = tmp_path / "out", study.folder / "packed"
    for place in (out, inside):
        study.export(choice, place)
        write_card(card_data(place), place)
        assert files_telling(place, "secret place", str(Path.home())) == []
    assert json.loads((out / "qua2sedimo.json").read_text())["extra"]["model"] == "base"
    assert place_of_base(out, "base") == "base" and base_model("base") == BaseModel("base")
    assert place_of_base(out, "base", study.folder) == place_of_base(inside, "base") == str(model)
    assert place_of_base(inside, "another") == "another"
    assert card_data(inside).base == BaseModel("base", None, "mit") and card_data(out).base == BaseModel("base")
