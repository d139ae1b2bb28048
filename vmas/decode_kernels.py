"""Inner loops of the CPU decoding engine (`vmas.decode_cpu`), compiled by numba.

Every matrix is stored in panels of 16 outputs, [N/16, in, 16], so that one inner loop serves all uses: linear
layers (weights as panels), attention scores (16 cached keys as a panel) and the weighted sum of values
(16 channels as a panel). The loop keeps its sums in registers, reads each panel in order (the memory's speed)
and adds the products of one output in the order of the inputs, whatever the number of rows: so the result of a row
does not depend on how many rows are computed beside it.

The loop is written in LLVM's vector types, because numba does not keep a block of sums in registers by itself;
LLVM turns it into the machine's own vectors (AVX2, AVX-512, NEON).
"""

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from vmas import compiled, paths

intrinsic: Any = numba_intrinsic  # its own annotation does not know that the first argument is left out
f32: Any = numba.float32
i32: Any = numba.int32
_config: Any = numba.config
_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
LANES = 16
_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VEC, _BITS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_UNROLL = 4
_AHEAD = 2048  # bytes between the loop and the prefetch of its panel


def cached(**options):
    """`numba.njit` without the GIL, its machine code kept in the project's cache folder.

    `signatures` fixes the argument types; without it numba compiles anew for every literal number passed.
    The folder is set for this decorator only: other packages keep their own. Its name holds a hash of this file,
    because numba notices changes in the file of a function, but not in the file of what that function calls.
    """

    def decorate(function):
        signatures = options.pop("signatures", None)
        before = _config.CACHE_DIR
        _config.CACHE_DIR = str(paths.cache() / "numba" / _VERSION)
        try:
            with compiled.lock() if signatures else nullcontext():
                return njit(signatures, nogil=True, cache=True, error_model="numpy", **options)(function)
        finally:
            _config.CACHE_DIR = before

    return decorate


def _pointer(context, builder, array_type, array, offset):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [offset])


def _product(rows: int, panels: int):
    """Intrinsic: y[r, 16p+j] = Σ_i x[r,i]·w[p,i,j] (+ y when `add`) for `rows` rows and `panels` panels.

    Arguments are flat arrays with an offset and a stride (of rows of x and y, of panels of w), all in elements;
    the inner length n; and `add`. w is float32, or uint16 holding bfloat16.
    """

    @intrinsic
    def product(typing, x, x_at, x_row, w, w_at, w_panel, y, y_at, y_row, n, add):
        i64 = types.int64
        signature = types.void(x, i64, i64, w, i64, i64, y, i64, i64, i64, types.boolean)
        half = w.dtype == types.uint16

        def codegen(context, b, sig, args):
            x, x_at, x_row, w, w_at, w_panel, y, y_at, y_row, n, add = args
            at_x, at_w, at_y = (
                _pointer(context, b, sig.args[i], a, o) for i, a, o in ((0, x, x_at), (3, w, w_at), (6, y, y_at))
            )
            function = _product_function(b.module, rows, panels, half)
            b.call(function, [at_x, x_row, at_w, w_panel, at_y, y_row, n, b.icmp_signed("!=", add, add.type(0))])
            return context.get_dummy_value()

        return signature, codegen

    return product


def _product_function(module: ir.Module, rows: int, panels: int, half: bool) -> ir.Function:
    """The loop of `_product` as a function of its own in `module`: inlined everywhere it would compile for minutes."""
    name = f"vmas_product_{rows}_{panels}_{'bf16' if half else 'f32'}"
    if name in module.globals:
        return module.globals[name]
    floats, weights = _F32.as_pointer(), (_I16 if half else _F32).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [floats, _I64, weights, _I64, floats, _I64, _I64, ir.IntType(1)])
    function = ir.Function(module, kind, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    at_x, x_row, at_w, w_panel, at_y, y_row, n, add = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    xs = [b.gep(at_x, [b.mul(x_row, _I64(r))]) for r in range(rows)]
    ws = [b.gep(at_w, [b.mul(w_panel, _I64(p))]) for p in range(panels)]
    fma = cgutils.get_or_insert_function(module, ir.FunctionType(_VEC, [_VEC] * 3), f"llvm.fma.v{LANES}f32")
    undefined, everywhere = ir.Constant(_VEC, ir.Undefined), ir.Constant(_BITS, [0] * LANES)

    def load_weight(q):
        if not half:
            return b.load(b.bitcast(q, _VEC.as_pointer()), align=4)
        bits = b.load(b.bitcast(q, ir.VectorType(_I16, LANES).as_pointer()), align=2)
        return b.bitcast(b.shl(b.zext(bits, _BITS), ir.Constant(_BITS, [16] * LANES)), _VEC)

    def terms(i, sums, count):
        """Add the products of inputs i … i+count-1 to the sums."""
        for j in range(count):
            at = b.add(i, _I64(j))
            given = [b.insert_element(undefined, b.load(b.gep(row, [at])), _I32(0)) for row in xs]
            given = [b.shuffle_vector(one, undefined, everywhere) for one in given]
            for p in range(panels):
                q = b.gep(ws[p], [b.mul(at, _I64(LANES))])
                weight = load_weight(q)
                if not half or j % 2 == 0:  # one prefetch per line of 64 bytes
                    _prefetch(b, q, _AHEAD // (2 if half else 4))
                for r in range(rows):
                    sums[r][p] = b.call(fma, [given[r], weight, sums[r][p]])
        return sums

    def loop(start, stop, sums, count):
        """for i in range(start, stop, count): sums = terms(i, sums, count)"""
        before = b.block
        head, inside, after = (b.append_basic_block(s) for s in ("head", "inside", "after"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(_I64)
        i.add_incoming(start, before)
        here = [[b.phi(_VEC) for _ in range(panels)] for _ in range(rows)]
        b.cbranch(b.icmp_signed("<", i, stop), inside, after)
        b.position_at_end(inside)
        new = terms(i, [list(row) for row in here], count)
        i.add_incoming(b.add(i, _I64(count)), inside)
        b.branch(head)
        for r in range(rows):
            for p in range(panels):
                here[r][p].add_incoming(sums[r][p], before)
                here[r][p].add_incoming(new[r][p], inside)
        b.position_at_end(after)
        return here

    sums = [[ir.Constant(_VEC, [0.0] * LANES)] * panels for _ in range(rows)]
    body = b.sub(n, b.and_(n, _I64(_UNROLL - 1)))
    sums = loop(_I64(0), body, sums, _UNROLL)
    sums = loop(body, n, sums, 1)
    for r in range(rows):
        row = b.gep(at_y, [b.mul(y_row, _I64(r))])
        for p in range(panels):
            q = b.bitcast(b.gep(row, [_I64(p * LANES)]), _VEC.as_pointer())
            total = b.fadd(sums[r][p], b.load(q, align=4))
            b.store(b.select(add, total, sums[r][p]), q, align=4)
    b.ret_void()
    return function


def _prefetch(b, pointer, elements: int):
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    read, keep, data = _I32(0), _I32(3), _I32(1)
    b.call(function, [b.bitcast(b.gep(pointer, [_I64(elements)]), byte), read, keep, data])


@intrinsic
def atomic_add(typing, counters, index, value):
    """counters[index] += value as one indivisible step; returns the value before (int64)."""

    def codegen(context, b, sig, args):
        return b.atomic_rmw("add", _pointer(context, b, sig.args[0], args[0], args[1]), args[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), codegen


@intrinsic
def yield_processor(typing):
    """Let another thread run (POSIX `sched_yield`)."""

    def codegen(context, b, sig, args):
        return b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(_I32, []), "sched_yield"), [])

    return types.int32(), codegen


@intrinsic
def float_of_bits(typing, bits):
    """The float32 with the bits of an int32."""
    return types.float32(types.int32), lambda context, b, sig, args: b.bitcast(args[0], _F32)


@intrinsic
def bits_of_float(typing, value):
    """The bits of a float32 as int32."""
    return types.int32(types.float32), lambda context, b, sig, args: b.bitcast(args[0], _I32)


_p61, _p41, _p22, _p21, _p14, _p12, _p11 = (
    _product(r, p) for r, p in ((6, 1), (4, 1), (2, 2), (2, 1), (1, 4), (1, 2), (1, 1))
)


def _signatures(weights):
    i64, floats = types.int64, types.float32[::1]
    return types.void(floats, i64, i64, weights, i64, i64, floats, i64, i64, i64, i64, i64, types.boolean)


@cached(signatures=[_signatures(types.float32[::1]), _signatures(types.uint16[::1])])
def linear(x, x_at, x_row, w, w_at, w_panel, y, y_at, y_row, n, panels, rows, add):
    """y[r, :16·panels] = x[r, :n] @ w (+ y when add) for `rows` rows, w in panels [panels, n, 16]."""
    if rows == 1:
        p = 0
        while p + 4 <= panels:
            _p14(x, x_at, x_row, w, w_at + p * w_panel, w_panel, y, y_at + 16 * p, y_row, n, add)
            p += 4
        if p + 2 <= panels:
            _p12(x, x_at, x_row, w, w_at + p * w_panel, w_panel, y, y_at + 16 * p, y_row, n, add)
            p += 2
        if p < panels:
            _p11(x, x_at, x_row, w, w_at + p * w_panel, w_panel, y, y_at + 16 * p, y_row, n, add)
        return
    if rows == 2:
        p = 0
        while p + 2 <= panels:
            _p22(x, x_at, x_row, w, w_at + p * w_panel, w_panel, y, y_at + 16 * p, y_row, n, add)
            p += 2
        if p < panels:
            _p21(x, x_at, x_row, w, w_at + p * w_panel, w_panel, y, y_at + 16 * p, y_row, n, add)
        return
    for p in range(panels):
        w_p, y_p, r = w_at + p * w_panel, y_at + 16 * p, 0
        while r + 6 <= rows and rows - r != 8:  # 8 rows left: twice 4
            _p61(x, x_at + r * x_row, x_row, w, w_p, w_panel, y, y_p + r * y_row, y_row, n, add)
            r += 6
        while r + 4 <= rows:
            _p41(x, x_at + r * x_row, x_row, w, w_p, w_panel, y, y_p + r * y_row, y_row, n, add)
            r += 4
        if r + 2 <= rows:
            _p21(x, x_at + r * x_row, x_row, w, w_p, w_panel, y, y_p + r * y_row, y_row, n, add)
            r += 2
        if r < rows:
            _p11(x, x_at + r * x_row, x_row, w, w_p, w_panel, y, y_p + r * y_row, y_row, n, add)


@cached(fastmath=True, inline="always")
def exp32(x):
    """exp of a float32 in [-87, 0]: 2^n · 2^f with a polynomial for 2^f, relative error 2e-7, vectorisable."""
    z = max(x, f32(-87.0)) * f32(1.4426950408889634)
    n = i32(z - f32(0.5))  # truncation towards zero of a negative number: rounds to nearest
    f = (z - f32(n)) * f32(0.6931471805599453)
    p = f32(1.0 / 5040.0)
    p = p * f + f32(1.0 / 720.0)
    p = p * f + f32(1.0 / 120.0)
    p = p * f + f32(1.0 / 24.0)
    p = p * f + f32(1.0 / 6.0)
    p = p * f + f32(0.5)
    p = p * f + f32(1.0)
    p = p * f + f32(1.0)
    return p * float_of_bits(i32((n + i32(127)) << i32(23)))


@cached(fastmath=True)
def softmax_(scores, n, scale):
    """scores[:n] ← softmax(scale · scores[:n]); the sum is over scores[:n] only."""
    s = scores[:n]
    top = f32(-3.0e38)
    for i in range(n):
        top = max(top, s[i])
    total = f32(0.0)
    for i in range(n):
        e = exp32((s[i] - top) * scale)
        s[i] = e
        total += e
    for i in range(n):
        s[i] /= total


@cached(fastmath=True)
def gelu_(h):
    """h ← h·Φ(h), Φ by formula 7.1.26 of Abramowitz and Stegun (error 1.5e-7)."""
    for i in range(len(h)):
        x = h[i]
        z = abs(x) * f32(0.7071067811865476)
        t = f32(1.0) / (f32(1.0) + f32(0.3275911) * z)
        p = f32(1.061405429)
        p = p * t - f32(1.453152027)
        p = p * t + f32(1.421413741)
        p = p * t - f32(0.284496736)
        p = p * t + f32(0.254829592)
        tail = f32(0.5) * p * t * exp32(-z * z)  # 1 - Φ(|x|)
        h[i] = x * (tail if x < f32(0.0) else f32(1.0) - tail)


@cached(fastmath=True)
def layer_norm(x, weight, bias, out):
    """out ← LayerNorm(x)·weight + bias for one row [D]; epsilon 1e-5 as torch."""
    n = len(x)
    mean = f32(0.0)
    for i in range(n):
        mean += x[i]
    mean /= f32(n)
    var = f32(0.0)
    for i in range(n):
        var += (x[i] - mean) * (x[i] - mean)
    scale = f32(1.0) / f32((var / f32(n) + f32(1e-5)) ** 0.5)
    for i in range(n):
        out[i] = (x[i] - mean) * scale * weight[i] + bias[i]


@cached(fastmath=True)
def _threshold(keys, k):
    """The k-th largest of int32 keys, by bisection: 32 counting passes, which vectorise, instead of a sort."""
    low, high = -(2**31), 2**31  # count(>= low) >= k > count(>= high)
    while high - low > 1:
        middle = (low + high) // 2
        bound, count = i32(middle), i32(0)
        for i in range(len(keys)):
            count += keys[i] >= bound
        if count >= k:
            low = middle
            if count == k:
                break
        else:
            high = middle
    return i32(low)


@cached(fastmath=True)
def choose(z, keys, u, top_k, temperature):
    """The token that u in [0,1) picks from logits z [card]: as `vmas.sampling.sample` with top_p = 0.

    z and keys (int32 [card]) are overwritten. Returns -1 when z holds NaN or infinity.
    """
    n = len(z)
    wild = i32(0)
    for i in range(n):
        bits = bits_of_float(z[i])
        wild |= (bits & i32(0x7F800000)) == i32(0x7F800000)
        keys[i] = bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF))  # integers in the floats' order
    if wild:
        return -1
    best = i32(-(2**31))
    for i in range(n):
        best = max(best, keys[i])
    if temperature == 0.0 or top_k == 1:
        for i in range(n):
            if keys[i] == best:
                return i
    bound = _threshold(keys, top_k) if 0 < top_k < n else i32(-(2**31))
    top = z[0]
    for i in range(n):
        top = max(top, z[i])
    scale = f32(1.0 / temperature)
    for i in range(n):
        z[i] = exp32((z[i] - top) * scale) if keys[i] >= bound else f32(0.0)
    return _pick(z, u)


@cached()
def _pick(p, u):
    """First index at which the running sum of p exceeds u times its total."""
    total = 0.0
    for i in range(len(p)):
        total += p[i]
    goal, running, last = u * total, 0.0, 0
    for i in range(len(p)):
        if p[i] > 0.0:
            running += p[i]
            last = i
            if running > goal:
                return i
    return last
