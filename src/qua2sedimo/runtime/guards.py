"""Methods that a packed denoiser has of its own, because those of its class would fail on packed layers, or be wrong.

They are set on the object, not on its class: plain models of the same class are not touched, and
:func:`qua2sedimo.dequantize` removes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any, NoReturn

from diffusers.training_utils import EMAModel
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import indexed_files, weight_names
from qua2sedimo.runtime.computed import PackedState
from qua2sedimo.runtime.description import Qua2SeDiMoConfig, QuantMethod, described
from qua2sedimo.runtime.libraries import note_quantization, of_transformers, weights_name
from qua2sedimo.runtime.modules import QuantizedLayer
from qua2sedimo.runtime.replace import refuse_fusing
from qua2sedimo.runtime.shards import expected_tensors, of_adapters, other_tensors

_PLAIN_FIRST = "Call qua2sedimo.dequantize(model) first; the model then has the size of a plain one."
#: Starts of LoRA that subtract the adapter's first value from the weight.
_CHANGE_WEIGHTS = ("pissa", "corda", "olora", "loftq", "lora_ga")


def guard(model: nn.Module) -> None:
    """Give a packed denoiser its own methods, those of them that its class has; modifies ``model``."""
    _put(model, _OWN)
    for module in model.modules():
        if module is not model and any(isinstance(child, QuantizedLayer) for child in module.modules()):
            _put(module, {"fuse_projections": _refuse_fusing_projections})
    if not any(hook is _with_computed for hook in model._state_dict_hooks.values()):
        model._register_state_dict_hook(_with_computed)


def unguard(model: nn.Module) -> None:
    """Undo :func:`guard`."""
    for module in model.modules():
        for name in (*_OWN, "fuse_projections"):
            if isinstance(module.__dict__.get(name), MethodType):
                del module.__dict__[name]
    for key in [key for key, hook in model._state_dict_hooks.items() if hook is _with_computed]:
        del model._state_dict_hooks[key]


def guard_averages() -> None:
    """Let diffusers' EMAModel refuse to save the average of a packed model by itself.

    It would fill a plain, random model with parameters in the order of the packed one.
    """
    inherited = EMAModel.save_pretrained
    if getattr(inherited, "__module__", "") == __name__:
        return

    def save_pretrained(self: EMAModel, path: Any) -> None:
        written = (self.model_config or {}).get("quantization_config")  # a dictionary once the model has been saved
        known = written if isinstance(written, dict) else getattr(written, "__dict__", {})
        if known.get("quant_method") == QuantMethod.QUA2SEDIMO:
            raise Qua2SeDiMoError(
                "the average of a packed model cannot be saved by itself: diffusers would write it into a plain model",
                "Write it into the packed model and save that: ema.copy_to(model.parameters()), "
                "then model.save_pretrained.",
            )
        inherited(self, path)

    EMAModel.save_pretrained = save_pretrained


def description_to_save(model: Any) -> tuple[Qua2SeDiMoConfig, set[str]]:
    """What config.json says of a live packed denoiser, and the names of the tensors that are stored.

    Raises :class:`Qua2SeDiMoError` if it could not be loaded again: with an adapter attached, tensors that its config
    does not describe, or tensors that are not in memory.
    """
    state = model.state_dict()
    config, plain = described(model)
    expected = expected_tensors(plain, config.table())
    wrong = (expected.keys() - state.keys()) | other_tensors(plain, config.table(), state)
    adapters = of_adapters(wrong)
    if adapters:
        raise Qua2SeDiMoError(
            f"{type(model).__name__} has an adapter attached ('{adapters[0]}') and cannot be saved with it",
            "Save the adapter by itself (pipeline.save_lora_weights), unload it (pipeline.unload_lora_weights() or "
            "pipeline.unload_ip_adapter()), then save the model.",
        )
    if wrong:
        raise Qua2SeDiMoError(
            f"{type(model).__name__} is not what its config describes: '{min(wrong)}' was added, removed or replaced",
            "Undo the change, then save the model; or save a plain copy: qua2sedimo.dequantize(copy.deepcopy(model)).",
        )
    resized = next((name for name, (_, shape) in expected.items() if tuple(state[name].shape) != shape), None)
    if resized is not None:
        raise Qua2SeDiMoError(
            f"{type(model).__name__} is not what its config describes: '{resized}' has shape "
            f"{list(state[resized].shape)} instead of {list(expected[resized][1])}",
            "If a control LoRA widened the layer: pipeline.unload_lora_weights(reset_to_overwritten_params=True).",
        )
    absent = next((name for name in expected if state[name].is_meta), None)
    if absent is not None:
        raise Qua2SeDiMoError(
            f"{type(model).__name__} is offloaded: '{absent}' is not in memory",
            "Call pipeline.remove_all_hooks(), or load the model without offloading, then save it.",
        )
    return config, set(expected)


def _save_pretrained(model: Any, *given: Any, **named: Any) -> None:
    """As the class does it, after refusing what could not be loaded again."""
    inherited = type(model).save_pretrained
    texts = of_transformers(type(model))
    asked = inspect.signature(inherited).bind(model, *given, **named).arguments
    if not asked.get("safe_serialization", True) or asked.get("use_flashpack"):
        raise Qua2SeDiMoError(
            "packed models are stored as safetensors only", "Leave out safe_serialization=False and use_flashpack."
        )
    config, names = description_to_save(model)
    note_quantization(model, config)
    model.hf_quantizer.quantization_config = config
    if texts:  # by the names that the table of layers describes, not those of a model's first release
        inherited(model, *given, **{**named, "save_original_format": False})
    else:
        with model.hf_quantizer.saving(names):
            inherited(model, *given, **named)
    _forget_index(Path(asked["save_directory"]), asked.get("variant"), weights_name(model))


def _forget_index(folder: Path, variant: str | None, base: str) -> None:
    """Remove the index of shards that were replaced: diffusers removes the shards only, and would read it."""
    index, single = (folder / name for name in weight_names(variant, base))
    if index.is_file() and single.is_file() and not all(file.is_file() for file in indexed_files(index)):
        index.unlink()


def _fuse_qkv_projections(model: Any, *given: Any, **named: Any) -> Any:
    attentions = (m for m in model.modules() if m is not model and hasattr(type(m), "fuse_projections"))
    if any(isinstance(child, QuantizedLayer) for module in attentions for child in module.modules()):
        _refuse_fusing_projections(model)
    return type(model).fuse_qkv_projections(model, *given, **named)


def _refuse_fusing_projections(module: Any, *_: object, **__: object) -> NoReturn:
    raise Qua2SeDiMoError(
        f"{type(module).__name__}: packed projections of queries, keys and values cannot be fused into one layer",
        f"Use the model unfused: the packed layers are decoded one by one anyway. {_PLAIN_FIRST}",
    )


def _requires_grad(model: Any, requires_grad: bool = True) -> Any:
    """As in torch, without the packed tensors, which are whole numbers and cannot have gradients."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(requires_grad)
    return model


def _add_adapter(model: Any, adapter_config: Any, *given: Any, **named: Any) -> Any:
    start = str(getattr(adapter_config, "init_lora_weights", "")).lower()
    if start.startswith(_CHANGE_WEIGHTS):
        raise Qua2SeDiMoError(
            f"an adapter that starts by {start} changes the weights of its layers; packed weights cannot be changed",
            f"Choose init_lora_weights=True or 'gaussian'. {_PLAIN_FIRST}",
        )
    for name in getattr(adapter_config, "modules_to_save", None) or ():
        _refuse_training(model, name)
    with _unchanged_if_refused(model):
        return type(model).add_adapter(model, adapter_config, *given, **named)


def _refuse_training(model: nn.Module, ending: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if a module with this end of its name, to be trained as a whole, is packed."""
    for name, module in model.named_modules():
        packed = name.endswith(ending) and any(isinstance(child, QuantizedLayer) for child in module.modules())
        if packed:
            raise Qua2SeDiMoError(
                f"'{name}' is packed, and modules_to_save={ending!r} would train its weights",
                f"Add it to target_modules instead. {_PLAIN_FIRST}",
            )


def _load_lora_adapter(model: Any, *given: Any, **named: Any) -> Any:
    with _unchanged_if_refused(model):
        return type(model).load_lora_adapter(model, *given, **named)


@contextmanager
def _unchanged_if_refused(model: Any) -> Iterator[None]:
    """Take back the adapters that were attached in the body if a packed layer refuses one."""
    before = set(getattr(model, "peft_config", None) or {})
    try:
        yield
    except Qua2SeDiMoError:
        if not before:
            model.unload_lora()
            model._hf_peft_config_loaded = False
        for name in set(getattr(model, "peft_config", None) or {}) - before:
            model.delete_adapters(name)
        raise


def _with_computed(model: nn.Module, state: Any, prefix: str, metadata: Any) -> Any:
    """The state of the whole model; as a part of another one, torch ignores what a hook returns."""
    return state if prefix else PackedState.of(model, state, QuantizedLayer)


_OWN: dict[str, Callable[..., Any]] = {
    "save_pretrained": _save_pretrained,
    "fuse_lora": refuse_fusing,
    "fuse_qkv_projections": _fuse_qkv_projections,
    "requires_grad_": _requires_grad,
    "add_adapter": _add_adapter,
    "load_lora_adapter": _load_lora_adapter,
}


def _put(module: nn.Module, methods: dict[str, Callable[..., Any]]) -> None:
    """Set methods on an object, with the signature of those of its class; bound, so that copies have their own."""
    for name, method in methods.items():
        inherited = getattr(type(module), name, None)
        if inherited is not None:
            object.__setattr__(module, name, MethodType(_signed(method, inherited), module))


def _signed(method: Callable[..., Any], inherited: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inherited)
    def own(module: nn.Module, *given: Any, **named: Any) -> Any:
        return method(module, *given, **named)

    return own
