"""The shipped denoisers: small, stock, reproducible, and true to what they were trained on."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, PixArtAlphaPipeline, StableDiffusionPipeline

from qua2sedimo import Qua2SeDiMoError, zoo
from qua2sedimo.denoisers import capture_call, denoiser_of, load_pipeline, trace, weight_modules
from qua2sedimo.images.generate import Generation, Generator, check_inputs
from qua2sedimo.images.pictures import to_uint8
from qua2sedimo.zoo.captions import ATTRIBUTES, parse, phrases, vocabulary
from qua2sedimo.zoo.pixels import PixelAutoencoder
from qua2sedimo.zoo.training import avatars, avatars_unet, flow_matching

NAMES = sorted(zoo.ENTRIES)
CLASSES = {
    "avatars-pixart": PixArtAlphaPipeline,
    "avatars-unet": StableDiffusionPipeline,
    "digits-dit": DiTPipeline,
}
AVATARS = [name for name in NAMES if zoo.ENTRIES[name].pictures == "avatars"]
_LIMIT = 16 * 2**20


def generator(name: str) -> Generator:
    entry = zoo.ENTRIES[name]
    return Generator(load_pipeline(name, device="cpu"), Generation(entry.inputs, entry.arguments, seed=3))


@pytest.fixture(scope="module", params=NAMES)
def painted(request: pytest.FixtureRequest) -> tuple[str, np.ndarray]:
    """A zoo name and its first pictures."""
    torch.set_num_threads(1)
    return request.param, generator(request.param)(0, 4)


def test_the_zoo_is_what_these_tests_cover() -> None:
    assert set(CLASSES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_a_stock_pipeline_that_takes_its_inputs(name: str) -> None:
    pipeline = zoo.load(name)
    assert type(pipeline) is CLASSES[name]
    check_inputs(pipeline, zoo.ENTRIES[name].inputs)
    assert all(torch.isfinite(p).all() for p in denoiser_of(pipeline)[1].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_loaded_in_the_asked_dtype_and_stored_in_16_bits(name: str) -> None:
    half = denoiser_of(zoo.load(name, torch.float16))[1]
    whole = denoiser_of(zoo.load(name))[1].state_dict()
    for key, weight in half.state_dict().items():
        assert weight.dtype == torch.float16 and whole[key].dtype == torch.float32
        assert torch.equal(weight.float(), whole[key])


@pytest.mark.parametrize("name", NAMES)
def test_no_file_is_larger_than_16_mib_or_a_pickle(name: str) -> None:
    entry = zoo.ENTRIES[name]
    files = [path for folder in (entry.folder, entry.set_folder) for path in folder.rglob("*") if path.is_file()]
    assert files and all(path.stat().st_size <= _LIMIT for path in files)
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".png"}


@pytest.mark.parametrize("name", NAMES)
def test_saved_configurations_name_no_path_of_the_machine_they_were_made_on(name: str) -> None:
    for path in zoo.ENTRIES[name].folder.rglob("*.json"):
        content = json.loads(path.read_text())
        origin = str(content.get("_name_or_path", "")) if isinstance(content, dict) else ""
        assert not origin.startswith(("/", "~", "."))
        assert not re.search(r'"/(home|root|tmp|work|Users)\b', path.read_text())


def test_pictures_are_reproducible_and_differ_among_themselves(painted: tuple[str, np.ndarray]) -> None:
    name, images = painted
    side = zoo.ENTRIES[name].side
    assert images.shape == (4, side, side, 3 if name in AVATARS else 1)
    again = generator(name)(0, 4)
    assert np.array_equal(images, again)
    assert all(np.abs(images[i] - images[j]).mean() > 0.01 for i in range(4) for j in range(i))


def test_pictures_look_like_the_real_ones_by_level_and_contrast(painted: tuple[str, np.ndarray]) -> None:
    name, images = painted
    real = zoo.reference_images(name) / 255
    assert abs(images.mean() - real.mean()) < 0.2
    assert 0.5 < images.std() / real.std() < 2


def test_the_judge_finds_in_the_pictures_what_was_asked_for(painted: tuple[str, np.ndarray]) -> None:
    name, images = painted
    inputs = list(zoo.ENTRIES[name].inputs[:4])
    judge = zoo.input_score(name)
    scores = judge(to_uint8(images), inputs)
    assert scores.shape == (4,) and ((scores >= 0) & (scores <= 1)).all()
    assert scores.mean() > 0.7
    assert scores.mean() > judge(to_uint8(images), inputs[::-1]).mean() + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_reference_pictures_are_500_different_ones_of_the_models_size(name: str) -> None:
    images, side = zoo.reference_images(name), zoo.ENTRIES[name].side
    assert images.dtype == np.uint8
    assert images.shape == (500, side, side, 3 if name in AVATARS else 1)
    assert len({image.tobytes() for image in images}) > 450
    assert images.std() > 20


def test_real_digits_are_judged_as_digits_of_all_ten_kinds() -> None:
    images = zoo.reference_images("digits-dit")
    judge = zoo.input_score("digits-dit")
    shares = np.array([judge(images, [digit] * len(images)).mean() for digit in range(10)])
    assert shares.sum() == pytest.approx(1)
    assert shares.min() > 0.03 and shares.max() < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_the_denoiser_is_in_its_graph(name: str) -> None:
    make = generator(name)
    _, denoiser = denoiser_of(make.pipeline)
    call = capture_call(make.pipeline, denoiser, make.call_arguments([0]))
    graph = trace(denoiser, call.args, call.kwargs)
    assert list(graph.layers) == list(weight_modules(denoiser)) and graph.bypassed == ()


def test_the_u_net_reads_its_skips_through_concatenations_and_its_text_through_cross_attention() -> None:
    make = generator("avatars-unet")
    _, denoiser = denoiser_of(make.pipeline)
    call = capture_call(make.pipeline, denoiser, make.call_arguments([0]))
    graph = trace(denoiser, call.args, call.kwargs)
    joined = {i for i, node in enumerate(graph.nodes) if node.kind == "concat"}
    readers = {node.name for node in graph.nodes if node.kind == "layer" and joined & set(node.inputs)}
    shortcuts = {f"up_blocks.{block}.resnets.{resnet}.conv_shortcut" for block in range(3) for resnet in range(2)}
    assert len(joined) == 6 and readers >= shortcuts
    text = {node.name for node in graph.nodes if node.sees == ("encoder_hidden_states",) and node.kind == "layer"}
    assert text and {graph.layers[name].operation for name in text} == {"CA-K", "CA-V"}


@pytest.mark.parametrize("function", [zoo.load, zoo.reference_images, zoo.input_score])
def test_an_unknown_name_is_refused_with_the_known_ones(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Qua2SeDiMoError, match="unknown zoo model 'cats'") as caught:
        function("cats")
    assert "digits-dit" in str(caught.value.remedy)


# Captions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AVATARS)
def test_prompts_use_words_of_the_vocabulary_only(name: str) -> None:
    prompts = zoo.ENTRIES[name].inputs
    assert len(set(prompts)) == len(prompts) == 48
    words = {word for prompt in prompts for word in re.split(r"[\s,]+", str(prompt))}
    assert words <= set(vocabulary())


@pytest.mark.parametrize("name", AVATARS)
def test_the_tokenizer_knows_every_word_and_no_prompt_is_cut_off(name: str) -> None:
    tokenizer = zoo.load(name).tokenizer
    unknown = tokenizer.unk_token_id
    assert all(unknown not in tokenizer(word)["input_ids"] for word in vocabulary())
    assert unknown in tokenizer("quantum")["input_ids"]
    longest = zoo.ENTRIES[name].arguments.get("max_sequence_length", tokenizer.model_max_length)
    assert all(len(tokenizer(prompt)["input_ids"]) <= longest for prompt in zoo.ENTRIES[name].inputs)


def test_what_is_said_of_a_picture_is_read_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        shown = {key: values[rng.integers(len(values))] for key, values in ATTRIBUTES.items()}
        said = {k: v for k, v in shown.items() if not (k in ("hat", "beard") and v == "none")}
        assert parse(", ".join(phrases(shown))) == said


@pytest.mark.parametrize("name", AVATARS)
def test_the_prompts_name_every_value_of_hair_glasses_top_and_background(name: str) -> None:
    named = [parse(str(prompt)) for prompt in zoo.ENTRIES[name].inputs]
    for key in ("hair length", "hair colour", "glasses", "top", "background", "skin", "mouth"):
        assert {found.get(key) for found in named} == set(ATTRIBUTES[key]), key


# The autoencoder that changes nothing ------------------------------------------------------------------------------


def test_pixels_pass_through_the_autoencoder_unchanged(tmp_path: Path) -> None:
    PixelAutoencoder(3).save_pretrained(tmp_path)
    autoencoder = PixelAutoencoder.from_pretrained(tmp_path)
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(autoencoder.encode(x).latent_dist.mode(), x)
    assert torch.equal(autoencoder.encode(x).latent_dist.sample(), x)
    assert torch.equal(autoencoder.decode(x).sample, x)
    assert torch.equal(autoencoder.decode(x, return_dict=False)[0], x)


# Training ----------------------------------------------------------------------------------------------------------


def trained_steps(folder: Path, minutes: float, stop_at: int | None = None) -> int:
    """Steps of 10 ms or more that fit the budget if the process stands still for a second at step ``stop_at``."""
    model, chance = torch.nn.Linear(2, 2), torch.Generator().manual_seed(0)
    taken = 0

    def loss() -> torch.Tensor:
        nonlocal taken
        taken += 1
        time.sleep(1.0 if taken == stop_at else 0.01)
        return model(torch.ones(1, 2)).square().mean()

    flow_matching.train(model, loss, chance, folder, flow_matching.Budget(minutes=minutes))
    return taken


def test_a_process_that_stood_still_trains_on_with_the_budget_it_had(tmp_path: Path) -> None:
    assert trained_steps(tmp_path, minutes=0.5 / 60, stop_at=5) > 10


def test_training_goes_on_from_its_checkpoint_until_the_budget_is_spent(tmp_path: Path) -> None:
    first = trained_steps(tmp_path, minutes=0.1 / 60)
    assert trained_steps(tmp_path, minutes=0.1 / 60) == 0
    second = trained_steps(tmp_path, minutes=0.2 / 60)
    assert second > 0
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == first + second


@pytest.mark.parametrize("kind", [avatars.TextToImage, avatars_unet.TextToImage])
def test_an_untrained_model_predicts_no_flow_at_all(kind: type) -> None:
    model = kind()
    tokens = torch.tensor([[5, 6, 1, *[0] * 21]])
    noisy = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    predicted = model(noisy, torch.tensor([500.0]), tokens, (tokens > 0).long())
    assert predicted.shape == noisy.shape and not predicted.any()
