"""The weight of a packed layer as others see it: it can be read; writes, which would be lost, are refused.

Programs that merge or start an adapter write to ``layer.weight`` or ``layer.weight.data``. The weight of a packed layer
is decoded at every access, so that such a write would have no effect. A plain module that is given the state of a
packed one would keep its own weights if ``strict=False``. Both are errors here.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError

_REMEDY = (
    "Call qua2sedimo.dequantize(model) first: merging, and starts that change the weights (PiSSA, OLoRA, …), need "
    "plain layers. If layers that are not packed were changed before this one, load the model again."
)


def refuse_writing(*_: object, **__: object) -> NoReturn:
    """Raise :class:`Qua2SeDiMoError`: a write to a computed weight would be lost."""
    raise Qua2SeDiMoError("the weight of a packed layer cannot be changed: it is decoded at every use", _REMEDY)


class ComputedWeight(torch.Tensor):
    """A decoded weight that refuses changes; results of operations on it are plain tensors.

    Once it is made a parameter (``nn.Parameter(layer.weight)``), it is an ordinary one.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _is_hf_initialized = True  # transformers draws what lacks this mark at random after it has loaded a model

    @property  # type: ignore[override]
    def data(self) -> torch.Tensor:
        return self

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not _is_parameter(self):
            refuse_writing()
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]

    def detach(self) -> torch.Tensor:
        return torch.Tensor.detach(self).as_subclass(ComputedWeight)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        plain = copy.deepcopy(torch.Tensor.detach(self), memo)
        return nn.Parameter(plain, self.requires_grad) if _is_parameter(self) else plain

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)


def _is_parameter(tensor: torch.Tensor) -> bool:
    return bool(getattr(tensor, "_is_param", False))


def _refusing(name: str) -> Callable[..., Any]:
    inherited = getattr(torch.Tensor, name)

    def write(self: ComputedWeight, *given: Any, **named: Any) -> Any:
        return inherited(self, *given, **named) if _is_parameter(self) else refuse_writing()

    write.__name__ = name
    return write


_HARMLESS = ("requires_grad_", "detach_", "share_memory_")  # they do not change values
_OPERATORS = (
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__ifloordiv__",
    "__imod__",
    "__ipow__",
    "__setitem__",
)
for _name in dir(torch.Tensor):
    if _name in _OPERATORS or (_name.endswith("_") and not _name.startswith("_") and _name not in _HARMLESS):
        setattr(ComputedWeight, _name, _refusing(_name))


class PackedMetadata(OrderedDict[str, Any]):
    """The metadata of a packed layer's state: a plain module that tries to load the state asks it, and is refused."""

    layer: str = ""

    def get(self, key: str, default: Any = None) -> Any:
        if key == "assign_to_params_buffers":  # torch asks for this before it copies parameters
            raise Qua2SeDiMoError(
                f"the state of a packed layer {self.layer!r} cannot be loaded into a plain module",
                "Take the state of a plain copy: qua2sedimo.dequantize(copy.deepcopy(model)), for instance "
                "ControlNetModel.from_unet(qua2sedimo.dequantize(copy.deepcopy(unet))).",
            )
        return super().get(key, default)

    def __reduce__(self) -> Any:
        return OrderedDict, (list(self.items()),)


class PackedState(OrderedDict[str, torch.Tensor]):
    """The state of a packed model, which also knows the weights that are not in it because they are packed.

    diffusers looks up ``state["LAYER.weight"]`` for the shape of a layer that an adapter changes. Such a weight is
    decoded when it is asked for; it is neither counted nor iterated over.
    """

    _metadata: Any
    layers: Mapping[str, nn.Module]

    @classmethod
    def of(cls, model: nn.Module, state: Any, kind: type[nn.Module]) -> PackedState:
        """``state`` of ``model``, whose packed layers are those of a ``kind``."""
        packed = cls(state)
        packed._metadata = getattr(state, "_metadata", None)
        named = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
        packed.layers = {name.removesuffix(".base_layer"): module for name, module in named.items()} | named
        return packed

    def __missing__(self, key: str) -> torch.Tensor:
        name, _, own = key.rpartition(".")
        if own != "weight" or name not in self.layers:
            raise KeyError(key)
        weight = self.layers[name].weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def __reduce__(self) -> Any:
        return OrderedDict, (), {"_metadata": self._metadata}, None, iter(self.items())
