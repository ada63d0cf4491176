"""The 6 x 6 taps of a sample as explicit vector code; compilers do not find this form from scalar loops."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["dot36_exact", "dot36_wide", "prefetch"]


def _make_dot36(lanes: int):
    """Make the 6 x 6 tap sum as explicit vector code: 6 row loads of `lanes`, columns summed first.

    ``sum_k wx[k] * (sum_q wy[q] * p[q, k])``. Compilers do not find this form from scalar loops; it is three
    times faster. With eight lanes the last two are loaded and never used, so memory two floats past the taps
    must be readable. The second value returned is the lowest of the four taps in the middle.
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
            vector = ir.VectorType(ir.FloatType(), lanes)
            eight = context.get_constant(types.intp, 8)

            def load_vector(pointer, offset):
                address = builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())
                loaded = builder.load(address)
                loaded.align = 4
                return loaded

            def lower(one, other):
                return builder.select(builder.fcmp_ordered("<", one, other), one, other)

            wx = load_vector(weights, builder.mul(row_x_value, eight))
            wy_base = builder.mul(row_y_value, eight)
            total = middle = None
            offset = base_value
            for tap in range(6):
                address = builder.gep(weights, [builder.add(wy_base, context.get_constant(types.intp, tap))])
                scalar = builder.load(address)
                broadcast = builder.insert_element(
                    ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
                )
                zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                broadcast = builder.shuffle_vector(broadcast, ir.Constant(vector, ir.Undefined), zeros)
                row = load_vector(data, offset)
                if tap in (2, 3):
                    middle = row if middle is None else lower(middle, row)
                product = builder.fmul(broadcast, row, flags=["contract"])
                total = product if total is None else builder.fadd(total, product, flags=["contract"])
                offset = builder.add(offset, stride_value)
            product = builder.fmul(total, wx)
            parts = [
                builder.extract_element(product, ir.Constant(ir.IntType(32), index)) for index in range(6)
            ]
            low = builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))
            value = builder.fadd(low, builder.fadd(parts[4], parts[5]))
            near = [builder.extract_element(middle, ir.Constant(ir.IntType(32), index)) for index in (2, 3)]
            return context.make_tuple(builder, sig.return_type, (value, lower(*near)))

        return signature, codegen

    return dot36


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
