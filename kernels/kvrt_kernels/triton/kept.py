"""Reading keys and values as pages keep them: numbers, or codes with scales (`kvrt.spi.KVLayout`).

Codes in int8 and fp8 are read as codes: a token has one scale, by which sums of products may be
multiplied instead. In int4 each group of a head has its own scale, and codes are multiplied by it
when they are read.
"""

import triton
import triton.language as tl


@triton.jit
def first_key(kv, head, head_stride, KV: tl.constexpr, ALIGN: tl.constexpr):
    """The address of a head's first key, as a pointer.

    An address that was a number has lost what the compiler knew of it, and would be read one
    element at a time. ALIGN gives it back: the bytes that it is a multiple of.
    """
    keys = kv.to(tl.pointer_type(KV)) + head.to(tl.int64) * head_stride
    return tl.multiple_of(keys, ALIGN)


@triton.constexpr_function
def slot_stride(KV, HEAD_DIM):
    """Items from one slot of a block to the next."""
    return (HEAD_DIM + 31) // 32 * 16 if tl.uint8 == KV else HEAD_DIM


@triton.constexpr_function
def scaled_by_token(KV):
    """Whether a slot's codes have one scale."""
    return KV in (tl.int8, tl.float8e4nv)


@triton.jit
def vectors(x, token_mask, d, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr):
    """The elements d of the vectors that begin at x; zero beyond HEAD_DIM and where masked."""
    mask = None
    if MASKED and PADDED:
        mask = token_mask[:, None] & (d < HEAD_DIM)[None, :]
    elif MASKED:
        mask = token_mask[:, None]
    elif PADDED:
        mask = (d < HEAD_DIM)[None, :]
    at = x[:, None] + d[None, :]
    return tl.load(at, mask=mask, other=0.0) if MASKED or PADDED else tl.load(at)


@triton.jit
def scales_at(blocks, page, slot, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """Where the first scales of slots are, if codes are kept: `blocks` is that of page 0."""
    KV: tl.constexpr = blocks.dtype.element_ty
    at = blocks
    if scaled_by_token(KV):
        at = blocks + (page + PAGE_SIZE * slot_stride(KV, HEAD_DIM) + slot * 4)
        at = at.to(tl.pointer_type(tl.float32), bitcast=True)
    elif tl.uint8 == KV:
        at = blocks + (page + PAGE_SIZE * slot_stride(KV, HEAD_DIM) + slot * 2)
        at = at.to(tl.pointer_type(tl.bfloat16), bitcast=True)
    return at


@triton.jit
def per_token(at, token_mask, MASKED: tl.constexpr):
    """One number for each token; zero where masked."""
    return tl.load(at, mask=token_mask, other=0.0) if MASKED else tl.load(at)


@triton.jit
def elements(
    x,
    scales,
    token_mask,
    d,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The elements d of the slots that begin at x, zero beyond HEAD_DIM and where masked.

    In int8 and fp8 they are codes. `scales` are the places of the slots' first scales.
    """
    if x.dtype.element_ty == tl.uint8:
        byte = d // 32 * 16 + d % 16
        high = (d % 32 // 16 * 4).to(tl.uint8)
        mask = None
        if MASKED or PADDED:
            mask = (d < HEAD_DIM)[None, :]
            if MASKED:
                mask = mask & token_mask[:, None]
        at = x[:, None] + byte[None, :]
        kept = scales[:, None] + (d // 32 * PAGE_SIZE)[None, :]
        if MASKED or PADDED:
            codes = tl.load(at, mask=mask, other=0)
            scale = tl.load(kept, mask=mask, other=0.0)
        else:
            codes = tl.load(at)
            scale = tl.load(kept)
        numbers = ((codes >> high[None, :]) & 15).to(tl.float32) - 8.0
        numbers = numbers * scale.to(tl.float32)
    else:
        numbers = vectors(x, token_mask, d, HEAD_DIM, PADDED, MASKED)
    return numbers
