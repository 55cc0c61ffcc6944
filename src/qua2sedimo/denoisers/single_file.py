"""Load a pipeline whose denoiser, and maybe all its models, are in one file, as they were first published.

diffusers converts the names of many models. Which pipeline it is, and its components' configurations, are not in the
file: they come from a pipeline folder, or from the hub, by the model that diffusers takes the file for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers.gguf_files import decoded_file
from qua2sedimo.denoisers.loading import DTYPES, Loading
from qua2sedimo.denoisers.stored import (
    FAILURES,
    as_loaded,
    components,
    denoisers_in,
    read_index,
    refuse_incomplete,
    refuse_reported,
    some,
    stored_dtype,
    without_advice,
)
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import Checkpoint, scratch_file
from qua2sedimo.system.memory import is_out_of_memory
from qua2sedimo.system.notes import note
from qua2sedimo.system.quiet import quiet

_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_COMPLETE = "Check that it is this model, and that the download is complete."
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")  # of a denoiser in a file
_AUTOENCODERS = ("first_stage_model.", "vae.")
_CONFIGURATIONS = ["*.json", "**/*.json", "*.txt", "**/*.txt", "**/*.model"]
_GIVE_CONFIG = (
    "Give its configuration with --config FOLDER (config: in study.yaml): a diffusers folder of the same "
    "architecture, such as that of the base model."
)


def load_file(path: Path, loading: Loading) -> Any:
    """The pipeline of one safetensors or GGUF file, on the CPU; what it lacks comes from the configuration's folder.

    Raises :class:`Qua2SeDiMoError` if it is another kind of file, is damaged, or its configuration is not known.
    """
    _refuse_others(path)
    if path.suffix.lower() != ".gguf":
        return _loaded(path, Checkpoint(path), loading)
    with decoded_file(path) as copy:
        return _loaded(path, Checkpoint(copy), loading)


def _loaded(path: Path, checkpoint: Checkpoint, loading: Loading) -> Any:
    """The pipeline of a file whose tensors are those of ``checkpoint``."""
    folder, origin = _configuration(path, checkpoint, loading)
    index = read_index(folder)
    names = denoisers_in(index)
    if not names:
        raise Qua2SeDiMoError(f"{folder}: its pipeline has no denoiser", _GIVE_CONFIG)
    dtype = stored_dtype(checkpoint.tensors) if loading.dtype == "auto" else DTYPES[loading.dtype]
    try:
        with quiet() as said, _without_scales(checkpoint, dtype) as file:
            models = _models(path, file, folder, index, _inside(checkpoint, index, names), dtype)
            pipeline = _pipeline(file, folder, origin, index, models, dtype)
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        if "meta tensor" in str(error):  # transformers' models are converted and moved by diffusers
            raise Qua2SeDiMoError(f"{path} lacks weights of a text encoder that it has", _COMPLETE) from error
        raise Qua2SeDiMoError(
            f"cannot load '{path}' with the configuration of '{origin}': {without_advice(error)}",
            "The folder must have the configuration of this very architecture, and every component that the file "
            f"lacks. {_GIVE_CONFIG}",
        ) from error
    if len(names) > 1:
        note(f"{path} is loaded as the pipeline's '{names[0]}'; {', '.join(names[1:])} from {origin}.")
    refuse_reported(str(path), said)
    for name, model in pipeline.components.items():
        if isinstance(model, nn.Module):
            refuse_incomplete(model, f"{path} ({name})", None)
    for message in said:
        if "were not used" in message:
            note(f"{path}: {' '.join(message.split())}")
    return pipeline


def _refuse_others(path: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` for a file that is in neither format, saying what it is."""
    ending = path.suffix.lower()
    if ending in (".safetensors", ".gguf"):
        return
    if ending in _PICKLES:
        raise Qua2SeDiMoError(
            f"{path} is a pickle, which may run any code when it is read",
            "Convert it to safetensors, or pass the diffusers folder of the model.",
        )
    raise Qua2SeDiMoError(
        f"{path} is a file, but no safetensors checkpoint",
        "Pass a pipeline folder (with model_index.json), a .safetensors or .gguf file, or, to `inspect`, a "
        "config.json.",
    )


def _configuration(path: Path, checkpoint: Checkpoint, loading: Loading) -> tuple[Path, str]:
    """(folder with the pipeline's configuration, the name it was asked for by)."""
    if loading.config is not None:
        folder = Path(loading.config).expanduser()
        if folder.is_dir():
            return folder, str(folder)
        if folder.is_file() or loading.config.count("/") != 1:
            raise Qua2SeDiMoError(f"config: {loading.config} is no folder and no hub name", _GIVE_CONFIG)
        return _from_hub(path, loading.config, loading), loading.config
    beside = path.absolute().parent  # of a symlink, not of what it points to
    if (beside / "config.json").is_file() and (beside.parent / "model_index.json").is_file():
        raise Qua2SeDiMoError(f"{path} belongs to the pipeline folder {beside.parent}", "Pass that folder.")
    name = _known_as(path, checkpoint)
    return _from_hub(path, name, loading), name


def _known_as(path: Path, checkpoint: Checkpoint) -> str:
    """The hub name of the model whose configuration diffusers takes for such a file; nothing is downloaded."""
    from diffusers.loaders import single_file_utils

    # Only names and shapes are looked at, so no tensor is read.
    shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in checkpoint.tensors.items()}
    try:
        kind = single_file_utils.infer_diffusers_model_type(shapes)
        found = single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    except (ValueError, KeyError, IndexError, RuntimeError, UnboundLocalError):
        kind, found = "v1", ""
    if kind == "v1" and not any(name.startswith("model.diffusion_model.") for name in shapes):
        raise Qua2SeDiMoError(f"{path}: by the names of its tensors it is no model that diffusers knows", _GIVE_CONFIG)
    return str(found)


def _from_hub(path: Path, name: str, loading: Loading) -> Path:
    """The folder with the configuration files of a hub name, from the cache or the network."""
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(name, revision=loading.revision, allow_patterns=_CONFIGURATIONS))
    except FAILURES as error:
        why = without_advice(error)
        raise Qua2SeDiMoError(
            f"{path} needs the configuration of '{name}' from the hub, which cannot be reached: {why}",
            f"Connect to the network. Or: {_GIVE_CONFIG}",
        ) from error


@contextmanager
def _without_scales(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[Path]:
    """The file itself or, if it has weights with scales, of which diffusers knows nothing, a copy that has none."""
    if not checkpoint.scaling.others:
        yield checkpoint.place
        return
    tensors = {
        name: checkpoint(name).to(dtype) if name in checkpoint.scaling.scales else checkpoint(name)
        for name in checkpoint.tensors
    }
    with scratch_file(tensors, "decoding it") as copy:
        del tensors
        yield copy


def _inside(checkpoint: Checkpoint, index: Mapping[str, Any], denoisers: Sequence[str]) -> list[str]:
    """Components to look for in a file: the first denoiser, and autoencoders if any tensor is named like theirs.

    Weights of other denoisers have the same names as those of the first.
    """
    others = [name for name in components(index) if name not in denoisers]
    return [denoisers[0], *(others if any(name.startswith(_AUTOENCODERS) for name in checkpoint.tensors) else ())]


def _models(
    path: Path, file: Path, folder: Path, index: Mapping[str, Any], names: Sequence[str], dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Component → model of diffusers that is in the file, of these components; the first must be there."""
    import diffusers

    kinds, found = components(index), {}
    for name in names:
        library, kind = kinds[name]
        cls = getattr(diffusers, kind, None) if library == "diffusers" else None
        loadable = _conversion(cls) is not None
        model = _model(path, file, cls, folder / name, dtype) if loadable else None
        if model is not None:
            found[name] = model
        elif name == names[0]:
            refused = f"{path} has no weights of {kind}"
            raise Qua2SeDiMoError(
                refused if loadable else f"diffusers cannot load {kind} from a single file",
                _GIVE_CONFIG if loadable else "Pass the diffusers folder of the model.",
            )
    return found


def _model(path: Path, file: Path, kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module | None:
    """A model of diffusers, each tensor in the dtype that `from_pretrained` would load it in; None if it is not there.

    diffusers' `from_single_file` casts everything, also what the class keeps in fp32, and does not say which weights
    are missing: only its conversion of names is used. ``path`` is the file that messages name.
    """
    from accelerate import init_empty_weights

    config = kind.load_config(str(folder))
    with _default_dtype(dtype), init_empty_weights():
        model: nn.Module = kind.from_config(config)
    own = model.state_dict()
    stored = _converted(path, file, kind, config, own)
    if not stored.keys() & own.keys():
        return None
    other = [name for name, tensor in stored.items() if name in own and tensor.shape != own[name].shape]
    if other:
        there, here = list(stored[other[0]].shape), list(own[other[0]].shape)
        raise Qua2SeDiMoError(
            f"{path} has '{other[0]}' of shape {there}; in the configuration of '{folder}' it is {here}", _GIVE_CONFIG
        )
    cast = as_loaded(kind, dtype)
    given = {name: cast(name, tensor).contiguous() for name, tensor in stored.items() if name in own}
    model.load_state_dict(given, strict=False, assign=True)
    unused = refuse_incomplete(model, str(path), stored)
    if unused:
        note(f"{path} has weights that {kind.__name__} does not use: {some(unused)}")
    return model.eval()


def _conversion(kind: Any) -> Callable[..., dict[str, torch.Tensor]] | None:
    """diffusers' conversion of a class's checkpoints to its own names; None if it loads none from a single file."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    names = [base.__name__ for base in getattr(kind, "__mro__", ()) if base.__name__ in SINGLE_FILE_LOADABLE_CLASSES]
    return SINGLE_FILE_LOADABLE_CLASSES[names[0]]["checkpoint_mapping_fn"] if names else None


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As in `from_pretrained`: what a class does not make in a certain dtype, it makes in this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _converted(path: Path, file: Path, kind: Any, config: Any, own: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a file under diffusers' names; ``own`` are those of the model.

    They may have them already, behind a prefix; what has more of the model's own is right. Raises
    :class:`Qua2SeDiMoError` if diffusers cannot convert them.
    """
    from safetensors.torch import load_file as tensors_of

    def fits(tensors: Mapping[str, torch.Tensor]) -> int:
        return len(tensors.keys() & own.keys())

    stored = tensors_of(str(file))
    behind = [{n.removeprefix(p): t for n, t in stored.items() if n.startswith(p)} for p in _PREFIXES]
    named = max(behind, key=fits)
    convert = _conversion(kind)
    assert convert is not None
    if fits(named) == len(own):
        return named
    try:
        converted = convert(config=config, checkpoint=stored)
    except FAILURES as error:
        if 2 * fits(named) > len(own):
            return named
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else without_advice(error)
        raise Qua2SeDiMoError(
            f"{path} cannot be converted to diffusers' names of {kind.__name__}: {lacks}",
            f"{_COMPLETE} {_GIVE_CONFIG}",
        ) from error
    return max(named, converted, key=fits)


def _pipeline(
    file: Path, folder: Path, origin: str, index: Mapping[str, Any], given: dict[str, nn.Module], dtype: torch.dtype
) -> Any:
    """The pipeline around the given models: other components from the file or, if it lacks one, from folder or hub."""
    import diffusers
    from diffusers import DiffusionPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    kind = getattr(diffusers, str(index["_class_name"]), None)
    if hasattr(kind, "from_single_file"):
        try:
            return kind.from_single_file(  # type: ignore[union-attr]
                str(file), config=str(folder), torch_dtype=dtype, local_files_only=True, **given
            )
        except SingleFileComponentError:
            pass  # the file has only some of the models
    whole = str(folder) if Path(origin).is_dir() else origin  # a hub name's folder has no weights yet
    made = DiffusionPipeline.from_pretrained(whole, torch_dtype=dtype, **given)
    # Where a pipeline's denoiser may be missing, as Wan's, diffusers loads the folder's in place of the given one.
    made.register_modules(**given)
    return made
