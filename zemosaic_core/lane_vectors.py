"""Vector code for many pixels at once: load and sort them, and sum what is kept of them, with the sums in registers.

Written for LLVM where loops of Numba would check whether rows overlap, keep sums in memory, or count references: taking
a part of an array costs a locked operation or two, which wait for all that was written before.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from zemosaic_core.lent_arrays import njit_lent

__all__ = ["HIGH", "LOW", "SQUARES", "SUM", "VECTOR", "load_row", "sort_rows", "sum_clipped", "sum_kept"]

# Lanes of a vector; blocks are padded to whole vectors. Machines with shorter registers split it.
VECTOR = 16
# Rows of the scratch array `work` that sums are clipped by and written to, one value per lane.
LOW, HIGH, SUM, SQUARES = range(4)


@intrinsic
def load_row(
    typingctx, values, at, maps, map_at, use_map, begin, end, raw, block, shares, use_shares, row, count
):
    """Load the samples of a source into a row of `raw` and of `block`, those that are missing as +inf.

    Lanes ``begin <= lane < end`` take ``values[at], values[at + 1] ...``, others are missing; so is what is not finite
    or, if `use_map`, has no positive share in ``maps[map_at ...]``. With `use_shares` these, or 1, go to a row of
    `shares`. `count` (a whole number of vectors) counts the samples that are there; returned is whether there are any.
    What follows in memory is asked for: the next lanes want it, in many short pieces, which hardware does not foresee.
    """
    signature = types.boolean(
        values, types.intp, maps, types.intp, types.boolean, types.intp, types.intp, raw, block, shares,
        types.boolean, types.intp, count,
    )  # fmt: skip

    def codegen(context, builder, sig, args):
        vector, integers = ir.VectorType(ir.FloatType(), VECTOR), ir.VectorType(ir.IntType(32), VECTOR)
        bits, long = ir.VectorType(ir.IntType(1), VECTOR), ir.VectorType(ir.IntType(64), VECTOR)
        zeros, missing = ir.Constant(vector, [0.0] * VECTOR), ir.Constant(vector, [float("inf")] * VECTOR)
        _, at, _, map_at, use_map, begin, end, _, _, _, use_shares, row, _ = args
        arrays = {k: context.make_array(sig.args[k])(context, builder, args[k]) for k in (0, 2, 7, 8, 9, 12)}
        n_vectors = builder.udiv(
            cgutils.unpack_tuple(builder, arrays[12].shape)[0], context.get_constant(types.intp, VECTOR)
        )
        masked = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector.as_pointer(), ir.IntType(32), bits, vector]),
            f"llvm.masked.load.v{VECTOR}f32.p0v{VECTOR}f32",
        )
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        )

        def line_of(k):
            stride = cgutils.unpack_tuple(builder, arrays[k].strides)[0]
            start = builder.ptrtoint(arrays[k].data, stride.type)
            return builder.inttoptr(builder.add(start, builder.mul(row, stride)), arrays[k].data.type)

        def place(pointer, offset, kind=vector):
            return builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())

        def splat(value):
            one = builder.insert_element(ir.Constant(long, ir.Undefined), value, ir.Constant(number, 0))
            return builder.shuffle_vector(
                one, ir.Constant(long, ir.Undefined), ir.Constant(integers, [0] * VECTOR)
            )

        lines = {k: line_of(k) for k in (7, 8, 9)}
        found = cgutils.alloca_once_value(builder, ir.Constant(bits, [0] * VECTOR))
        steps = ir.Constant(long, list(range(VECTOR)))
        with cgutils.for_range(builder, n_vectors) as group:
            lane = builder.mul(group.index, context.get_constant(types.intp, VECTOR))
            beyond = builder.add(lane, context.get_constant(types.intp, VECTOR))
            lanes = builder.add(splat(lane), steps)
            own = builder.and_(
                builder.icmp_signed(">=", lanes, splat(begin)), builder.icmp_signed("<", lanes, splat(end))
            )
            whole = builder.and_(
                builder.icmp_signed(">=", lane, begin), builder.icmp_signed("<=", beyond, end)
            )

            def take(k, first, otherwise):
                address = place(arrays[k].data, builder.add(first, builder.sub(lane, begin)))
                taken = cgutils.alloca_once(builder, vector)
                with builder.if_else(whole) as (then, otherwise_block):
                    with then:
                        builder.store(builder.load(address, align=4), taken)
                    with otherwise_block:
                        # A part of the vector may lie outside of the array.
                        loaded = builder.call(masked, [address, number(4), own, otherwise])
                        builder.store(loaded, taken)
                following = builder.add(first, builder.sub(builder.add(end, lane), begin))
                ahead = builder.bitcast(builder.gep(arrays[k].data, [following]), byte)
                builder.call(fetch, [ahead, number(0), number(3), number(1)])
                return builder.load(taken)

            sample = take(0, at, missing)
            valid = builder.fcmp_ordered("==", builder.fsub(sample, sample), zeros)
            good = cgutils.alloca_once_value(builder, valid)
            share = cgutils.alloca_once_value(builder, ir.Constant(vector, [1.0] * VECTOR))
            with builder.if_then(use_map):
                of_map = take(2, map_at, zeros)
                builder.store(of_map, share)
                builder.store(builder.and_(valid, builder.fcmp_ordered(">", of_map, zeros)), good)
            valid = builder.load(good)
            sample = builder.select(valid, sample, missing)
            builder.store(sample, place(lines[7], lane), align=4)
            builder.store(sample, place(lines[8], lane), align=4)
            with builder.if_then(use_shares):
                builder.store(builder.load(share), place(lines[9], lane), align=4)
            counted = place(arrays[12].data, lane, integers)
            builder.store(
                builder.add(builder.load(counted, align=4), builder.zext(valid, integers)), counted, align=4
            )
            builder.store(builder.or_(builder.load(found), valid), found)
        together = builder.bitcast(builder.load(found), ir.IntType(VECTOR))
        any_valid = builder.icmp_unsigned("!=", together, ir.Constant(ir.IntType(VECTOR), 0))
        return context.cast(builder, any_valid, types.boolean, sig.return_type)

    return signature, codegen


@intrinsic
def _exchange(typingctx, values, upper, lower, n_vectors):
    """Order two rows lane by lane, the smaller values into `upper`.

    Written as vector code because a compiler must assume that the rows overlap and checks it at every one of the
    many short exchanges; they never do.
    """
    signature = types.void(values, types.intp, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        array = context.make_array(sig.args[0])(context, builder, args[0])
        stride = cgutils.unpack_tuple(builder, array.strides)[0]
        start = builder.ptrtoint(array.data, stride.type)
        vector = ir.VectorType(ir.FloatType(), VECTOR)

        def row(index):
            address = builder.add(start, builder.mul(index, stride))
            return builder.inttoptr(address, vector.as_pointer())

        first, second = row(args[1]), row(args[2])
        with cgutils.for_range(builder, args[3]) as loop:
            at_first, at_second = builder.gep(first, [loop.index]), builder.gep(second, [loop.index])
            a, b = builder.load(at_first, align=4), builder.load(at_second, align=4)
            smaller = builder.select(builder.fcmp_ordered("<", a, b), a, b)
            larger = builder.select(builder.fcmp_ordered(">", b, a), b, a)
            builder.store(smaller, at_first, align=4)
            builder.store(larger, at_second, align=4)
        return context.get_dummy_value()

    return signature, codegen


@njit_lent(error_model="numpy")
def sort_rows(values, n):
    """Sort every lane over its first `n` rows: Batcher's merge-exchange network, each exchange on all lanes."""
    n_vectors = values.shape[1] // VECTOR
    # Powers of two by their logarithms: divisions would take as long as the exchanges.
    log_p = 0
    while (1 << log_p) < n:
        log_k = log_p
        while log_k >= 0:
            k = 1 << log_k
            j = k & ((1 << log_p) - 1)
            while j + k < n:
                for i in range(j, j + min(k, n - j - k)):
                    if i >> (log_p + 1) == (i + k) >> (log_p + 1):
                        _exchange(values, i, i + k, n_vectors)
                j += 2 * k
            log_k -= 1
        log_p += 1


@intrinsic
def sum_clipped(typingctx, values, first, last, begin, end, lanes, work):
    """Per lane: sums of clip(v, low, high) and of its square over the ranks ``first <= k < last``.

    Lanes run in vectors with the sums in registers; ``begin`` and ``end`` bound the ranks of all lanes.
    """
    signature = types.void(values, first, last, types.intp, types.intp, types.intp, work)

    def codegen(context, builder, sig, args):
        vector, integers = ir.VectorType(ir.FloatType(), VECTOR), ir.VectorType(ir.IntType(32), VECTOR)
        zero, width = ir.Constant(vector, [0.0] * VECTOR), context.get_constant(types.intp, VECTOR)

        def start_of(index, row=None):
            array = context.make_array(sig.args[index])(context, builder, args[index])
            if row is None:
                return array.data, None
            stride = cgutils.unpack_tuple(builder, array.strides)[0]
            address = builder.add(builder.ptrtoint(array.data, stride.type), builder.mul(row, stride))
            return builder.inttoptr(address, array.data.type), stride

        def at(pointer, offset, kind):
            return builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())

        def work_row(row):
            return start_of(6, context.get_constant(types.intp, row))[0]

        low_at, high_at, sum_at, squares_at = (work_row(row) for row in (LOW, HIGH, SUM, SQUARES))
        first_at, last_at = start_of(1)[0], start_of(2)[0]
        top, stride = start_of(0, args[3])
        rows = builder.sub(args[4], args[3])
        n_vectors = builder.sdiv(builder.add(args[5], context.get_constant(types.intp, VECTOR - 1)), width)
        begin32 = builder.trunc(args[3], ir.IntType(32))
        undefined = ir.Constant(integers, ir.Undefined)
        splat = ir.Constant(integers, [0] * VECTOR)
        total, squares = cgutils.alloca_once(builder, vector), cgutils.alloca_once(builder, vector)
        with cgutils.for_range(builder, n_vectors) as group:
            lane = builder.mul(group.index, width)
            low, high = (builder.load(at(p, lane, vector), align=4) for p in (low_at, high_at))
            lowest, beyond = (builder.load(at(p, lane, integers), align=4) for p in (first_at, last_at))
            builder.store(zero, total)
            builder.store(zero, squares)
            with cgutils.for_range(builder, rows) as rank:
                offset = builder.mul(rank.index, stride)
                address = builder.add(builder.ptrtoint(top, stride.type), offset)
                row = builder.inttoptr(address, top.type)
                x = builder.load(at(row, lane, vector), align=4)
                x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
                x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
                k = builder.add(begin32, builder.trunc(rank.index, ir.IntType(32)))
                k = builder.insert_element(undefined, k, ir.Constant(ir.IntType(32), 0))
                k = builder.shuffle_vector(k, undefined, splat)
                inside = builder.and_(
                    builder.icmp_signed("<=", lowest, k), builder.icmp_signed("<", k, beyond)
                )
                x = builder.select(inside, x, zero)
                builder.store(builder.fadd(builder.load(total), x), total)
                builder.store(builder.fadd(builder.load(squares), builder.fmul(x, x)), squares)
            builder.store(builder.load(total), at(sum_at, lane, vector), align=4)
            builder.store(builder.load(squares), at(squares_at, lane, vector), align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def sum_kept(typingctx, raw, shares, use_shares, own, n, unit, pivot, bounds, lanes, sums):
    """Per lane, over the sources and as far as they are kept: sums of w, w, w d, w^2, w^2 d, w^2 d^2.

    `d` is the difference from the pivot, kept within ``bounds[:2]``; `w` a weight of `own` times the share of the
    sample, in all sums but the first 1 if `unit`. Lanes run in vectors with the sums in registers.
    """
    signature = types.void(
        raw, shares, types.boolean, own, types.intp, types.boolean, pivot, bounds, types.intp, sums
    )

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), VECTOR)
        zero, one = ir.Constant(vector, [0.0] * VECTOR), ir.Constant(vector, [1.0] * VECTOR)
        undefined, splat = (
            ir.Constant(vector, ir.Undefined),
            ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR),
        )
        width = context.get_constant(types.intp, VECTOR)

        def memory(index):
            array = context.make_array(sig.args[index])(context, builder, args[index])
            return array.data, cgutils.unpack_tuple(builder, array.strides)[0]

        def line(index, row, lane):
            data, stride = memory(index)
            address = builder.add(builder.ptrtoint(data, stride.type), builder.mul(row, stride))
            return builder.bitcast(
                builder.gep(builder.inttoptr(address, data.type), [lane]), vector.as_pointer()
            )

        n_vectors = builder.sdiv(builder.add(args[8], context.get_constant(types.intp, VECTOR - 1)), width)
        totals = [cgutils.alloca_once(builder, vector) for _ in range(6)]
        with cgutils.for_range(builder, n_vectors) as group:
            lane = builder.mul(group.index, width)
            middle = builder.load(line(6, context.get_constant(types.intp, 0), lane), align=4)
            low, high = (
                builder.load(line(7, context.get_constant(types.intp, k), lane), align=4) for k in range(2)
            )
            for total in totals:
                builder.store(zero, total)
            with cgutils.for_range(builder, args[4]) as source:
                d = builder.fsub(builder.load(line(0, source.index, lane), align=4), middle)
                kept = builder.and_(builder.fcmp_ordered(">=", d, low), builder.fcmp_ordered("<=", d, high))
                weight = builder.load(builder.gep(memory(3)[0], [source.index]))
                weight = builder.insert_element(undefined, weight, ir.Constant(ir.IntType(32), 0))
                weight = builder.shuffle_vector(weight, undefined, splat)
                share = cgutils.alloca_once_value(builder, one)
                with builder.if_then(args[2]):
                    builder.store(builder.load(line(1, source.index, lane), align=4), share)
                # Where nothing is kept the share may be anything, NaN too.
                w = builder.select(kept, builder.fmul(weight, builder.load(share)), zero)
                d = builder.select(kept, d, zero)

                def add(k, value):
                    builder.store(builder.fadd(builder.load(totals[k]), value), totals[k])

                add(0, w)
                w = builder.select(args[5], builder.select(builder.fcmp_ordered(">", w, zero), one, zero), w)
                square = builder.fmul(w, w)
                times = builder.fmul(square, d)
                for k, value in enumerate((w, builder.fmul(w, d), square, times, builder.fmul(times, d)), 1):
                    add(k, value)
            for k, total in enumerate(totals):
                builder.store(
                    builder.load(total), line(9, context.get_constant(types.intp, k), lane), align=4
                )
        return context.get_dummy_value()

    return signature, codegen
