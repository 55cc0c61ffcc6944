"""The command line: what it prints, and that every mistake ends with one message and status 1."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.commands.conftest import FEW_STEPS
from tests.conftest import choice_of, small_pipeline

from qua2sedimo import Study, cli
from qua2sedimo.denoisers import Graph
from qua2sedimo.options import Option
from qua2sedimo.study.stages.export import save_configuration

COMMANDS = (
    "demo", "run", "init", "inspect", "metrics", "plan", "observe", "quantize", "measure", "records", "fit", "explain",
    "choose", "quick", "polish", "diff", "export", "search", "frontier", "generate", "evaluate", "recipe", "report",
    "figures", "card",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command: str) -> None:  # type: ignore[no-untyped-def]
    ended = run(command, "--help")
    assert ended.status == 0
    assert "Usage" in ended.out and "--help" in ended.out


def test_the_help_lists_every_command(run) -> None:  # type: ignore[no-untyped-def]
    ended = run("--help")
    assert ended.status == 0
    assert all(command in ended.out for command in COMMANDS)
    assert {c.name or c.callback.__name__ for c in cli.app.registered_commands} == set(COMMANDS)


def test_the_entry_point_reports_a_mistake_with_status_1_and_no_traceback(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("qua2sedimo")
    done = subprocess.run([program, "fit", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "study.yaml is missing" in done.stderr
    assert "qua2sedimo init" in done.stderr and "Traceback" not in done.stderr


# Mistakes ----------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_refused_and_leaves_no_folder(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for command in (("init", "no-such", tmp_path / "s"), ("run", "no-such", tmp_path / "s"), ("inspect", "no-such")):
        message = refused(*command)
        assert "unknown model 'no-such'" in message and "digits-dit" in message
    assert "unknown zoo model 'no-such'" in refused("demo", "--model", "no-such", "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_folder_that_is_no_pipeline_is_refused(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").mkdir()
    for command in (("init", tmp_path / "empty", tmp_path / "s"), ("inspect", tmp_path / "empty")):
        assert "model_index.json is missing" in refused(*command)
    assert "model_index.json is missing" in refused("generate", tmp_path / "empty", "--prompt", 1)


def test_it_says_its_version(run) -> None:  # type: ignore[no-untyped-def]
    assert run("--version").out == f"qua2sedimo {version('qua2sedimo')}\n"


@pytest.mark.parametrize("command", ["measure", "fit", "explain", "choose", "export", "report"])
def test_a_folder_that_is_no_study_is_refused(refused, tmp_path: Path, command: str) -> None:  # type: ignore[no-untyped-def]
    more = [tmp_path / "out"] if command == "export" else []
    for folder in (tmp_path, tmp_path / "missing"):
        message = refused(command, folder, *more)
        assert "is no study folder" in message and "qua2sedimo init" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("model: [", "is neither JSON nor YAML"),
        ("", "study.yaml"),
        ("- a\n- b\n", "study.yaml"),
        ("inputs: [1]\n", "model"),
        ("model: small\ncolour: red\n", "colour"),
        ("model: small\nimages: 1\n", "images"),
        ("model: small\nversion: 4\n", "version"),
    ],
)
def test_a_damaged_study_file_is_named_with_its_entry(refused, tmp_path: Path, content: str, expected: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "study.yaml").write_text(content)
    message = refused("measure", tmp_path)
    assert "study.yaml" in message and expected in message


def test_a_study_file_that_is_no_text_is_refused(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00\x00")
    assert "study.yaml" in refused("measure", tmp_path)


def test_stages_out_of_order_name_the_stage_to_run_first(refused, run, study: Path) -> None:  # type: ignore[no-untyped-def]
    assert "qua2sedimo measure" in refused("fit", study)
    for command in (("choose", study, "--bits", 4), ("export", study, study / "out", "--bits", 4)):
        assert "qua2sedimo fit" in refused(*command)
    expected = run("explain", study).out  # needs no measurement
    assert "Expected damage at about 3 bits by operation" in expected and "qua2sedimo measure" in expected
    assert all(len(line.rstrip()) <= 80 for line in expected.splitlines() if " %" in line)


def test_an_impossible_budget_is_refused_before_anything_is_measured(refused, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "s"
    few = ("--arguments", FEW_STEPS, "--options", "wide")
    message = refused("run", model, folder, "--prompt", 1, *few, "--bits", 1.5)
    assert "as small as 1.5 average bits" in message and "can be reached" in message
    assert not (folder / "records.db").exists() and not (folder / "bank").exists()


@pytest.mark.parametrize("arguments", ["{steps: 3}", "[1]", '"text"', "3"])
def test_pipeline_arguments_that_are_no_json_object_are_refused(  # type: ignore[no-untyped-def]
    refused, model: Path, tmp_path: Path, arguments: str
) -> None:
    assert "--arguments" in refused("init", model, tmp_path / "s", "--prompt", 1, "--arguments", arguments)
    assert "--arguments" in refused("generate", model, "--prompt", 1, "--arguments", arguments)
    assert not (tmp_path / "s").exists()


def test_a_pipeline_argument_that_the_pipeline_does_not_take_is_refused(refused, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = '{"num_steps": 3}'
    assert "num_steps" in refused(
        "run", model, tmp_path / "s", "--prompt", 1, "--arguments", arguments, "--configurations", 20
    )
    assert "num_steps" in refused("generate", model, "--prompt", 1, "--arguments", arguments)


def test_a_negative_seed_is_refused(run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = run("init", model, tmp_path / "s", "--prompt", 1, "--seed", -1)
    assert ended.status in (1, 2) and "seed" in ended.err and "Traceback" not in ended.err


def test_inputs_of_the_wrong_kind_are_refused(refused, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "class_labels must be int" in refused("init", model, tmp_path / "s", "--prompt", "a cat")
    assert "needs inputs" in refused("generate", model)


def test_a_wrong_component_is_refused_with_those_there_are(refused, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    message = refused("init", model, tmp_path / "s", "--prompt", 1, "--component", "unet")
    assert "no denoiser 'unet'" in message and "'transformer'" in message


def test_unknown_options_are_refused_and_can_be_corrected(refused, run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command = ("init", model, tmp_path / "s", "--prompt", 1, "--options")
    assert "uaq-9" in refused(*command, "uaq-9")
    assert run(*command, "uaq-4,uaq-3").status == 0


def test_other_settings_for_a_study_that_exists_are_refused(refused, study: Path, model: Path) -> None:  # type: ignore[no-untyped-def]
    assert "with other settings" in refused("init", model, study, "--prompt", 1)


@pytest.mark.parametrize(
    "arguments",
    [("choose", "x", "--bits", "0"), ("choose", "x", "--bits", "four"), ("measure", "x", "--configurations", "0"), ()],
)
def test_values_out_of_range_are_usage_errors(run, arguments: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    ended = run(*arguments)
    assert ended.status == 2
    assert "Usage" in ended.out + ended.err and "Traceback" not in ended.err


def test_brackets_in_names_are_printed_as_they_are(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "[bold]odd[/bold] [/x]"
    assert str(folder) in refused("fit", folder)


# What is printed ---------------------------------------------------------------------------------------------------


def test_progress_goes_to_stderr_so_that_json_and_tables_can_be_piped(run, study: Path) -> None:  # type: ignore[no-untyped-def]
    planned = run("plan", study, "--configurations", 4, "--json")
    assert json.loads(planned.out)["configurations"] == 4 and "trying configurations: 3 of 3" in planned.err
    measured = run("measure", study, "--configurations", 3)
    (line,) = measured.out.splitlines()
    assert line.startswith("3 configurations in ")
    said = measured.err.splitlines()
    assert "measuring configurations: 0 of 3" in said
    assert any(re.match(r"quantizing layers: \d+ of \d+, done in ", text) for text in said)
    assert any(re.match(r"measuring configurations: 3 of 3, done in .* · best psnr ", text) for text in said)
    assert json.loads(run("records", study, "--format", "json").out)[2]["number"] == 2


def test_inspect_lists_every_layer_with_its_sizes_for_people_and_machines(run, model: Path) -> None:  # type: ignore[no-untyped-def]
    command = ("inspect", model, "--arguments", '{"guidance_scale": 1.0}', "--options", "uaq-4,kmeans_a-3")
    content = json.loads(run(*command, "--json").out)
    layers = {layer["name"]: layer for layer in content["layers"]}
    assert content["denoiser"] == "DiTTransformer2DModel"
    assert layers["transformer_blocks.0.attn1.to_q"]["operation"] == "SA-Q"
    assert layers["transformer_blocks.0.attn1.to_q"]["bytes"] == {"uaq-4": 512 + 128, "kmeans_a-3": 384 + 16}
    assert ["transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"] in content["edges"]
    table = run(*command)
    assert table.status == 0
    assert f"{len(layers)} weight layers" in table.out and "average bits" in table.out
    shown = run(*command, "--layer", "*.ff.*").out
    assert "ff.net.2" in shown and "attn1.to_q" not in shown


def test_without_statistics_quantize_reads_the_files_and_loads_no_model(  # type: ignore[no-untyped-def]
    run, model: Path, tmp_path: Path, monkeypatch
) -> None:
    study = tmp_path / "study"
    options = ("--options", "uaq-2,kmeans_a-4", "--rounding", "nearest", "--arguments", FEW_STEPS)
    assert run("init", model, study, "--prompt", 1, *options).status == 0
    live = Study(study)
    _ = live.workspace.graph  # once, from a real call
    monkeypatch.setattr("qua2sedimo.study.model.load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    ended = run("quantize", study)
    assert ended.status == 0, ended.err
    assert "options of" in ended.out and "measure" in ended.out
    bank = Study(study).quantize()
    bank.verify()
    layer = bank.space.layers[0]
    assert torch.equal(Study(study).workspace.weight(layer), live.workspace.modules[layer].weight.detach().half())


def test_quantize_names_a_damaged_shard(run, refused, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    assert run("init", broken, tmp_path / "s", "--prompt", 1, "--arguments", FEW_STEPS).status == 0
    _ = Study(tmp_path / "s").workspace.graph
    (path,) = (broken / "transformer").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert path.name in refused("quantize", tmp_path / "s")


def test_inspect_draws_the_options_of_one_layer(run, refused, model: Path) -> None:  # type: ignore[no-untyped-def]
    layer = "transformer_blocks.0.attn1.to_q"
    ended = run("inspect", model, "--details", layer, "--options", "uaq-4,kmeans_a-3")
    assert ended.status == 0, ended.err
    assert layer in ended.out and "uaq-4" in ended.out and "kmeans_a-3" in ended.out
    assert "to_q" in refused("inspect", model, "--details", "transformer_blocks.0.attn1.to_x")


def test_inspect_needs_no_prompt(run, model: Path) -> None:  # type: ignore[no-untyped-def]
    ended = run("inspect", model)
    assert ended.status == 0, ended.err
    assert "weight layers" in ended.out


CONFIG = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
    "block_out_channels": [16, 32], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 24, "attention_head_dim": 8,
    "norm_num_groups": 8,
}  # fmt: skip


def test_inspect_of_a_configuration_shows_parts_without_weights(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    content = json.loads(run("inspect", config, "--json", "--graph", tmp_path / "graph.json").out)
    assert not content["weights_present"]
    assert content["totals"]["parts"] == sum(layer["span"] is not None for layer in content["layers"]) > 0
    assert Graph.load(tmp_path / "graph.json").layers.keys() == {layer["name"] for layer in content["layers"]}
    shown = run("inspect", config)
    assert "Architecture only" in shown.out, shown.err
    assert "conv1[0:32]" in shown.out


def test_inspect_draws_the_graph(run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("inspect", model, "--graph", tmp_path / "graph.svg").status == 0
    drawn = ElementTree.parse(tmp_path / "graph.svg").getroot()
    texts = " ".join(drawn.itertext())
    assert "block 0" in texts and "transformer_blocks.1.attn1.to_q" in texts
    ended = run("inspect", model, "--graph", tmp_path / "graph.png")
    assert ended.status == 1 and ".json or .svg" in ended.err


def test_inspect_takes_a_folder_of_a_denoiser_alone_with_its_ties(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    denoiser = small_pipeline().transformer
    first, second = (block.norm1.emb.timestep_embedder for block in denoiser.transformer_blocks)
    second.load_state_dict(first.state_dict())
    denoiser.save_pretrained(tmp_path / "dit")
    content = json.loads(run("inspect", tmp_path / "dit", "--json").out)
    assert content["weights_present"]
    assert sum(len(layer["copies"]) for layer in content["layers"]) == 2


def test_inspect_takes_inputs_from_a_file_and_refuses_what_fits_nothing(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config, inputs = tmp_path / "config.json", tmp_path / "inputs.json"
    config.write_text(json.dumps(CONFIG))
    call = {"sample": {"shape": [1, 3, 16, 16]}, "timestep": [5], "encoder_hidden_states": {"shape": [1, 4, 24]}}
    inputs.write_text(json.dumps(call))
    assert json.loads(run("inspect", config, "--inputs", inputs, "--json").out)["inputs"] == str(inputs)
    inputs.write_text(json.dumps({"sample": {"shape": [1, 3, 16, 16]}}))
    ended = run("inspect", config, "--inputs", inputs)
    assert ended.status == 1 and "timestep" in ended.err


def test_layers_can_be_kept_in_16_bits_from_the_command_line(run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command = ("init", model, tmp_path / "s", "--prompt", 0, "--arguments", '{"guidance_scale": 1.0}')
    assert run(*command, "--keep", "proj_out*", "--keep", "*attn1*").status == 0
    study = Study(tmp_path / "s")
    assert study.workspace.settings.keep == ["proj_out*", "*attn1*"]
    assert not any("attn1" in name or name.startswith("proj_out") for name in study.workspace.space.layers)


def test_the_best_measured_configuration_is_best_in_the_sense_of_the_metric(run, study: Path) -> None:  # type: ignore[no-untyped-def]
    path = study / "study.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "objective": "features", "metrics": ["features"]}))
    ended = run("measure", study, "--configurations", 20)
    assert ended.status == 0, ended.err
    values = [record.value("features") for record in Study(study).workspace.records.all("sample")]
    assert len(values) == 20
    assert f"best features {min(values):.2f}" in ended.out


def test_the_stages_one_by_one_end_in_pictures_of_the_packed_model(  # type: ignore[no-untyped-def]
    run, study: Path, model: Path, tmp_path: Path, quick_fit: None
) -> None:
    assert "20 configurations" in run("measure", study, "--configurations", 20).out
    fitted = run("fit", study)
    assert "rank correlation" in fitted.out, fitted.err
    explained = run("explain", study)
    assert "Cost of 4 → 3 bits by operation" in explained.out and "SA-Q" in explained.out
    assert all(len(line) <= 80 for line in explained.out.splitlines() if "●" in line)
    assert (study / "sensitivity.csv").read_text().startswith("layer,operation,block,")
    chosen = run("choose", study, "--bits", 4.5, "--candidates", 2)
    assert "measured" in chosen.out and chosen.status == 0
    out = tmp_path / "packed"
    exported = run("export", study, out, "--bits", 4.5, "--act-bits", 8)
    assert exported.status == 0, exported.err
    stored = json.loads((out / "qua2sedimo.json").read_text())
    assert stored["average_bits"] <= 4.5 and f"{stored['average_bits']:.4f}" in exported.out
    config = json.loads((out / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["act_bits"] == 8
    assert "came from a folder 'small' and does not say where it is" in run("evaluate", out, "--fresh-images", 2).err
    measured = run("evaluate", out, "--fresh-images", 2, "--base", model)
    assert measured.status == 0 and "psnr: " in measured.out, measured.err
    assert json.loads((out / "evaluation.json").read_text())["metrics"]["psnr"]["images"] == 2
    (out / "evaluation.json").unlink()
    (out / "evaluation.json").mkdir()  # as good as a folder that can only be read
    unkept = run("evaluate", out, "--fresh-images", 2, "--base", model)
    assert unkept.status == 0 and "psnr: " in unkept.out and "was not kept" in unkept.err
    one = tmp_path / "one" / "picture.PNG"
    assert f"1 picture: {one}" in run("generate", out, "--prompt", 3, "--out", one).out and one.is_file()
    assert "is one picture, and 2 were asked for" in run("generate", out, "--prompt", 3, "--count", 2, "--out", one).err
    painted = run("generate", out, "--prompt", 3, "--count", 2, "--out", tmp_path / "pictures")
    assert painted.status == 0, painted.err
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [p.name for p in pictures] == ["0000.png", "0001.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (256, 256)


def test_a_choice_of_uniform_options_is_written_as_a_recipe_and_another_refused(  # type: ignore[no-untyped-def]
    run, refused, study: Path, tmp_path: Path
) -> None:
    opened = Study(study)
    for name, text in (("plain", "uaq-4"), ("mixed", "kmeans_a-4")):
        configuration = opened.workspace.space.uniform(Option.parse(text))
        choice_of(opened, configuration).save(study / "choices" / f"{name}.json")
    written = run("recipe", study, tmp_path / "recipe.json", "--format", "torchao", "--choice", "plain")
    assert written.status == 0 and "quantize_(" in written.out, written.err
    content = json.loads((tmp_path / "recipe.json").read_text())
    assert content["_data"]["fqn_to_config"].keys() == set(opened.workspace.space.layers)
    assert "evenly spaced" in refused("recipe", study, tmp_path / "mixed.json", "--choice", "mixed")
    assert "conv" in refused("recipe", study, tmp_path / "x.txt", "--format", "gguf", "--choice", "plain")
    assert "unknown recipe format 'onnx'" in refused("recipe", study, tmp_path / "x.txt", "--format", "onnx")
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["recipe.json"]


def test_an_exported_model_is_called_as_it_was_measured(  # type: ignore[no-untyped-def]
    run, study: Path, tmp_path: Path
) -> None:
    """The study's pipeline arguments go with the export: naming them again changes nothing."""
    opened, out = Study(study), tmp_path / "packed"
    configuration = opened.workspace.space.uniform(opened.workspace.space.union[-1])
    save_configuration(opened.workspace, configuration, out, {"arguments": opened.workspace.settings.arguments})
    for name, more in (("plain", ()), ("named", ("--arguments", FEW_STEPS))):
        assert run("generate", out, "--prompt", 3, "--out", tmp_path / name, *more).status == 0
    assert "does not say which model" in run("evaluate", out, "--fresh-images", 2).err
    assert "is not an exported model" in run("evaluate", tmp_path).err
    plain, named = (np.asarray(Image.open(tmp_path / name / "0000.png")) for name in ("plain", "named"))
    assert np.array_equal(plain, named)


@pytest.mark.slow
def test_one_command_goes_from_a_pipeline_to_a_report(run, model: Path, tmp_path: Path, quick_fit: None) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "s"
    command = ("run", model, folder, "--prompt", 1, "--arguments", FEW_STEPS, "--bits", 4.5)
    command = (*command, "--configurations", 20, "--images", 2, "--options", "uaq-2,uaq-3,uaq-4,uaq-6")
    ended = run(*command)
    assert ended.status == 0, ended.err
    assert (folder / "report.html").is_file() and (folder / "packed-4.5" / "model_index.json").is_file()
    rows = json.loads((folder / "table.json").read_text())
    assert rows[-1]["name"] == "ours, 4.5 bits" and rows[-1]["average_bits"] <= 4.5
    assert f"= {rows[-1]['average_bits']:.4f} average bits" in ended.out
    assert run(*command).status == 0
    assert run("report", folder, "--bits", 4.5, "--fresh-images", 8).status == 0
    drawn = run("figures", folder, "--format", "svg")
    assert drawn.status == 0 and "yet" not in drawn.out, drawn.err
    assert len(list((folder / "figures").glob("*.svg"))) == 10 and (folder / "figures" / "pictures.svg").is_file()
    told = run("card", folder / "packed-4.5", "--license", "mit", "--base", "owner/base")
    assert told.status == 0 and "unknown" not in told.out and "no quality" not in told.out, told.err
    text = (folder / "packed-4.5" / "README.md").read_text()
    assert "license: mit" in text and "base_model: owner/base" in text and "| **ours, 4.5 bits** | " in text
    assert (folder / "packed-4.5" / "images" / "1-ours.png").is_file()
    assert "README.md exists" in run("card", folder / "packed-4.5").err


def test_figures_say_what_a_study_lacks_and_refuse_what_cannot_be_drawn(  # type: ignore[no-untyped-def]
    run, refused, study: Path, tmp_path: Path
) -> None:
    assert "nothing to draw" in refused("figures", study)
    assert not (study / "bank").exists()  # nothing is quantized to draw it
    Study(study).measure(3)
    drawn = run("figures", study, tmp_path / "out", "--format", "png")
    assert drawn.status == 0 and f"the pictures of both yet: qua2sedimo report {study}" in drawn.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "captions.md", "damage-by-step.png", "quality-against-bits.png"
    ]  # fmt: skip
    assert "figure format 'gif'" in refused("figures", study, "--format", "gif")
    assert "is the study itself" in refused("figures", study, "--compare", study)
    assert "study.yaml is missing" in refused("figures", study, "--compare", tmp_path)
    other = tmp_path / "other" / "study"
    shutil.copytree(study, other)
    both = run("figures", study, "--compare", other, "--format", "svg")
    assert both.status == 0, both.err
    assert "other/study" in (study / "figures-with-study" / "quality-against-bits.svg").read_text()
    path = other / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "objective": "features"}))
    (other / "records.db").unlink()
    Study(other).measure(3)
    assert "measures psnr" in refused("figures", study, "--compare", other)


# Records -----------------------------------------------------------------------------------------------------------


def test_records_prints_csv_and_writes_what_the_file_name_says(run, refused, study: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "does not exist" in refused("records", study)
    Study(study).measure(3)
    lines = run("records", study).out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("role,number,status,average_bits")
    ended = run("records", study, "--out", tmp_path / "all.json")
    assert ended.status == 0 and "3 records" in ended.out
    assert [one["number"] for one in json.loads((tmp_path / "all.json").read_text())] == [0, 1, 2]
    assert "unknown format 'xls'" in refused("records", study, "--format", "xls")
