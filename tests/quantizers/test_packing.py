"""Packing is gapless and loses nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import pack, packed_length, unpack
from qua2sedimo.quantizers.packing import pack_words, unpack_words

WIDTHS = range(1, 9)


def bits_of(codes: list[int], bits: int) -> bytes:
    """The drawing of the docstring, one bit at a time."""
    stream = [code >> i & 1 for code in codes for i in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return bytes(sum(bit << i for i, bit in enumerate(stream[at : at + 8])) for at in range(0, len(stream), 8))


@pytest.mark.parametrize("bits", WIDTHS)
def test_unpack_inverts_pack_and_bytes_are_exact_at_every_length(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    for count in range(70):
        codes = torch.randint(0, 2**bits, (count,), generator=generator, dtype=torch.uint8)
        packed = pack(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.numel() == packed_length(count, bits) == (count * bits + 7) // 8
        assert torch.equal(unpack(packed, bits, count), codes)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(WIDTHS).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1)))))
def test_layout_is_lowest_bit_first_without_gaps(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    assert bytes(pack(torch.tensor(codes, dtype=torch.int64), bits).tolist()) == bits_of(codes, bits)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(WIDTHS).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1)))))
def test_tensor_operations_and_compiled_kernels_give_the_same_bytes_and_codes(case: tuple[int, list[int]]) -> None:
    bits, listed = case
    codes = torch.tensor(listed, dtype=torch.uint8)
    packed = pack_words(codes, bits)
    assert torch.equal(packed, pack(codes, bits))
    assert torch.equal(unpack_words(packed, bits, len(listed)), codes)


def test_pack_flattens_in_row_major_order_even_if_strided() -> None:
    codes = torch.arange(24).reshape(4, 6).remainder(8).T
    assert torch.equal(unpack(pack(codes, 3), 3, 24).reshape(6, 4), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("offset", [0, -1])
def test_codes_that_do_not_fit_are_refused(bits: int, offset: int) -> None:
    outside = -1 if offset else 2**bits
    with pytest.raises(Qua2SeDiMoError, match=f"0 to {2**bits - 1} for {bits} bits"):
        pack(torch.tensor([0, outside, 1]), bits)


@pytest.mark.parametrize("bits", [-1, 0, 9])
def test_widths_outside_1_to_8_are_refused(bits: int) -> None:
    with pytest.raises(Qua2SeDiMoError, match="1 to 8"):
        pack(torch.zeros(8, dtype=torch.uint8), bits)
    with pytest.raises(Qua2SeDiMoError, match="1 to 8"):
        unpack(torch.zeros(8, dtype=torch.uint8), bits, 8)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_byte_too_many_or_too_few_is_refused(bits: int) -> None:
    packed = pack(torch.zeros(13, dtype=torch.uint8), bits)
    for wrong in (packed[:-1], torch.cat([packed, packed[:1]]), packed.to(torch.int16)):
        with pytest.raises(Qua2SeDiMoError, match=rf"expected uint8 \[{packed.numel()}\]"):
            unpack(wrong, bits, 13)


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_does_not_share_memory_with_its_input(bits: int) -> None:
    codes = torch.ones(8, dtype=torch.uint8)
    packed = pack(codes, bits)
    codes.zero_()
    back = unpack(packed, bits, 8)
    packed.zero_()
    assert back.eq(1).all()
