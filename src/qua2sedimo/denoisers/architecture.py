"""Build a denoiser from its config.json alone: parameters on the meta device, with shapes but no values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json
from qua2sedimo.system.quiet import quiet


def architecture(config: str | Path | Mapping[str, Any]) -> nn.Module:
    """The denoiser described by a ``config.json`` (path or content): parameters on the meta device, real buffers.

    Raises :class:`Qua2SeDiMoError` if the file is damaged or does not describe a diffusers model that can be built.
    """
    from accelerate import init_empty_weights

    content = read_json(Path(config)) if isinstance(config, (str, Path)) else dict(config)
    where = str(config) if isinstance(config, (str, Path)) else "the configuration"
    kind = _class_of(content, where)
    try:
        with quiet(), init_empty_weights(include_buffers=False):
            model = kind.from_config(content)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise Qua2SeDiMoError(
            f"{where}: cannot build {kind.__name__} from it: {error}", "Compare it with the published config.json."
        ) from error
    assert isinstance(model, nn.Module)
    return model.eval()


def load_denoiser(folder: Path) -> nn.Module:
    """The denoiser in a folder written by ``save_pretrained``; on the meta device if the folder has no weight files.

    Raises :class:`Qua2SeDiMoError` if it cannot be loaded.
    """
    config = folder / "config.json"
    if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        return architecture(config)
    kind = _class_of(read_json(config), str(config))
    try:
        with quiet():
            model = kind.from_pretrained(str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise Qua2SeDiMoError(f"cannot load the denoiser in {folder}: {error}", "Save or download it again.") from error
    assert isinstance(model, nn.Module)
    return model.eval()


def _class_of(content: Any, where: str) -> Any:
    """The diffusers class that a configuration names."""
    import diffusers

    name = content.get("_class_name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise Qua2SeDiMoError(
            f"{where} is not a diffusers model configuration: '_class_name' is missing",
            "Pass the config.json that ModelMixin.save_pretrained wrote, for example unet/config.json of a pipeline.",
        )
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "from_config")):
        raise Qua2SeDiMoError(
            f"{where}: diffusers {diffusers.__version__} has no model class '{name}'",
            "Update diffusers, or check '_class_name'.",
        )
    if content.get("quantization_config"):
        raise Qua2SeDiMoError(f"{where}: {name} is already quantized", "Pass the unquantized model's config.json.")
    return kind
