"""Write the averaged weights of the latest checkpoint as a pipeline folder.

python -m qua2sedimo.zoo.training.export avatars-pixart --work DIR [--out FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler, PixArtAlphaPipeline, StableDiffusionPipeline

from qua2sedimo.formats.files import write_via
from qua2sedimo.system.quiet import quiet
from qua2sedimo.zoo import ENTRIES
from qua2sedimo.zoo.pixels import PixelAutoencoder
from qua2sedimo.zoo.training import avatars, avatars_unet, digits
from qua2sedimo.zoo.training.captioned import tokenizer


def scheduler() -> DPMSolverMultistepScheduler:
    """Deterministic second-order sampling of the rectified flow."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, final_sigmas_type="zero"
    )


def averaged_weights(work: Path) -> dict[str, torch.Tensor]:
    """The moving average of the weights, from the checkpoint."""
    state: dict[str, torch.Tensor] = torch.load(work / "checkpoint.pt", weights_only=True)["averaged"]
    return {name: weight.clone() for name, weight in state.items()}  # tied weights become separate copies


def pixart_pipeline(work: Path) -> PixArtAlphaPipeline:
    """The text-to-image pipeline of the checkpoint."""
    model = avatars.TextToImage()
    model.load_state_dict(averaged_weights(work))
    return PixArtAlphaPipeline(
        tokenizer=tokenizer(),
        text_encoder=model.text_encoder,
        vae=PixelAutoencoder(3),
        transformer=model.transformer,
        scheduler=scheduler(),
    )


def unet_pipeline(work: Path) -> StableDiffusionPipeline:
    """The text-to-image pipeline of the checkpoint."""
    model = avatars_unet.TextToImage()
    model.load_state_dict(averaged_weights(work))
    solver = scheduler()
    solver.register_to_config(steps_offset=1)  # no effect here, but the pipeline warns about other values
    return StableDiffusionPipeline(
        tokenizer=tokenizer(),
        text_encoder=model.text_encoder,
        vae=PixelAutoencoder(3),
        unet=model.unet,
        scheduler=solver,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def digits_pipeline(work: Path) -> DiTPipeline:
    """The class-conditional pipeline of the checkpoint."""
    transformer = digits.denoiser(shared_time=False)
    transformer.load_state_dict(averaged_weights(work))
    names = {str(number): str(number) for number in range(10)}
    pipeline = DiTPipeline(transformer=transformer, vae=PixelAutoencoder(1), scheduler=scheduler(), id2label=names)
    pipeline.register_to_config(id2label=names)  # DiTPipeline accepts the names but does not save them
    return pipeline


PIPELINES: dict[str, Callable[[Path], Any]] = {
    "avatars-pixart": pixart_pipeline,
    "avatars-unet": unet_pipeline,
    "digits-dit": digits_pipeline,
}


def publish(fresh: Path, out: Path) -> None:
    """Copy each file from ``fresh`` to ``out`` atomically; other files in ``out`` are kept."""
    for file in filter(Path.is_file, fresh.rglob("*")):
        write_via(out / file.relative_to(fresh), partial(_copy, file))


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def main() -> None:
    """Export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(ENTRIES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    out = chosen.out or ENTRIES[chosen.name].folder
    with tempfile.TemporaryDirectory() as fresh, quiet():
        PIPELINES[chosen.name](chosen.work).to(torch.float16).save_pretrained(fresh)
        publish(Path(fresh), out)
    print(f"{out}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
