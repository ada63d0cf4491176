"""The 6 x 6 taps of samples as explicit vector code; compilers do not find these forms from scalar loops."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "LANES",
    "dot36_exact",
    "dot36_of_eight",
    "dot36_of_eight_rgb",
    "dot36_wide",
    "lowest_bit",
    "prefetch",
    "range36",
]

# Neighbouring samples whose taps are summed at a time.
LANES = 8
_INDEX = ir.IntType(32)


def _loader(builder, lanes: int):
    """Return a function that loads so many floats from an offset of a pointer, whatever their alignment."""
    vector = ir.VectorType(ir.FloatType(), lanes)

    def load(pointer, offset):
        address = builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())
        return builder.load(address, align=4)

    return load


def _lower(builder, one, other):
    return builder.select(builder.fcmp_ordered("<", one, other), one, other)


def _higher(builder, one, other):
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


@intrinsic
def range36(typingctx, flat, base, stride):
    """Lowest and highest of 6 x 6 taps, none of them NaN; memory two floats past the taps must be readable."""
    signature = types.UniTuple(types.float32, 2)(flat, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        load_vector = _loader(builder, 8)
        undefined = ir.Constant(ir.VectorType(ir.FloatType(), 8), ir.Undefined)
        offset, rows = args[1], []
        for _ in range(6):
            rows.append(load_vector(data, offset))
            offset = builder.add(offset, args[2])

        def outermost(chosen):
            found = rows[0]
            for row in rows[1:]:
                found = chosen(builder, found, row)
            # Two columns in the place of those that are no taps, then half of what is left, again and again.
            for order in ([0, 1, 2, 3, 4, 5, 0, 1], [4, 5, 6, 7] * 2, [2, 3] * 4, [1] * 8):
                numbers = ir.Constant(ir.VectorType(_INDEX, 8), order)
                moved = builder.shuffle_vector(found, undefined, numbers)
                found = moved if order[0] == 0 else chosen(builder, found, moved)
            return builder.extract_element(found, ir.Constant(_INDEX, 0))

        return context.make_tuple(builder, sig.return_type, (outermost(_lower), outermost(_higher)))

    return signature, codegen


def _make_dot36(lanes: int):
    """Make the 6 x 6 tap sum of one sample: 6 row loads of `lanes`, columns summed first.

    ``sum_k wx[k] * (sum_q wy[q] * p[q, k])``. With eight lanes the last two are loaded and never used, so memory two
    floats past the taps must be readable. The second value returned is the lowest of the four taps in the middle.
    """

    @intrinsic
    def dot36(typingctx, flat, base, stride, table, row_x, row_y):
        signature = types.UniTuple(types.float32, 2)(
            flat, types.intp, types.intp, table, types.intp, types.intp
        )

        def codegen(context, builder, sig, args):
            flat_value, base_value, stride_value, table_value, row_x_value, row_y_value = args
            data = context.make_array(sig.args[0])(context, builder, flat_value).data
            weights = context.make_array(sig.args[3])(context, builder, table_value).data
            load_vector = _loader(builder, lanes)
            vector = ir.VectorType(ir.FloatType(), lanes)
            eight = context.get_constant(types.intp, 8)
            wx = load_vector(weights, builder.mul(row_x_value, eight))
            wy_base = builder.mul(row_y_value, eight)
            total = middle = None
            offset = base_value
            for tap in range(6):
                address = builder.gep(weights, [builder.add(wy_base, context.get_constant(types.intp, tap))])
                scalar = builder.load(address)
                broadcast = builder.insert_element(
                    ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_INDEX, 0)
                )
                zeros = ir.Constant(ir.VectorType(_INDEX, lanes), [0] * lanes)
                broadcast = builder.shuffle_vector(broadcast, ir.Constant(vector, ir.Undefined), zeros)
                row = load_vector(data, offset)
                if tap in (2, 3):
                    middle = row if middle is None else _lower(builder, middle, row)
                product = builder.fmul(broadcast, row, flags=["contract"])
                total = product if total is None else builder.fadd(total, product, flags=["contract"])
                offset = builder.add(offset, stride_value)
            product = builder.fmul(total, wx)
            parts = [builder.extract_element(product, ir.Constant(_INDEX, index)) for index in range(6)]
            value = _sum_of_six(builder, parts)
            near = [builder.extract_element(middle, ir.Constant(_INDEX, index)) for index in (2, 3)]
            return context.make_tuple(builder, sig.return_type, (value, _lower(builder, *near)))

        return signature, codegen

    return dot36


def _sum_of_six(builder, parts):
    low = builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))
    return builder.fadd(low, builder.fadd(parts[4], parts[5]))


def _make_dot36_of_eight(n_channels: int):
    """Make the tap sums of the samples ``at .. at + LANES - 1`` of so many channels: `dot36_wide` of each, bit by bit.

    ``(flat, base, offset, plane, stride, table, rows_x, rows_y, at, contrast, out, channel)``: `base` (uint32) are the
    places of the first taps in the first channel, to which `offset` is added; `plane` lies between channels; the sums
    go to ``out[channel ...]``. Column sums of eight samples are turned, so that their last sums are made together.

    Returns a mask with a byte per channel, bit k of it: sample ``at + k`` is not finite, or lies below the lowest of
    its four middle taps by more than `contrast` times that. Four floats before the third row of taps, and two behind
    the last one, must be readable.
    """

    @intrinsic
    def dot36_of_eight(
        typingctx, flat, base, offset, plane, stride, table, rows_x, rows_y, at, contrast, out, channel
    ):
        place = types.intp
        signature = types.uint32(
            flat, base, place, place, place, table, rows_x, rows_y, place, types.float32, out, place
        )

        def codegen(context, builder, sig, args):
            arrays = {
                k: context.make_array(sig.args[k])(context, builder, args[k]) for k in (0, 1, 5, 6, 7, 10)
            }
            data, weights = arrays[0].data, arrays[5].data
            _, _, shift, between, stride, _, _, _, first, contrast, _, channel = args
            load_vector = _loader(builder, LANES)
            vector, integers = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_INDEX, LANES)
            undefined = ir.Constant(vector, ir.Undefined)

            def number(value):
                return context.get_constant(types.intp, value)

            def entry(name, k):
                loaded = builder.load(builder.gep(arrays[name].data, [builder.add(first, number(k))]))
                return builder.zext(loaded, shift.type)

            def splat(value):
                one = builder.insert_element(undefined, value, ir.Constant(_INDEX, 0))
                return builder.shuffle_vector(one, undefined, ir.Constant(integers, [0] * LANES))

            def mixed(one, other, order):
                return builder.shuffle_vector(one, other, ir.Constant(integers, order))

            def column_sums(k):
                corner = builder.add(entry(1, k), shift)
                of_x, of_y = (builder.mul(entry(name, k), number(8)) for name in (6, 7))
                wx = load_vector(weights, of_x)
                wy = [
                    splat(builder.load(builder.gep(weights, [builder.add(of_y, number(q))])))
                    for q in range(6)
                ]
                for _ in range(n_channels):
                    rows = [builder.add(corner, builder.mul(stride, number(q))) for q in range(6)]
                    total = None
                    for weight, row in zip(wy, rows, strict=True):
                        product = builder.fmul(weight, load_vector(data, row), flags=["contract"])
                        total = product if total is None else builder.fadd(total, product, flags=["contract"])
                    # The taps in the middle take the two places without a column.
                    middle = [load_vector(data, builder.sub(row, number(4))) for row in rows[2:4]]
                    yield mixed(builder.fmul(total, wx), _lower(builder, *middle), [0, 1, 2, 3, 4, 5, 14, 15])
                    corner = builder.add(corner, between)

            width = cgutils.unpack_tuple(builder, arrays[10].shape)[1]
            found = ir.Constant(_INDEX, 0)
            of_samples = [list(column_sums(k)) for k in range(LANES)]
            for c in range(n_channels):
                columns = _turned(mixed, [sums[c] for sums in of_samples])
                value, near = _sum_of_six(builder, columns), _lower(builder, columns[6], columns[7])
                line = builder.mul(builder.add(channel, number(c)), width)
                address = builder.gep(arrays[10].data, [builder.add(line, first)])
                builder.store(value, builder.bitcast(address, vector.as_pointer()), align=4)
                size = builder.and_(
                    builder.bitcast(near, integers), ir.Constant(integers, [0x7FFFFFFF] * LANES)
                )
                bound = builder.fsub(near, builder.fmul(splat(contrast), builder.bitcast(size, vector)))
                infinite = builder.fcmp_unordered(
                    "!=", builder.fsub(value, value), ir.Constant(vector, [0.0] * LANES)
                )
                odd = builder.or_(builder.fcmp_unordered("<", value, bound), infinite)
                odd = builder.bitcast(odd, ir.IntType(LANES))
                odd = builder.shl(builder.zext(odd, _INDEX), ir.Constant(_INDEX, LANES * c))
                found = builder.or_(found, odd)
            return found

        return signature, codegen

    return dot36_of_eight


def _turned(mixed, lines):
    """Turn eight vectors of eight: pairs, fours, eights, each step puts side by side what stood below each other."""
    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    pairs = [mixed(lines[k], lines[k + 1], order) for k in (0, 2, 4, 6) for order in (low, high)]
    low, high = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    fours = [
        mixed(pairs[k + half], pairs[k + half + 2], order)
        for k in (0, 4)
        for half in (0, 1)
        for order in (low, high)
    ]
    upper, lower = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    return [mixed(fours[k], fours[4 + k], order) for order in (upper, lower) for k in range(4)]


@intrinsic
def lowest_bit(typingctx, mask):
    """Place of the lowest bit that is set in a mask of 32."""
    signature = types.intp(types.uint32)

    def codegen(context, builder, sig, args):
        found = builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(found, context.get_value_type(types.intp))

    return signature, codegen


@intrinsic
def prefetch(typingctx, flat, index):
    """Ask for the cache line of an element; harmless for any index."""
    signature = types.void(flat, types.intp)

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(data, [args[1]]), byte)
        function_type = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], function_type)
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return signature, codegen


dot36_wide = _make_dot36(8)
dot36_exact = _make_dot36(6)
dot36_of_eight = _make_dot36_of_eight(1)
dot36_of_eight_rgb = _make_dot36_of_eight(3)
