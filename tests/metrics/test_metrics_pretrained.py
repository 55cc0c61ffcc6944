"""CLIP and Inception: loaded from where the user says, computed as their authors say, refused clearly where absent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics import pretrained
from qua2sedimo.metrics.catalogue import check_measurable, metric
from qua2sedimo.metrics.pretrained import clip_judge, inception_features

PROMPTS = ["red hair", "blue background, smile", "dark glasses"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random CLIP whose words are those of the shipped text-to-image models."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(zoo.ENTRIES["avatars-unet"].folder / "tokenizer")
    tokenizer.model_max_length = 6
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(**size, vocab_size=len(tokenizer), max_position_embeddings=6, eos_token_id=1)
    vision = CLIPVisionConfig(**size, image_size=32, patch_size=8)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    square = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square)
    folder = tmp_path_factory.mktemp("clip") / "model"
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


def test_the_clip_score_is_the_cosine_of_what_the_model_embeds(clip: Path, pictures: np.ndarray) -> None:
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    expected = []
    with torch.inference_mode():
        for picture, prompt in zip(pictures, PROMPTS):
            given = processor(
                text=[prompt], images=[Image.fromarray(picture)], return_tensors="pt", padding=True, truncation=True
            )
            out = model(
                input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=given["pixel_values"]
            )
            expected.append(max(0.0, 100 * float((out.image_embeds * out.text_embeds).sum())))
    found = clip_judge(str(clip))(pictures, PROMPTS)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert len(set(np.round(found, 4))) > 1


def test_grey_pictures_and_long_prompts_have_a_clip_score(clip: Path, pictures: np.ndarray) -> None:
    judge = clip_judge(str(clip))
    long = ["short red hair, dark glasses, green top, pale skin, white background, smile"] * 3
    assert judge(pictures[..., :1], long).shape == (3,)


def test_a_folder_that_is_no_clip_model_is_refused(tmp_path: Path) -> None:
    name = f"clip_score:{tmp_path}"
    with pytest.raises(Qua2SeDiMoError, match=r"clip_score: CLIP model '.*' cannot be loaded: .*\n.*clip_score:FOLDER"):
        check_measurable([name], ["a prompt"], judge=False, real=False, latents=False)


def test_presence_says_what_is_missing_without_loading(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metric(f"clip_score:{clip}").here() == "yes"
    assert metric("clip_score:nobody/has-this").here() == "downloads"
    assert metric("psnr").here() == "yes"
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    assert metric("fid_inception").here() == "needs torch-fidelity"
    monkeypatch.setattr(pretrained, "find_spec", lambda name: name)
    assert metric("fid_inception:/nowhere.pth").here() == "file not found"


def test_without_torch_fidelity_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(
        Qua2SeDiMoError, match=r"torch-fidelity.*not installed\n.*pip install 'qua2sedimo\[inception\]'"
    ):
        metric("fid_inception:/never/loaded").load()


@pytest.fixture
def inception(tmp_path: Path) -> Callable[[], Path]:
    """Writes random weights of the very network that is loaded."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity, an extra, is not installed")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    def write() -> Path:
        class Unloaded(Network):  # its constructor always loads a file
            def load_state_dict(self, *_: Any, **__: Any) -> None: ...

        torch.manual_seed(0)
        torch.save({}, tmp_path / "empty.pth")
        state = Unloaded("inception-v3-compat", ["2048"], str(tmp_path / "empty.pth")).state_dict()
        torch.save(state, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def test_inception_is_loaded_from_a_file(inception: Callable[[], Path], pictures: np.ndarray) -> None:
    features = inception_features(str(inception()))
    found = features(pictures.astype(np.float32) / 255)
    assert found.shape == (3, 2048) and found.dtype == np.float64 and found.std(axis=0).max() > 0


def test_weights_with_code_in_them_are_not_run(inception: Callable[[], Path], tmp_path: Path) -> None:
    inception()
    torch.save({"hook": Path}, tmp_path / "evil.pth")
    with pytest.raises(Qua2SeDiMoError, match=r"Inception's weights cannot be loaded from .*evil\.pth"):
        metric(f"fid_inception:{tmp_path / 'evil.pth'}").load()
    with pytest.raises(Qua2SeDiMoError, match="cannot be loaded from /nowhere"):
        metric("fid_inception:/nowhere").load()


@pytest.mark.parametrize("online", [False, True])
def test_the_hub_is_asked_for_a_model_only_if_it_answers(monkeypatch: pytest.MonkeyPatch, online: bool) -> None:
    """Else each file is waited for, several times; what is in the cache serves without."""
    asked: list[bool] = []

    class Session:
        def head(self, url: str, **_: Any) -> None:
            if not online:
                raise OSError("Name or service not known")

    def absent(source: str, local_files_only: bool) -> None:
        asked.append(local_files_only)
        raise OSError(f"{source} is not there")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.CLIPModel.from_pretrained", absent)
    with pytest.raises(Qua2SeDiMoError, match="CLIP model 'nobody/nothing' cannot be loaded"):
        clip_judge("nobody/nothing")
    assert asked == [not online]
