"""Layers with a state: the gated delta rule (arXiv 2412.06464) and state spaces (arXiv 2405.21060).

    delta     s = decay * s;   u = beta * (v - s.T k);   s += outer(k, u);   out = s.T q
    scan      s = decay * s;   u = t * x;                s += outer(b, u);   out = s.T c + skip * x

A program has a sequence, a head, and BLOCK_V columns of the head's state, none of which needs
another. It begins with the state that the page before left, goes over the tokens of its page that
earlier steps computed, whose k, u and decay are in their rows, and then over the new ones. Both do
the same to the state, each operation rounded. So what a token is given depends on its position and
on the tokens before it, and not on how they were cut into steps; and the state is in registers from
the first token to the last.
"""

import triton
import triton.language as tl

from kvrt_kernels.triton.state_plan import COUNTS, TABLES

CHANGING = [*COUNTS, "border_columns"]
ADDRESSES = [*TABLES, "border_pages"]
"""Of both kernels, as `COUNTS` and `TABLES` are of all."""


@triton.jit
def _row(rows, pages, position, page_stride, PAGE_SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Where a token's row begins: `rows` is that of page 0, `pages` the sequence's."""
    page = tl.load(pages + position // PAGE_SIZE).to(tl.int64)
    return rows + page * page_stride + position % PAGE_SIZE * WIDTH


@triton.jit
def _put(state, k, u, gone):
    """The state after a token: what is left of what was there, and what is put in under its key."""
    return state * tl.exp(gone)[:, None] + k[:, None] * u[None, :]


@triton.jit
def _softplus(x):
    """``log(1 + exp(x))``, exact to a few roundings also where it is small."""
    power = tl.exp(tl.minimum(x, 20.0))
    more = 1 + power
    small = more == 1
    # What 1 + power lost to rounding is put right by the quotient (Kahan).
    near = tl.log(more) * (power / tl.where(small, 1.0, more - 1))
    return tl.where(x > 20, x, tl.where(small, power, near))


@triton.jit
def _unit(x):
    """Of length 1."""
    return x * tl.rsqrt(tl.sum(x * x, 0) + 1e-6)


@triton.jit
def _before(
    rows,
    states,
    pages,
    border_pages,
    page_stride,
    border_stride,
    position,
    first_key,
    first_value,
    first_gone,
    inside,
    c,
    v,
    keyed,
    valued,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    DECAYS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """A head's state before a token: float32 [BLOCK_K, BLOCK_V]. `inside` is where in a row of all
    states each of its numbers is."""
    state = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    begin = position // PAGE_SIZE * PAGE_SIZE
    if begin > 0:
        page = tl.load(border_pages + begin // PAGE_SIZE - 1).to(tl.int64)
        at = states + page * border_stride + inside
        state = tl.load(at, mask=keyed[:, None] & valued[None, :], other=0.0)
    for earlier in range(begin, position):
        row = _row(rows, pages, earlier, page_stride, PAGE_SIZE, WIDTH)
        k = tl.load(row + first_key + c, mask=keyed, other=0.0)
        u = tl.load(row + first_value + v, mask=valued, other=0.0)
        gone = tl.load(row + first_gone + c % DECAYS, mask=keyed, other=0.0)
        state = _put(state, k, u, gone)
    return state


@triton.jit
def _leave(
    row,
    states,
    border_pages,
    border_stride,
    position,
    state,
    k,
    u,
    gone,
    first_key,
    first_value,
    first_gone,
    inside,
    c,
    v,
    keyed,
    valued,
    keys,
    decays,
    PAGE_SIZE: tl.constexpr,
):
    """Keep what a token leaves; if it is a page's last, also the state after it.

    Of the key so many numbers are this program's to keep, and so many of the decay.
    """
    tl.store(row + first_key + c, k, mask=c < keys)
    tl.store(row + first_value + v, u, mask=valued)
    tl.store(row + first_gone + c, gone, mask=c < decays)
    if position % PAGE_SIZE == PAGE_SIZE - 1:
        page = tl.load(border_pages + position // PAGE_SIZE).to(tl.int64)
        at = states + page * border_stride + inside
        tl.store(at, state, mask=keyed[:, None] & valued[None, :])


@triton.jit(do_not_specialize=CHANGING, do_not_specialize_on_alignment=ADDRESSES)
def delta_kernel(
    qkv,
    gates,
    out,
    decay_log,
    decay_bias,
    kv,
    border_kv,
    starts,
    contexts,
    pages,
    border_pages,
    qkv_stride,
    gates_stride,
    out_stride,
    page_stride,
    border_stride,
    columns,
    border_columns,
    strength,
    scale,
    KEY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    DECAYS: tl.constexpr,
    TILED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """BLOCK_V columns of a value head of a sequence. Grid: [sequences, heads, columns].

    `kv` and `border_kv` are the addresses of the layer's first row of a token, and of states.
    """
    KEYS: tl.constexpr = KEY_HEADS * KEY
    VALUES: tl.constexpr = HEADS * VALUE
    WIDTH: tl.constexpr = KEYS + VALUES + HEADS * DECAYS
    EACH: tl.constexpr = HEADS // KEY_HEADS
    sequence, head = tl.program_id(0), tl.program_id(1)
    key_head = head % KEY_HEADS if TILED else head // EACH
    with_key = head // KEY_HEADS if TILED else head % EACH  # 0: it is the first
    keys = tl.where(with_key + tl.program_id(2) == 0, KEY, 0)
    decays = tl.where(tl.program_id(2) == 0, DECAYS, 0)
    c, v = tl.arange(0, BLOCK_K), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    keyed, valued = c < KEY, v < VALUE
    begin, end = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    context = tl.load(contexts + sequence)
    pages += sequence.to(tl.int64) * columns
    border_pages += sequence.to(tl.int64) * border_columns
    rows, states = kv.to(tl.pointer_type(tl.float32)), border_kv.to(tl.pointer_type(tl.float32))
    inside = (head * KEY + c)[:, None] * VALUE + v[None, :]
    key_at, value_at, gone_at = key_head * KEY, KEYS + head * VALUE, KEYS + VALUES + head * DECAYS
    rate = -tl.exp(tl.load(decay_log + head))
    bias = tl.load(decay_bias + head * DECAYS + c % DECAYS, mask=keyed, other=0.0)
    if begin < end:
        new = context - end + begin
        state = _before(
            rows, states, pages, border_pages, page_stride, border_stride, new,
            key_at, value_at, gone_at, inside, c, v, keyed, valued,
            KEY, VALUE, DECAYS, PAGE_SIZE, WIDTH, BLOCK_K, BLOCK_V,
        )  # fmt: skip
        for position in range(new, context):
            token = (begin + position - new).to(tl.int64)
            given, gate = qkv + token * qkv_stride, gates + token * gates_stride
            q = tl.load(given + key_at + c, mask=keyed, other=0.0).to(tl.float32)
            k = tl.load(given + KEYS + key_at + c, mask=keyed, other=0.0).to(tl.float32)
            value = tl.load(given + KEYS + value_at + v, mask=valued, other=0.0).to(tl.float32)
            a = tl.load(gate + HEADS + head * DECAYS + c % DECAYS, mask=keyed, other=0.0)
            q, k = _unit(q) * scale, _unit(k)
            gone = tl.where(keyed, rate * _softplus(a.to(tl.float32) + bias), 0.0)
            b = tl.load(gate + head).to(tl.float32)
            beta = strength / (1 + tl.exp(tl.minimum(-b, 88.0)))
            found = tl.sum(state * tl.exp(gone)[:, None] * k[:, None], 0)
            u = (value - found) * beta
            state = _put(state, k, u, gone)
            read = tl.sum(state * q[:, None], 0).to(out.dtype.element_ty)
            tl.store(out + token * out_stride + head * VALUE + v, read, mask=valued)
            row = _row(rows, pages, position, page_stride, PAGE_SIZE, WIDTH)
            _leave(
                row, states, border_pages, border_stride, position, state, k, u, gone,
                key_at, value_at, gone_at, inside, c, v, keyed, valued,
                keys, decays, PAGE_SIZE,
            )  # fmt: skip


@triton.jit(do_not_specialize=CHANGING, do_not_specialize_on_alignment=ADDRESSES)
def scan_kernel(
    xbc,
    times,
    out,
    decay_log,
    time_bias,
    skip,
    kv,
    border_kv,
    starts,
    contexts,
    pages,
    border_pages,
    xbc_stride,
    times_stride,
    out_stride,
    page_stride,
    border_stride,
    columns,
    border_columns,
    shortest,
    longest,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Likewise. KEY is the width of a b or c, VALUE of an x."""
    KEYS: tl.constexpr = GROUPS * KEY
    VALUES: tl.constexpr = HEADS * VALUE
    WIDTH: tl.constexpr = KEYS + VALUES + HEADS
    EACH: tl.constexpr = HEADS // GROUPS
    sequence, head = tl.program_id(0), tl.program_id(1)
    keys = tl.where(head % EACH + tl.program_id(2) == 0, KEY, 0)
    decays = tl.where(tl.program_id(2) == 0, 1, 0)
    c, v = tl.arange(0, BLOCK_K), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    keyed, valued = c < KEY, v < VALUE
    begin, end = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    context = tl.load(contexts + sequence)
    pages += sequence.to(tl.int64) * columns
    border_pages += sequence.to(tl.int64) * border_columns
    rows, states = kv.to(tl.pointer_type(tl.float32)), border_kv.to(tl.pointer_type(tl.float32))
    inside = (head * KEY + c)[:, None] * VALUE + v[None, :]
    key_at, value_at, gone_at = head // EACH * KEY, KEYS + head * VALUE, KEYS + VALUES + head
    rate, kept = -tl.exp(tl.load(decay_log + head)), tl.load(skip + head)
    bias = tl.load(time_bias + head)
    if begin < end:
        new = context - end + begin
        state = _before(
            rows, states, pages, border_pages, page_stride, border_stride, new,
            key_at, value_at, gone_at, inside, c, v, keyed, valued,
            KEY, VALUE, 1, PAGE_SIZE, WIDTH, BLOCK_K, BLOCK_V,
        )  # fmt: skip
        for position in range(new, context):
            token = (begin + position - new).to(tl.int64)
            given = xbc + token * xbc_stride
            x = tl.load(given + head * VALUE + v, mask=valued, other=0.0).to(tl.float32)
            k = tl.load(given + VALUES + key_at + c, mask=keyed, other=0.0).to(tl.float32)
            q = tl.load(given + VALUES + KEYS + key_at + c, mask=keyed, other=0.0).to(tl.float32)
            passed = _softplus(tl.load(times + token * times_stride + head).to(tl.float32) + bias)
            time = tl.minimum(tl.maximum(passed, shortest), longest)
            gone = tl.where(keyed, rate * time, 0.0)
            u = x * time
            state = _put(state, k, u, gone)
            read = (tl.sum(state * q[:, None], 0) + x * kept).to(out.dtype.element_ty)
            tl.store(out + token * out_stride + head * VALUE + v, read, mask=valued)
            row = _row(rows, pages, position, page_stride, PAGE_SIZE, WIDTH)
            _leave(
                row, states, border_pages, border_stride, position, state, k, u, gone,
                key_at, value_at, gone_at, inside, c, v, keyed, valued,
                keys, decays, PAGE_SIZE,
            )  # fmt: skip
