"""Image i is a function of (seed, i) and nothing else."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.utils.torch_utils import randn_tensor
from tests.conftest import randomized, small_unet
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.batches import fitting_batch, largest_fitting
from qua2sedimo.images.generate import (
    Generation,
    Generator,
    check_arguments,
    check_inputs,
    has_safety_checker,
    input_argument,
    without_safety_checker,
)
from qua2sedimo.images.prompts import PromptMemory

ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 1.0}


def generator(pipeline: Any, **changes: Any) -> Generator:
    return Generator(pipeline, Generation(**{"inputs": [0, 1, 2], "arguments": ARGUMENTS, "seed": 5, **changes}))


def test_images_are_floats_in_0_to_1_with_channels_last(pipeline: DiTPipeline) -> None:
    images = generator(pipeline)(0, 3)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1


def test_the_noise_of_an_image_depends_on_seed_and_index_only() -> None:
    def draw(seed: int, index: int, batch: int = 16) -> list[float]:
        return torch.randn(4, generator=Generation([], {}, seed, batch).noise(index)).tolist()

    assert draw(1, 2) == draw(1, 2) == draw(1, 2, batch=3)
    assert len({tuple(draw(seed, index)) for seed in range(4) for index in range(4)}) == 16


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_images_do_not_depend_on_the_batch_size(pipeline: DiTPipeline, batch: int) -> None:
    whole = generator(pipeline, batch=16)(0, 5)
    np.testing.assert_allclose(generator(pipeline, batch=batch)(0, 5), whole, atol=1e-5)


def test_images_do_not_depend_on_where_the_range_starts(pipeline: DiTPipeline) -> None:
    make = generator(pipeline)
    np.testing.assert_allclose(make(2, 5), make(0, 5)[2:], atol=1e-5)


def test_the_same_call_gives_the_same_bits_whatever_the_global_random_state(pipeline: DiTPipeline) -> None:
    make = generator(pipeline)
    torch.manual_seed(1)
    first = make(0, 3)
    torch.manual_seed(2)
    assert np.array_equal(first, make(0, 3))


def test_another_seed_gives_other_images_and_images_differ_among_themselves(pipeline: DiTPipeline) -> None:
    first = generator(pipeline, inputs=[4])(0, 3)
    other = generator(pipeline, inputs=[4], seed=6)(0, 3)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first[0] - first[1]).max() > 0.01


def test_inputs_are_taken_in_turn(pipeline: DiTPipeline) -> None:
    make = generator(pipeline)
    assert [make.generation.input(i) for i in range(5)] == [0, 1, 2, 0, 1]
    assert make.call_arguments(range(2, 5))["class_labels"] == [2, 0, 1]


def test_progress_counts_images_up_to_the_end(pipeline: DiTPipeline) -> None:
    seen: list[int] = []
    generator(pipeline, batch=2)(3, 8, seen.append)
    assert seen == [2, 4, 5]


class Painter:
    """Stands for a pipeline: paints what the test says."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __call__(self, generator: Any = None, output_type: str = "np", **_: Any) -> Painter:
        return self


def test_ruined_pictures_come_out_as_pictures() -> None:
    bad = np.full((1, 2, 2, 3), np.nan)
    bad[0, 0, 0] = [np.inf, -np.inf, 0.5]
    (image,) = Generator(Painter(bad), Generation([]))(0, 1)
    assert image[0, 0].tolist() == [1.0, 0.0, 0.5]
    assert image[1].tolist() == [[0.0] * 3] * 2


def test_pictures_without_a_channel_axis_get_one() -> None:
    assert Generator(Painter(np.zeros((1, 4, 5))), Generation([]))(0, 1).shape == (1, 4, 5, 1)


@pytest.fixture(scope="module")
def unconditional() -> DDPMPipeline:
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    made = DDPMPipeline(randomized(model, 0), DDPMScheduler(num_train_timesteps=10))
    made.set_progress_bar_config(disable=True)
    return made


def test_an_unconditional_pipeline_is_asked_for_a_number_of_pictures(unconditional: DDPMPipeline) -> None:
    make = Generator(unconditional, Generation([], {"num_inference_steps": 2}, batch=4))
    assert make.call_arguments(range(3))["batch_size"] == 3
    assert make(0, 3).shape == (3, 8, 8, 1)
    assert make(0, 1).shape == (1, 8, 8, 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_stochastic_sampling_too_is_fixed_for_each_image(unconditional: DDPMPipeline, batch: int) -> None:
    whole = Generator(unconditional, Generation([], {"num_inference_steps": 3}, batch=4))(0, 4)
    parts = Generator(unconditional, Generation([], {"num_inference_steps": 3}, batch=batch))(0, 4)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_the_kind_of_input_a_pipeline_takes_is_known(pipeline: DiTPipeline, unconditional: DDPMPipeline) -> None:
    assert input_argument(pipeline) == "class_labels"
    assert input_argument(unconditional) is None
    check_inputs(pipeline, [1, 2])
    check_inputs(unconditional, [])


def test_inputs_of_the_wrong_kind_are_refused(pipeline: DiTPipeline, unconditional: DDPMPipeline) -> None:
    with pytest.raises(Qua2SeDiMoError, match="input 'seven': class_labels must be int"):
        check_inputs(pipeline, [1, "seven"])
    with pytest.raises(Qua2SeDiMoError, match="DiTPipeline needs inputs: class_labels") as caught:
        check_inputs(pipeline, [])
    assert "--prompt" in str(caught.value.remedy)
    with pytest.raises(Qua2SeDiMoError, match="takes no prompts, got 1"):
        check_inputs(unconditional, ["a cat"])


def test_colour_images_of_another_process_are_those_of_this_one(tmp_path: Path) -> None:
    """Arrays that are not contiguous come out of safetensors scrambled."""
    from qua2sedimo import zoo
    from qua2sedimo.measuring.replay import replay

    entry = zoo.ENTRIES["avatars-pixart"]
    generation = Generation(list(entry.inputs), {**entry.arguments, "num_inference_steps": 2}, seed=3, batch=2)
    pipeline = zoo.load(entry.name)
    pipeline.set_progress_bar_config(disable=True)
    here = Generator(pipeline, generation)(5, 8)
    there, seconds = replay(entry.folder, generation, range(5, 8), tmp_path)
    np.testing.assert_allclose(there, here, atol=1e-5)
    assert seconds > 0


# Pipelines of other kinds ---------------------------------------------------------------------------------------


class Film(Painter):
    """Returns frames, as video pipelines do."""

    def __init__(self, frames: Any) -> None:
        self.frames = frames


def test_the_frames_of_a_film_stand_one_below_the_other() -> None:
    frames = np.random.default_rng(0).random((2, 3, 4, 5, 3))
    made = Generator(Film(frames), Generation([]))(0, 2)
    assert made.shape == (2, 12, 5, 3)
    np.testing.assert_allclose(made[1, 4:8], frames[1, 1], rtol=1e-6)


def test_a_pipeline_without_pictures_is_refused() -> None:
    class Prior(Painter):
        def __init__(self) -> None:
            pass

        def keys(self) -> list[str]:
            return ["image_embeds"]

    with pytest.raises(Qua2SeDiMoError, match="Prior returns image_embeds, no images"):
        Generator(Prior(), Generation([]))(0, 1)
    with pytest.raises(Qua2SeDiMoError, match="returns tensors"):
        Generator(Painter([torch.zeros(3, 4, 4)]), Generation([]))(0, 1)


def test_more_pictures_than_asked_for_are_refused_with_the_likely_cause() -> None:
    with pytest.raises(Qua2SeDiMoError, match="returned 4 images for 2 inputs") as caught:
        Generator(Painter(np.zeros((4, 2, 2, 3))), Generation([]))(0, 2)
    assert "num_images_per_prompt" in str(caught.value.remedy)


def test_pipelines_that_need_a_picture_or_take_no_noise_are_refused(pipeline: DiTPipeline) -> None:
    class FromPicture:
        def __call__(self, prompt: str, image: Any, generator: Any = None, output_type: str = "pil") -> None: ...

    class NoNoise:
        def __call__(self, prompt: str, output_type: str = "pil") -> None: ...

    check_arguments(pipeline, ARGUMENTS)
    check_arguments(FromPicture(), {"image": "a.png"})
    with pytest.raises(Qua2SeDiMoError, match="FromPicture requires 'image'"):
        check_arguments(FromPicture(), {})
    with pytest.raises(Qua2SeDiMoError, match="NoNoise takes no 'generator'"):
        check_arguments(NoNoise(), {})


def test_noise_from_the_global_generator_too_is_fixed_and_leaves_it_alone() -> None:
    class Careless:
        def __call__(self, generator: Any = None, output_type: str = "np", batch_size: int = 1) -> Painter:
            return Painter(torch.rand(batch_size, 2, 2, 3).numpy())

    make = Generator(Careless(), Generation([], {}, seed=3))
    torch.manual_seed(1)
    first, after = make(0, 2), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert np.array_equal(first, make(0, 2)) and not np.array_equal(first, make(2, 4))


def test_images_that_draw_from_the_global_generator_do_not_depend_on_the_batch(pipeline: DiTPipeline) -> None:
    """DiT's pipeline passes no generator to its scheduler."""
    pipeline.scheduler = DDPMScheduler(num_train_timesteps=50)
    arguments = {"num_inference_steps": 4, "guidance_scale": 1.0}
    whole = generator(pipeline, arguments=arguments, batch=1)(0, 5)
    for batch in (2, 5, 16):
        make = generator(pipeline, arguments=arguments, batch=batch)
        seen: list[int] = []
        np.testing.assert_allclose(make(0, 5, seen.append), whole, atol=1e-5)
        assert make.one_by_one and make.batch == 1 and seen == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(make(3, 5), whole[3:], atol=1e-5)


def test_an_ordinary_pipeline_is_called_once_a_batch(pipeline: DiTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    call = DiTPipeline.__call__

    def counted(self: DiTPipeline, class_labels: list[int], **arguments: Any) -> Any:
        sizes.append(len(class_labels))
        return call(self, class_labels, **arguments)

    monkeypatch.setattr(DiTPipeline, "__call__", functools.wraps(call)(counted))
    make = generator(pipeline, batch=2)
    make(0, 5)
    assert sizes == [2, 2, 1] and not make.one_by_one


class Sampling(DiffusionPipeline):
    """The loop that pipelines have in common, with or without passing the generators on to the scheduler."""

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, passes_on: bool) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.passes_on = passes_on

    @torch.no_grad()
    def __call__(self, generator: Any, batch_size: int = 1, output_type: str = "np") -> Painter:
        x = randn_tensor((batch_size, 1, 8, 8), generator=generator)
        self.scheduler.set_timesteps(4)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        more = {"generator": generator} if self.passes_on else {}
        for t in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            x = self.scheduler.step(self.unet(scaled, t.expand(len(x))).sample, t, x, **more).prev_sample
        return Painter(torch.tanh(x).permute(0, 2, 3, 1).numpy())


#: Beside the default settings: those with which a scheduler draws noise in its steps.
NOISY = {
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"},
    "EDMDPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": True},
}
#: Not for continuous pictures that one denoiser makes step by step from noise, or they need packages of their own.
OTHER = {
    "AmusedScheduler", "BlockRefinementScheduler", "CogVideoXDPMScheduler", "CosineDPMSolverMultistepScheduler",
    "DDPMWuerstchenScheduler", "DPMSolverSDEScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler",
    "HeliosDMDScheduler", "HeliosScheduler", "KarrasVeScheduler", "PiflowScheduler", "RFD4ProteinaScheduler",
    "RePaintScheduler", "SCMScheduler", "ScoreSdeVeScheduler", "VQDiffusionScheduler",
}  # fmt: skip


def schedulers() -> list[tuple[str, dict[str, Any]]]:
    names = sorted(
        name for name in dir(diffusers)
        if name.endswith("Scheduler") and not name.startswith("Flax") and name not in OTHER
    )  # fmt: skip
    return [(name, {}) for name in names] + [(name, NOISY[name]) for name in names if name in NOISY]


@pytest.mark.parametrize("passes_on", [True, False], ids=["generators", "none"])
@pytest.mark.parametrize(("name", "settings"), schedulers(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_batch_changes_no_image_whatever_the_scheduler(
    unconditional: DDPMPipeline, name: str, settings: dict[str, Any], passes_on: bool
) -> None:
    scheduler = getattr(diffusers, name)(**settings)
    if passes_on and "generator" not in inspect.signature(scheduler.step).parameters:
        pytest.skip("takes no generator")
    one, several = (
        Generator(Sampling(unconditional.unet, scheduler, passes_on), Generation([], {}, seed=3, batch=batch))(0, 3)
        for batch in (1, 3)
    )
    np.testing.assert_allclose(one, several, atol=1e-3)


# Memory ---------------------------------------------------------------------------------------------------------


class Crowded(Painter):
    """Holds so many images at once."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.seen = room, error, []

    def __call__(  # type: ignore[override]
        self, generator: Any = None, output_type: str = "np", batch_size: int = 1, num_inference_steps: int = 50
    ) -> Painter:
        self.seen.append((batch_size, num_inference_steps))
        if batch_size > self.room:
            raise self.error
        return Painter(np.zeros((batch_size, 2, 2, 3)))


class OneAtATime:
    """Takes a list of one prompt, and fails with several."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def __call__(self, prompt: object, generator: object, output_type: str, num_inference_steps: int = 2) -> Painter:
        self.seen.append(prompt)
        if isinstance(prompt, list) and len(prompt) > 1:
            raise RuntimeError("The size of tensor a (2) must match the size of tensor b (4)")
        return Painter(np.zeros((1, 2, 2, 3)))


def test_that_a_list_of_one_is_taken_does_not_say_that_several_are() -> None:
    generator = Generator(OneAtATime(), Generation(["a", "b", "c"], batch=4))
    assert len(generator(0, 1)) == 1 and not generator.one_by_one
    assert len(generator(0, 3)) == 3 and generator.one_by_one
    assert generator.pipeline.seen[-1] == "c"


class Broken:
    """Fails with lists, and with one image for another reason."""

    def __call__(self, prompt: object, generator: object, output_type: str, num_inference_steps: int = 2) -> Painter:
        raise TypeError("no lists") if isinstance(prompt, list) else ValueError("probabilities are nan")


def test_a_pipeline_that_fails_in_two_ways_tells_both() -> None:
    with pytest.raises(
        Qua2SeDiMoError, match=r"Broken failed when called: ValueError: probabilities are nan.*no lists"
    ):
        Generator(Broken(), Generation(["a", "b"], batch=2))(0, 2)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


_ROOMS = [(OUT_OF_MEMORY[0], 99, 16), (OUT_OF_MEMORY[0], 1, 1), *((error, 9, 8) for error in OUT_OF_MEMORY)]


@pytest.mark.parametrize(("error", "room", "found"), _ROOMS)
def test_the_batch_is_halved_until_it_fits(error: Exception, room: int, found: int) -> None:
    pipeline = Crowded(room, error)
    assert fitting_batch(pipeline, Generation([], {"num_inference_steps": 30}), 16) == found
    assert {steps for _, steps in pipeline.seen} == {2}
    assert [batch for batch, _ in pipeline.seen] == [16 >> i for i in range(len(pipeline.seen))]


def test_when_nothing_fits_it_is_said_and_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(Qua2SeDiMoError, match="not even one image fits"):
        fitting_batch(Crowded(0, OUT_OF_MEMORY[0]), Generation([]), 1)
    with pytest.raises(Qua2SeDiMoError, match="Crowded failed when called: RuntimeError: shapes do not match"):
        fitting_batch(Crowded(0, RuntimeError("shapes do not match")), Generation([]), 4)
    with pytest.raises(Qua2SeDiMoError, match="3 images at once do not fit") as caught:
        Generator(Crowded(2, OUT_OF_MEMORY[1]), Generation([]))(0, 3)
    assert "'batch:'" in str(caught.value.remedy)

    def refuse(batch: int) -> None:
        raise Qua2SeDiMoError("something else")

    with pytest.raises(Qua2SeDiMoError, match="something else"):
        largest_fitting(refuse, 4)


# Prompts --------------------------------------------------------------------------------------------------------


class Reader:
    """Stands for a pipeline with a text encoder."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_prompt(self, prompt: list[str], guided: bool = True, extra: Any = None) -> tuple[Any, ...]:
        self.calls += 1
        return torch.full((len(prompt), 2), float(len(prompt[0]))), None


def test_prompts_are_encoded_once_and_what_is_handed_out_may_be_overwritten() -> None:
    reader, memory = Reader(), PromptMemory()
    with memory.remembering(reader):
        first, _ = reader.encode_prompt(["red", "blue"])
        first.zero_()
        again, nothing = reader.encode_prompt(["red", "blue"])
        assert again.tolist() == [[3.0, 3.0]] * 2 and nothing is None and reader.calls == 1
        reader.encode_prompt(["red", "blue"], guided=False)
        reader.encode_prompt(["blue", "red"])
        assert reader.calls == 3
        for _ in range(2):  # what depends on tensors is computed each time
            reader.encode_prompt(["red"], extra=torch.zeros(1))
        assert reader.calls == 5
    reader.encode_prompt(["red", "blue"])
    assert reader.calls == 6 and "encode_prompt" not in vars(reader)


def test_what_depends_on_weights_that_change_is_encoded_each_time() -> None:
    class Layered(Reader):
        layer, other = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Linear(2, 2)

        def encode_prompt(self, prompt: list[str], guided: bool = True, extra: Any = None) -> tuple[Any, ...]:
            return self.layer[0](super().encode_prompt(prompt)[0]), None

    for changing, calls in (([Layered.other], 1), ([Layered.layer], 3)):
        reader, memory = Layered(), PromptMemory(changing)
        with memory.remembering(reader):
            for _ in range(3):
                reader.encode_prompt(["red"])
        assert reader.calls == calls


def test_beyond_its_bytes_prompts_are_encoded_each_time() -> None:
    reader, memory = Reader(), PromptMemory(most_bytes=8)
    with memory.remembering(reader):
        for _ in range(2):
            reader.encode_prompt(["a"])
            reader.encode_prompt(["bb"])
    assert reader.calls == 3


@pytest.mark.parametrize("model", ["avatars-pixart", "avatars-unet"])
def test_remembered_prompts_give_the_very_bits_of_encoded_ones(model: str) -> None:
    from qua2sedimo import zoo

    entry = zoo.ENTRIES[model]
    pipeline = zoo.load(model)
    pipeline.set_progress_bar_config(disable=True)
    make = Generator(pipeline, Generation(list(entry.inputs), {**entry.arguments, "num_inference_steps": 2}, batch=2))
    with torch.inference_mode():
        bare = np.concatenate([pipeline(**make.call_arguments(range(low, low + 2))).images for low in (0, 2)])
    assert np.array_equal(make(0, 4), bare)
    assert np.array_equal(make(0, 4), bare)


# Safety checkers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion, saved, whose safety checker takes offence at every picture."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(zoo.ENTRIES["avatars-unet"].folder / "tokenizer")
    tokenizer.model_max_length = 8
    size = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(**size, vocab_size=len(tokenizer), max_position_embeddings=8, eos_token_id=1)
    vision = CLIPVisionConfig(**size, image_size=16, patch_size=8)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    )
    checker.concept_embeds_weights.fill_(-9.0)  # thresholds that every picture is above
    checker.special_care_embeds_weights.fill_(-9.0)
    unet = small_unet()
    unet.register_to_config(in_channels=3)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(latent_channels=3, block_out_channels=(8,), norm_num_groups=8, sample_size=8),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    )
    folder = tmp_path_factory.mktemp("stable") / "diffusion"
    pipeline.save_pretrained(folder)
    return folder


def test_a_safety_checker_blacks_nothing_out_while_measuring_and_is_there_again_afterwards(
    stable_diffusion: Path, tmp_path: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 8, "width": 8}
    make = Generator(pipeline, Generation(["red hair", "smile"], arguments))
    judged = pipeline(**make.call_arguments([0, 1])).images
    assert (judged == 0).all()
    assert has_safety_checker(pipeline)
    assert (make(0, 2).std(axis=(1, 2, 3)) > 0).all()
    assert isinstance(pipeline.safety_checker, StableDiffusionSafetyChecker)
    pipeline.save_pretrained(tmp_path / "again")
    exported = StableDiffusionPipeline.from_pretrained(tmp_path / "again")
    assert isinstance(exported.safety_checker, StableDiffusionSafetyChecker)


def test_a_safety_checker_is_back_after_a_call_that_failed(pipeline: DiTPipeline) -> None:
    checker = object()
    vars(pipeline)["safety_checker"] = checker
    with pytest.raises(Qua2SeDiMoError), without_safety_checker(pipeline):
        assert not has_safety_checker(pipeline)
        raise Qua2SeDiMoError("out of memory")
    assert pipeline.safety_checker is checker
