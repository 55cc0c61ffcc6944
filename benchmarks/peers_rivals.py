"""Methods of other papers as benchmarks/peers.py compares them: on the layers that this package quantizes.

Those that observe a layer's inputs get the moments that ours get.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

import torch

from peers_tools import Saved, Setting, Subject, packed_bytes, units, written
from qua2sedimo.quantizers.moment import Moment
from qua2sedimo.statistics import RecordedCalls
from rivals import adaround, gptq, reconstruction, svdquant, uniform

_GROUP = 64

#: (weight [rows, n], a function that gives the moment of its inputs) → its quantized weight [rows, n].
Method = Callable[[torch.Tensor, Callable[[], Moment]], torch.Tensor]


def rivals() -> Iterable[Setting]:
    """Every method at every width."""
    for bits in (2, 3, 4, 5):
        rows = partial(_gptq, bits=bits, group=None, ordered=True)
        size = partial(uniform.packed_bytes, bits=bits)
        if bits in (3, 4):  # minutes each
            yield Setting("Q-Diffusion", f"{bits} bits, rows", partial(_reconstructed, bits=bits), True)
            learned = partial(_adaround, bits=bits)
            yield Setting("AdaRound", f"{bits} bits, rows", partial(_by_method, method=learned, size=size), True)
        yield Setting("GPTQ", f"{bits} bits, rows, ordered", partial(_by_method, method=rows, size=size))
        shrunk = partial(rows, shrunk=True)
        yield Setting("GPTQ", f"{bits} bits, rows, ordered, shrunk", partial(_by_method, method=shrunk, size=size))
        groups = partial(_gptq, bits=bits, group=_GROUP, ordered=False)
        size = partial(uniform.packed_bytes, bits=bits, group=_GROUP)
        yield Setting("GPTQ", f"{bits} bits, groups of {_GROUP}", partial(_by_method, method=groups, size=size), True)
    for bits in (2, 3, 4):
        for rank in (8, 16, 32):
            branch = partial(_svdquant, bits=bits, rank=rank)
            size = partial(svdquant.packed_bytes, bits=bits, rank=rank, group=_GROUP)
            name = f"{bits} bits beside rank {rank}"
            best = (bits, rank) == (4, 32)
            yield Setting("SVDQuant's branch", name, partial(_by_method, method=branch, size=size), best)


def _by_method(subject: Subject, method: Method, size: Callable[[int, int], int]) -> Saved:
    nbytes = 0
    subject.denoiser.float()  # exact, and what is written there stays so
    for name, weight in units(subject).items():
        rows = weight.detach().float().reshape(len(weight), -1)
        nbytes += size(*rows.shape)
        weight.copy_(method(rows, partial(subject.moment, name)).view(weight.shape))
    return Saved(packed_bytes(subject, nbytes), written(subject))


#: Calls of 16 images that blocks are reconstructed by, spread over the time steps.
_CALLS = 16


def _reconstructed(subject: Subject, bits: int) -> Saved:
    denoiser, inside = subject.denoiser.float().eval(), subject.study.workspace
    layers = {name: inside.graph.layers[name] for name in inside.candidates.layers}
    calls = subject.calls()
    chosen = list(calls.some(_CALLS)) if isinstance(calls, RecordedCalls) else list(calls)
    reconstruction.reconstruct(denoiser, copy.deepcopy(denoiser), chosen, layers, bits)
    nbytes = sum(uniform.packed_bytes(*rows.reshape(len(rows), -1).shape, bits) for rows in units(subject).values())
    return Saved(packed_bytes(subject, nbytes), written(subject))


def _gptq(
    weight: torch.Tensor,
    observed: Callable[[], Moment],
    bits: int,
    group: int | None,
    ordered: bool,
    shrunk: bool = False,
) -> torch.Tensor:
    """Moments of large layers have several blocks, which are taken each by itself."""
    moment = observed()
    return torch.cat(
        [
            gptq.gptq(weight[:, a:b], block, bits, group, ordered, shrunk)
            for (a, b), block in zip(moment.spans(), moment.blocks)
        ],
        dim=1,
    )


def _adaround(weight: torch.Tensor, observed: Callable[[], Moment], bits: int) -> torch.Tensor:
    return adaround.adaround(weight, torch.block_diag(*observed().blocks), bits)


def _svdquant(weight: torch.Tensor, _observed: Callable[[], Moment], bits: int, rank: int) -> torch.Tensor:
    return svdquant.svdquant(weight, bits, min(rank, *weight.shape), _GROUP)
