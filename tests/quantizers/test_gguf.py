"""GGUF's block types: raw blocks that the `gguf` package decodes to the same bits, and how well they are fitted."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quantizers.test_range import EXTREMES, extreme

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS, Moment, QuantizedWeight, dequantize_weight, packed_bytes, quantization_error
from qua2sedimo.quantizers.gguf import TYPES, BlockType, blocks_of, from_blocks
from qua2sedimo.quantizers.gguf.scales import packed_scales, unpacked_scales
from qua2sedimo.quantizers.grids import ScaledGrid

KINDS = [(method, bits, kind) for method, kinds in TYPES.items() for bits, kind in kinds.items()]
kinds = pytest.mark.parametrize(("method", "bits", "kind"), KINDS, ids=[kind.name for *_, kind in KINDS])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def second_moment(n: int, seed: int = 0, decay: float = 3.0) -> Moment:
    turned = torch.linalg.qr(normal(n, n, seed=seed + 1))[0]
    x = normal(4 * n, n, seed=seed) * torch.logspace(0, -decay / 2, n) @ turned
    return Moment((x.T @ x / (4 * n),))


def by_the_package(kind: BlockType, blocks: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.name])


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one.view(np.uint32) == other.view(np.uint32)).all())


def decoded(value: QuantizedWeight) -> np.ndarray:
    return METHODS[value.method].dequantized(value).numpy()


@kinds
def test_sizes_are_those_of_the_format(method: str, bits: int, kind: BlockType) -> None:
    assert (kind.block, kind.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
    assert packed_bytes(method, (6, 512), bits) == 6 * 512 // kind.block * kind.nbytes
    assert METHODS[method].overhead(bits) == 8 * kind.nbytes / kind.block - bits


@kinds
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_blocks_decode_to_the_same_bits_as_by_the_package(
    method: str, bits: int, kind: BlockType, data: st.DataObject
) -> None:
    """All that a file may hold: any codes, any integer scales, any finite halves, of either sign."""
    rows, per_row = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    blocks = chance.integers(0, 256, (rows, per_row * kind.nbytes), dtype=np.uint8)
    value = from_blocks(method, bits, torch.from_numpy(blocks), torch.float16)
    for name in ("d", "m", "dmin"):
        if name in value.parameters:
            finite = chance.normal(size=(rows, per_row)).astype(np.float16) * np.float16(
                10.0 ** data.draw(st.integers(-6, 3))
            )
            value.parameters[name] = torch.from_numpy(finite)
    blocks = blocks_of(value).numpy()
    assert same_bits(decoded(value), by_the_package(kind, blocks))
    again = from_blocks(method, bits, torch.from_numpy(blocks), torch.float16)
    assert torch.equal(again.codes, value.codes) and again.shape == value.shape == (rows, per_row * kind.block)
    for name, tensor in value.parameters.items():
        assert torch.equal(again.parameters[name].view(torch.int16), tensor.view(torch.int16))


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("observed", [False, True], ids=["nearest", "compensated"])
def test_what_is_quantized_decodes_to_the_same_bits_as_by_the_package(
    method: str, bits: int, kind: BlockType, dtype: torch.dtype, observed: bool
) -> None:
    weight = (normal(5, 512, seed=bits) * 0.03).to(dtype)
    weight[1, 40:300], weight[2], weight[3] = 0, 0, 0.02
    moment = second_moment(512) if observed else None
    (value,) = METHODS[method].quantize(weight, [bits], moment)
    assert value.nbytes == packed_bytes(method, (5, 512), bits) == blocks_of(value).numel()
    theirs = by_the_package(kind, blocks_of(value).numpy())
    assert same_bits(decoded(value), theirs)
    assert torch.equal(dequantize_weight(value), torch.from_numpy(theirs).to(dtype))


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K"])
@given(st.integers(0, 10**6))
def test_integer_scales_are_packed_and_unpacked(name: str, seed: int) -> None:
    kind = next(kind for *_, kind in KINDS if kind.name == name)
    assert kind.scales is not None
    low, high = kind.scales
    chance, shape = torch.Generator().manual_seed(seed), (2, 3, kind.block // kind.group)
    scales, minima = (torch.randint(low, high + 1, shape, generator=chance) for _ in range(2))
    packed = packed_scales(kind, scales, minima if kind.minimum else None)
    assert packed.shape == (2, 3, kind.scale_bytes // 2)
    found, least = unpacked_scales(kind, packed)
    assert torch.equal(found, scales.float())
    assert (least is None) != kind.minimum and (least is None or torch.equal(least, minima.float()))


@kinds
def test_nearest_is_at_least_as_good_as_the_package_where_it_has_an_encoder(
    method: str, bits: int, kind: BlockType
) -> None:
    weight = normal(64, 512, seed=5)
    error = float((torch.from_numpy(decoded(METHODS[method].quantize(weight, [bits])[0])) - weight).square().mean())
    try:
        blocks = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind.name])
    except NotImplementedError:  # K types: less than a uniform quantizer whose range is that of the group
        peak = {2: 2.9, 3: 2.9}.get(bits, 3.2)
        assert math.sqrt(error) < peak / (2**bits - 1) / math.sqrt(3) * 1.1
        return
    theirs = float((torch.from_numpy(by_the_package(kind, blocks)) - weight).square().mean())
    assert error < theirs


@kinds
@pytest.mark.parametrize("decay", [1.0, 3.0])
def test_compensated_rounding_has_less_output_error_in_every_row(
    method: str, bits: int, kind: BlockType, decay: float
) -> None:
    weight, moment = normal(32, 512, seed=1) * 0.02, second_moment(512, 3, decay)
    (nearest,), (made,) = (METHODS[method].quantize(weight, [bits], m) for m in (None, moment))
    before, after = (moment.errors(weight - dequantize_weight(v)) for v in (nearest, made))
    assert (after <= before).all()
    assert after.sum() < {1.0: 0.9, 3.0: 0.4}[decay] * before.sum()


def test_scales_follow_what_inputs_are_large() -> None:
    """Of inputs that differ in size and are independent, compensation does nothing: only scales can be better."""
    size = torch.exp(1.5 * normal(512, seed=2))
    weight, moment = normal(32, 512, seed=1), Moment((torch.diag(size.square()),))
    for method, bits in (("gguf_k", 2), ("gguf_k", 3), ("gguf_1", 4)):
        (nearest,), (made,) = (METHODS[method].quantize(weight, [bits], m) for m in (None, moment))
        before, after = (float(moment.errors(weight - dequantize_weight(v)).sum()) for v in (nearest, made))
        assert after < 0.7 * before


@kinds
def test_a_moment_in_blocks_that_cut_groups_is_used_too(method: str, bits: int, kind: BlockType) -> None:
    weight = normal(8, 256, seed=1)
    for cut in (128, 100):
        moment = Moment((*second_moment(cut).blocks, *second_moment(256 - cut, 7).blocks))
        (nearest,), (made,) = (METHODS[method].quantize(weight, [bits], m) for m in (None, moment))
        before, after = (moment.errors(weight - dequantize_weight(v)) for v in (nearest, made))
        assert (after <= before).all() and after.sum() < 0.8 * before.sum()


@kinds
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1e-5, 3e4, 1e30])
def test_weights_of_any_size_stay_finite(method: str, bits: int, kind: BlockType, size: float) -> None:
    weight = (normal(4, 256).clamp(-2, 2).double() * size).bfloat16()
    for moment in (None, second_moment(256)):
        (value,) = METHODS[method].quantize(weight, [bits], moment)
        assert all(torch.isfinite(t).all() for t in value.parameters.values() if t.is_floating_point())
        assert torch.isfinite(dequantize_weight(value)).all()


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("words", EXTREMES.values(), ids=EXTREMES)
def test_the_ends_of_the_range_come_back_finite_with_their_true_errors(
    method: str, bits: int, kind: BlockType, dtype: torch.dtype, words: str
) -> None:
    weight = extreme(words, dtype, (2, 256))
    true = weight.double()
    for moment in (None, second_moment(256)):
        (value,) = METHODS[method].quantize(weight, [bits], moment)
        back = dequantize_weight(value)
        assert torch.isfinite(back).all()
        relative = float((true - back.double()).square().sum() / true.square().sum())
        assert quantization_error(weight, back)[1] == pytest.approx(relative, rel=1e-4, abs=1e-18)


@kinds
def test_a_row_that_is_no_whole_blocks_is_refused(method: str, bits: int, kind: BlockType) -> None:
    assert METHODS[method].fits((3, 2 * kind.block), bits) and not METHODS[method].fits((3, kind.block + 16), bits)
    with pytest.raises(Qua2SeDiMoError, match=rf"weight \[3, {kind.block + 16}\] cannot be stored as {method}-{bits}"):
        METHODS[method].quantize(normal(3, kind.block + 16), [bits])


@kinds
def test_strips_are_rounded_by_kernels_as_by_tensor_operations(method: str, bits: int, kind: BlockType) -> None:
    weight, (factor,) = normal(12, 64, seed=3), second_moment(64, decay=0.0).factors
    scale = 0.05 * normal(12, 64 // kind.group, seed=4) + 3 / 2**bits
    offset = normal(12, 64 // kind.group, seed=5) if kind.minimum else torch.zeros_like(scale)
    scale[3] = 0
    grid = ScaledGrid(scale, offset, kind.values(weight.device), kind.group)
    columns = torch.arange(64).flip(0)
    both = [grid.rounded(weight.clone(), factor.feedback, columns, compiled) for compiled in (True, False)]
    same = (both[0][1] == both[1][1]).all(dim=1)
    assert same.sum() >= 11
    torch.testing.assert_close(both[0][0][same], both[1][0][same], rtol=1e-3, atol=1e-4)
    held = [torch.full((12, 64), 2 ** (bits - 1), dtype=torch.uint8) for _ in range(2)]
    pull = (weight - grid.values(held[0], columns)) @ factor.moment
    steps, counts = zip(
        *(grid.moved(pull.clone(), factor.moment, h, columns, compiled) for h, compiled in zip(held, (True, False)))
    )
    same = (held[0] == held[1]).all(dim=1)
    assert same.sum() >= 11 and counts[0] > 0
    torch.testing.assert_close(steps[0][same], steps[1][same])
