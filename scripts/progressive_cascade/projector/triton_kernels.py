# SPDX-License-Identifier: Apache-2.0
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""The fused kernels: Joseph's method ray by ray, for every pose, view and sample of a batch in one launch.

Geometry is read from the 3x4 matrices and affines where they lie and worked out in float64: once per ray and once per
voxel and view. Inner loops run in the type of the values, in coordinates relative to a voxel near the ray or to the
voxel itself, so that float32 errs by 1e-6 voxel, not by that of a position in a large volume.

With d the direction of a ray in voxel indices per mm of depth and s the source, the ray meets plane k of its main axis
a at b = s_b + (k - s_a) d_b / d_a, and its hat weight on voxel i is

    1 - |b - i|  =  (d_a - |N_b|) / d_a,     N_b = (s_b - i) d_a + (k - s_a) d_b.

d_a and N_b are linear in the pixel. The transpose therefore divides nothing: 1 / d_a² joins what is spread, and a voxel
walks over the few pixels whose rays pass within one voxel of it.

No kernel uses atomics; results do not change from run to run.
"""

import triton
import triton.language as tl

# float64 numbers in a view's row of the table: inverse (9), source (3), q (12), main axes, rows are fast, impossible.
TABLE_WIDTH = tl.constexpr(27)
# Of two axes that a ray runs along equally, the first is the main one, whatever the rounding.
_TIE = tl.constexpr(1e-9)
# Distance from the volume's border within which a plane is summed with a look at that border [voxel].
_BORDER = tl.constexpr(1e-3)
# Pixels by which a voxel's shadow is widened for rounding; what it adds has the weight 0.
_SHADOW_MARGIN = tl.constexpr(0.05)
# A voxel nearer to the source's plane than this share of the largest depth looks at the whole detector.
_NEAREST_DEPTH = tl.constexpr(1e-2)


@triton.jit
def _view(matrix, affine):
    """Q = P A of a view, its left part's inverse, the source, and whether Q is regular: 25 float64 scalars."""
    a00, a01, a02, a03 = _row(affine)
    a10, a11, a12, a13 = _row(affine + 4)
    a20, a21, a22, a23 = _row(affine + 8)
    p0, p1, p2, p3 = _row(matrix)
    q00, q01, q02 = p0 * a00 + p1 * a10 + p2 * a20, p0 * a01 + p1 * a11 + p2 * a21, p0 * a02 + p1 * a12 + p2 * a22
    q03 = p0 * a03 + p1 * a13 + p2 * a23 + p3
    p0, p1, p2, p3 = _row(matrix + 4)
    q10, q11, q12 = p0 * a00 + p1 * a10 + p2 * a20, p0 * a01 + p1 * a11 + p2 * a21, p0 * a02 + p1 * a12 + p2 * a22
    q13 = p0 * a03 + p1 * a13 + p2 * a23 + p3
    p0, p1, p2, p3 = _row(matrix + 8)
    q20, q21, q22 = p0 * a00 + p1 * a10 + p2 * a20, p0 * a01 + p1 * a11 + p2 * a21, p0 * a02 + p1 * a12 + p2 * a22
    q23 = p0 * a03 + p1 * a13 + p2 * a23 + p3
    i00, i01, i02 = q11 * q22 - q12 * q21, q02 * q21 - q01 * q22, q01 * q12 - q02 * q11
    i10, i11, i12 = q12 * q20 - q10 * q22, q00 * q22 - q02 * q20, q02 * q10 - q00 * q12
    i20, i21, i22 = q10 * q21 - q11 * q20, q01 * q20 - q00 * q21, q00 * q11 - q01 * q10
    det = q00 * i00 + q01 * i10 + q02 * i20
    regular = (tl.abs(det) > 1e-24) & (tl.abs(det) < 1e300)
    scale = 1.0 / tl.where(regular, det, 1.0)
    i00, i01, i02 = i00 * scale, i01 * scale, i02 * scale
    i10, i11, i12 = i10 * scale, i11 * scale, i12 * scale
    i20, i21, i22 = i20 * scale, i21 * scale, i22 * scale
    s0 = -(i00 * q03 + i01 * q13 + i02 * q23)
    s1 = -(i10 * q03 + i11 * q13 + i12 * q23)
    s2 = -(i20 * q03 + i21 * q13 + i22 * q23)
    inverse = (i00, i01, i02, i10, i11, i12, i20, i21, i22)
    q = (q00, q01, q02, q03, q10, q11, q12, q13, q20, q21, q22, q23)
    return inverse, (s0, s1, s2), q, regular


@triton.jit
def _row(matrix):
    return (
        tl.load(matrix).to(tl.float64),
        tl.load(matrix + 1).to(tl.float64),
        tl.load(matrix + 2).to(tl.float64),
        tl.load(matrix + 3).to(tl.float64),
    )


@triton.jit
def _is_impossible(source, regular, nx, ny, nz):
    """Whether the source stands in the volume, or the pose is singular or not finite."""
    s0, s1, s2 = source
    inside = (s0 >= -0.5) & (s0 <= nx - 0.5) & (s1 >= -0.5) & (s1 <= ny - 0.5) & (s2 >= -0.5) & (s2 <= nz - 0.5)
    finite = (tl.abs(s0) < 1e30) & (tl.abs(s1) < 1e30) & (tl.abs(s2) < 1e30)
    return inside | (regular == 0) | (finite == 0)


@triton.jit
def _direction(inverse, row, col):
    """d of pixels; fused by name, so that all kernels round alike and agree on a ray's main axis."""
    i00, i01, i02, i10, i11, i12, i20, i21, i22 = inverse
    d0 = tl.fma(col, i00 + 0.0 * col, tl.fma(row, i01 + 0.0 * row, i02 + 0.0 * row))
    d1 = tl.fma(col, i10 + 0.0 * col, tl.fma(row, i11 + 0.0 * row, i12 + 0.0 * row))
    d2 = tl.fma(col, i20 + 0.0 * col, tl.fma(row, i21 + 0.0 * row, i22 + 0.0 * row))
    size0, size1, size2 = tl.abs(d0), tl.abs(d1) * (1.0 - _TIE), tl.abs(d2) * (1.0 - 2 * _TIE)
    axis = tl.where((size0 >= size1) & (size0 >= size2), 0, tl.where(size1 >= size2, 1, 2))
    return d0, d1, d2, axis


@triton.jit
def _pick(axis, of_x, of_y, of_z):
    """What belongs to an axis, and to the two others in ascending order."""
    main = tl.where(axis == 0, of_x, tl.where(axis == 1, of_y, of_z))
    return main, tl.where(axis == 0, of_y, of_x), tl.where(axis == 2, of_y, of_z)


@triton.jit
def _length(affine, d0, d1, d2, along):
    """Length of rays per plane [mm]."""
    a00, a01, a02, _a03 = _row(affine)
    a10, a11, a12, _a13 = _row(affine + 4)
    a20, a21, a22, _a23 = _row(affine + 8)
    x = a00 * d0 + a01 * d1 + a02 * d2
    y = a10 * d0 + a11 * d1 + a12 * d2
    z = a20 * d0 + a21 * d1 + a22 * d2
    return tl.sqrt(x * x + y * y + z * z) / tl.abs(along)


@triton.jit
def _ends(along, source, size, reach, ENDS: tl.constexpr):
    """First plane and the one behind the last between source and detector."""
    ahead = along > 0
    first = tl.where(ahead, tl.floor(source) + 1.0, 0.0)
    last = tl.where(ahead, size + 0.0, tl.ceil(source))
    if ENDS:
        far = source + along * reach
        first = tl.where(ahead, first, tl.maximum(first, tl.floor(far) + 1.0))
        last = tl.where(ahead, tl.minimum(last, tl.ceil(far)), last)
    return tl.minimum(tl.maximum(first, 0.0), size), tl.minimum(tl.maximum(last, 0.0), size)


@triton.jit
def _between(at, slope, low, high):
    """The steps between which low < at + step slope < high."""
    slope = tl.where(tl.abs(slope) < 1e-9, 1e-9, slope)
    one, two = -(at - low) / slope, -(at - high) / slope
    return tl.minimum(one, two), tl.maximum(one, two)


@triton.jit
def _sum_planes(total, low, high, volume, ray, middle, MASKED: tl.constexpr):
    """Bilinear samples on the planes low <= k < high."""
    at, slope, base, stride, other_stride, start, size, span = ray
    for k in range(low, high):
        step = (k - middle).to(total.dtype)
        b, c = at[0] + step * slope[0], at[1] + step * slope[1]
        floor_b, floor_c = tl.floor(b), tl.floor(c)
        u, v = b - floor_b, c - floor_c
        i, j = floor_b.to(tl.int32), floor_c.to(tl.int32)
        voxel = volume + (base + k * stride + i * other_stride[0] + j * other_stride[1])
        if MASKED:
            i, j = i + start[0], j + start[1]
            crossed = (k >= span[0]) & (k < span[1])
            near, far = crossed & (i >= 0) & (i < size[0]), crossed & (i >= -1) & (i + 1 < size[0])
            left, right = (j >= 0) & (j < size[1]), (j >= -1) & (j + 1 < size[1])
            v00 = tl.load(voxel, mask=near & left, other=0.0)
            v01 = tl.load(voxel + other_stride[1], mask=near & right, other=0.0)
            v10 = tl.load(voxel + other_stride[0], mask=far & left, other=0.0)
            v11 = tl.load(voxel + other_stride[0] + other_stride[1], mask=far & right, other=0.0)
        else:
            v00 = tl.load(voxel)
            v01 = tl.load(voxel + other_stride[1])
            v10 = tl.load(voxel + other_stride[0])
            v11 = tl.load(voxel + other_stride[0] + other_stride[1])
        one, two = v00 + v * (v01 - v00), v10 + v * (v11 - v10)
        total += one + u * (two - one)
    return total


@triton.jit
def _pixels(tile, rows, cols, rows_are_fast, SIDE: tl.constexpr, SLOW: tl.constexpr):
    """Row and column of a tile's pixels: lanes run along the side of the detector that runs along z in memory."""
    lane = tl.arange(0, SIDE * SLOW)
    fast, slow = lane % SIDE, (tile % (SIDE // SLOW)) * SLOW + lane // SIDE
    square, down = tile // (SIDE // SLOW), tl.cdiv(rows, SIDE)
    row = (square % down) * SIDE + tl.where(rows_are_fast, fast, slow)
    col = (square // down) * SIDE + tl.where(rows_are_fast, slow, fast)
    return row, col, (row < rows) & (col < cols)


@triton.jit
def sum_rays_kernel(
    volume,
    matrices,
    affines,
    reaches,
    out,
    affine_stride,
    views,
    rows,
    cols,
    nx,
    ny,
    nz,
    batch_stride,
    stride_x,
    stride_y,
    stride_z,
    ENDS: tl.constexpr,
    SIDE: tl.constexpr,
    SLOW: tl.constexpr,
):
    """A: a program owns a tile of pixels of one view and walks through the planes; a ray's sum stays in a register."""
    real = out.dtype.element_ty
    view = tl.program_id(1).to(tl.int64)
    batch = view // views
    affine = affines + batch * affine_stride
    inverse, source, _q, regular = _view(matrices + view * 12, affine)
    impossible = _is_impossible(source, regular, nx, ny, nz)
    rows_are_fast = tl.abs(inverse[7]) >= tl.abs(inverse[6])
    row, col, member = _pixels(tl.program_id(0), rows, cols, rows_are_fast, SIDE, SLOW)
    d0, d1, d2, axis = _direction(inverse, row.to(tl.float64), col.to(tl.float64))
    along, along_b, along_c = _pick(axis, d0, d1, d2)
    source_a, source_b, source_c = _pick(axis, source[0], source[1], source[2])
    size, size_b, size_c = _pick(axis, nx, ny, nz)
    stride, stride_b, stride_c = _pick(axis, stride_x, stride_y, stride_z)
    middle = tl.maximum(tl.maximum(nx, ny), nz) // 2
    slope_b, slope_c = along_b / along, along_c / along
    at_b = source_b + (middle - source_a) * slope_b
    at_c = source_c + (middle - source_a) * slope_c
    reach = 0.0
    if ENDS:
        reach = tl.load(reaches + batch).to(tl.float64)
    first, last = _ends(along, source_a, size.to(tl.float64), reach, ENDS)
    low_b, high_b = _between(at_b, slope_b, -1.0, size_b.to(tl.float64))
    low_c, high_c = _between(at_c, slope_c, -1.0, size_c.to(tl.float64))
    enter, leave = tl.maximum(low_b, low_c) + middle, tl.minimum(high_b, high_c) + middle
    first = tl.maximum(first, tl.minimum(tl.maximum(tl.floor(enter), 0.0), 1e9)).to(tl.int32)
    last = tl.minimum(last, tl.minimum(tl.maximum(tl.ceil(leave) + 1.0, 0.0), 1e9)).to(tl.int32)
    met = member & (first < last) & (impossible == 0)
    first, last = tl.where(met, first, 0), tl.where(met, last, 0)
    # The planes on which every ray of the tile has all four voxels: no look at the border, no look at its ends.
    low_b, high_b = _between(at_b, slope_b, _BORDER, size_b - 1 - _BORDER)
    low_c, high_c = _between(at_c, slope_c, _BORDER, size_c - 1 - _BORDER)
    enter, leave = tl.maximum(low_b, low_c) + middle, tl.minimum(high_b, high_c) + middle
    inner_first = tl.maximum(first, tl.minimum(tl.maximum(tl.ceil(enter), 0.0), 1e9).to(tl.int32))
    inner_last = tl.minimum(last, tl.minimum(tl.maximum(tl.floor(leave) + 1.0, 0.0), 1e9).to(tl.int32))
    begin = tl.min(tl.where(met, first, 2147483647))
    end = tl.max(last)
    begin = tl.minimum(begin, end)
    inner_begin = tl.minimum(tl.maximum(tl.max(tl.where(member, inner_first, 0)), begin), end)
    inner_end = tl.minimum(tl.maximum(tl.min(tl.where(member, inner_last, 2147483647)), inner_begin), end)
    at_b = tl.minimum(tl.maximum(at_b, -1e6), 1e6)
    at_c = tl.minimum(tl.maximum(at_c, -1e6), 1e6)
    start_b, start_c = tl.floor(at_b), tl.floor(at_c)
    at = ((at_b - start_b).to(real), (at_c - start_c).to(real))
    start = (start_b.to(tl.int32), start_c.to(tl.int32))
    base = start[0] * stride_b + start[1] * stride_c
    slope = (slope_b.to(real), slope_c.to(real))
    ray = (at, slope, base, stride, (stride_b, stride_c), start, (size_b, size_c), (first, last))
    total = tl.zeros([SIDE * SLOW], dtype=real)
    volume += batch * batch_stride
    total = _sum_planes(total, begin, inner_begin, volume, ray, middle, True)
    total = _sum_planes(total, inner_begin, inner_end, volume, ray, middle, False)
    total = _sum_planes(total, inner_end, end, volume, ray, middle, True)
    total *= _length(affine, d0, d1, d2, along).to(real)
    total = tl.where(met, total, 0.0)
    total = tl.where(impossible, float("nan"), total)
    tl.store(out + view * rows * cols + row * cols + col, total, mask=member)


@triton.jit
def prepare_kernel(
    projections,
    matrices,
    affines,
    reaches,
    weighed,
    ends,
    table,
    affine_stride,
    views,
    rows,
    cols,
    nx,
    ny,
    nz,
    ENDS: tl.constexpr,
    SIDE: tl.constexpr,
    SLOW: tl.constexpr,
):
    """What Aᵀ spreads: every pixel's value times length / d_a², in the plane of its main axis, 0 in the others'.

    The first program of a view also writes its row of the table.
    """
    view = tl.program_id(1).to(tl.int64)
    batch = view // views
    affine = affines + batch * affine_stride
    inverse, source, q, regular = _view(matrices + view * 12, affine)
    impossible = _is_impossible(source, regular, nx, ny, nz)
    rows_are_fast = tl.abs(inverse[7]) >= tl.abs(inverse[6])
    axes = _main_axes(inverse, rows, cols)
    if tl.program_id(0) == 0:
        line = table + view * TABLE_WIDTH
        for n in tl.static_range(9):
            tl.store(line + n, inverse[n])
        for n in tl.static_range(3):
            tl.store(line + 9 + n, source[n])
        for n in tl.static_range(12):
            tl.store(line + 12 + n, q[n])
        tl.store(line + 24, axes.to(tl.float64))
        tl.store(line + 25, rows_are_fast.to(tl.float64))
        tl.store(line + 26, impossible.to(tl.float64))
    row, col, member = _pixels(tl.program_id(0), rows, cols, rows_are_fast, SIDE, SLOW)
    d0, d1, d2, axis = _direction(inverse, row.to(tl.float64), col.to(tl.float64))
    along, _b, _c = _pick(axis, d0, d1, d2)
    value = tl.load(projections + view * rows * cols + row * cols + col, mask=member, other=0.0)
    factor = _length(affine, d0, d1, d2, along) / (along * along)
    value = (value.to(tl.float64) * factor).to(weighed.dtype.element_ty)
    pixel = tl.where(rows_are_fast, col * rows + row, row * cols + col)
    for a in tl.static_range(3):
        if (axes >> a) & 1:
            tl.store(weighed + (view * 3 + a) * rows * cols + pixel, tl.where(axis == a, value, 0.0), mask=member)
    if ENDS:
        source_a, _source_b, _source_c = _pick(axis, source[0], source[1], source[2])
        size, _size_b, _size_c = _pick(axis, nx, ny, nz)
        reach = tl.load(reaches + batch).to(tl.float64)
        first, last = _ends(along, source_a, size.to(tl.float64), reach, ENDS)
        tl.store(ends + view * 2 * rows * cols + pixel, first.to(tl.int32), mask=member)
        tl.store(ends + (view * 2 + 1) * rows * cols + pixel, last.to(tl.int32), mask=member)


@triton.jit
def _main_axes(inverse, rows, cols):
    """A bit for each axis that may be the main one of a ray; d is linear, so that four corners tell for all pixels."""
    axes = 7
    for a in tl.static_range(3):
        for side in tl.static_range(2):
            for b in tl.static_range(3):
                if a != b:
                    beaten = True
                    for corner in tl.static_range(4):
                        col = (corner % 2) * (cols - 1)
                        row = (corner // 2) * (rows - 1)
                        d_a = inverse[3 * a] * col + inverse[3 * a + 1] * row + inverse[3 * a + 2]
                        d_b = inverse[3 * b] * col + inverse[3 * b + 1] * row + inverse[3 * b + 2]
                        d_a = d_a * (1 - 2 * side) * (1.0 - 1e-6)
                        beaten = beaten & (d_a > tl.abs(d_b))
                    axes = tl.where(beaten, axes & (7 - (1 << b)), axes)
    return axes


@triton.jit
def _range(low, high, count, everything, nothing):
    """First pixel and the number of pixels of a shadow."""
    low = tl.minimum(tl.maximum(tl.ceil(low - _SHADOW_MARGIN), 0.0), count).to(tl.int32)
    high = tl.minimum(tl.maximum(tl.floor(high + _SHADOW_MARGIN) + 1.0, 0.0), count).to(tl.int32)
    low, high = tl.where(everything, 0, low), tl.where(everything, count, high)
    return low, tl.where(nothing, 0, tl.maximum(high - low, 0))


@triton.jit
def _shadow(line, voxel, axis, rows, cols, nx, ny, nz):
    """The pixels whose rays pass within one voxel of a voxel in its plane: first row and column, and their numbers."""
    x, y, z = voxel
    q = line + 12
    _main, b, c = _pick(axis, 0, 1, 2)
    u = _affine32(q, x, y, z)
    v = _affine32(q + 4, x, y, z)
    w = _affine32(q + 8, x, y, z)
    u_b, u_c = tl.load(q + b).to(tl.float32), tl.load(q + c).to(tl.float32)
    v_b, v_c = tl.load(q + 4 + b).to(tl.float32), tl.load(q + 4 + c).to(tl.float32)
    w_b, w_c = tl.load(q + 8 + b).to(tl.float32), tl.load(q + 8 + c).to(tl.float32)
    least, most = w - tl.abs(w_b) - tl.abs(w_c), w + tl.abs(w_b) + tl.abs(w_c)
    scale = tl.abs(tl.load(q + 8)) * nx + tl.abs(tl.load(q + 9)) * ny + tl.abs(tl.load(q + 10)) * nz
    limit = ((scale + tl.abs(tl.load(q + 11))) * _NEAREST_DEPTH).to(tl.float32)
    everything = least < limit
    safe = 1.0 / tl.where(everything, 1.0, w + w_b + w_c)
    low_u = (u + u_b + u_c) * safe
    low_v = (v + v_b + v_c) * safe
    high_u, high_v = low_u, low_v
    for corner in tl.static_range(1, 4):
        e_b, e_c = 1 - 2 * (corner % 2), 1 - 2 * (corner // 2)
        safe = 1.0 / tl.where(everything, 1.0, w + e_b * w_b + e_c * w_c)
        at_u, at_v = (u + e_b * u_b + e_c * u_c) * safe, (v + e_b * v_b + e_c * v_c) * safe
        low_u, high_u = tl.minimum(low_u, at_u), tl.maximum(high_u, at_u)
        low_v, high_v = tl.minimum(low_v, at_v), tl.maximum(high_v, at_v)
    behind = most < -limit
    first_col, num_cols = _range(low_u, high_u, cols, everything, behind)
    first_row, num_rows = _range(low_v, high_v, rows, everything, behind)
    return first_row, num_rows, first_col, num_cols


@triton.jit
def _affine32(q, x, y, z):
    a, b, c, d = tl.load(q), tl.load(q + 1), tl.load(q + 2), tl.load(q + 3)
    return a.to(tl.float32) * x + b.to(tl.float32) * y + c.to(tl.float32) * z + d.to(tl.float32)


@triton.jit
def _gather(total, line, weighed, ends, voxel, member, axis, sizes, ENDS: tl.constexpr):
    """Add one view's rays of one main axis to a tile of voxels."""
    x, y, z = voxel
    rows, cols, nx, ny, nz = sizes
    first_row, num_rows, first_col, num_cols = _shadow(line, voxel, axis, rows, cols, nx, ny, nz)
    num_rows, num_cols = tl.where(member, num_rows, 0), tl.where(member, num_cols, 0)
    k, i, j = _pick(axis, x, y, z)
    _main, b, c = _pick(axis, 0, 1, 2)
    rise = k - tl.load(line + 9 + axis)
    # Rays run away from the source: those that reach this plane have a d_a of the sign of k - s_a.
    sign = tl.where(rise > 0, 1.0, tl.where(rise < 0, -1.0, 0.0))
    off_b, off_c = tl.load(line + 9 + b) - i, tl.load(line + 9 + c) - j
    a_col, a_row, a_one = _coefficients(line, axis)
    b_col, b_row, b_one = _coefficients(line, b)
    c_col, c_row, c_one = _coefficients(line, c)
    b_col, b_row, b_one = off_b * a_col + rise * b_col, off_b * a_row + rise * b_row, off_b * a_one + rise * b_one
    c_col, c_row, c_one = off_c * a_col + rise * c_col, off_c * a_row + rise * c_row, off_c * a_one + rise * c_one
    a_col, a_row, a_one = sign * a_col, sign * a_row, sign * a_one
    # Taken at the first pixel in float64: from there on numbers are small.
    a_one += first_col * a_col + first_row * a_row
    b_one += first_col * b_col + first_row * b_row
    c_one += first_col * c_col + first_row * c_row
    real = total.dtype
    a_col, a_row, a_one = a_col.to(real), a_row.to(real), a_one.to(real)
    b_col, b_row, b_one = b_col.to(real), b_row.to(real), b_one.to(real)
    c_col, c_row, c_one = c_col.to(real), c_row.to(real), c_one.to(real)
    rows_are_fast = tl.load(line + 25) > 0
    row_stride, col_stride = tl.where(rows_are_fast, 1, cols), tl.where(rows_are_fast, rows, 1)
    corner = first_row * row_stride + first_col * col_stride
    for col in range(0, tl.max(num_cols)):
        a_at, b_at, c_at = a_one + col * a_col, b_one + col * b_col, c_one + col * c_col
        column = corner + col * col_stride
        down = tl.where(col < num_cols, num_rows, 0)
        for row in range(0, tl.max(num_rows)):
            pixel, seen = column + row * row_stride, row < down
            if ENDS:
                seen = seen & (k >= tl.load(ends + pixel, mask=seen, other=0))
                seen = seen & (k < tl.load(ends + rows * cols + pixel, mask=seen, other=0))
            value = tl.load(weighed + pixel, mask=seen, other=0.0)
            along = a_at + row * a_row
            hat_b = tl.maximum(along - tl.abs(b_at + row * b_row), 0.0)
            hat_c = tl.maximum(along - tl.abs(c_at + row * c_row), 0.0)
            total += hat_b * hat_c * value
    return total


@triton.jit
def _coefficients(line, axis):
    """Of d along an axis: by column, by row, and at pixel (0, 0)."""
    return tl.load(line + 3 * axis), tl.load(line + 3 * axis + 1), tl.load(line + 3 * axis + 2)


@triton.jit
def gather_kernel(
    weighed,
    ends,
    table,
    out,
    views,
    rows,
    cols,
    nx,
    ny,
    nz,
    ENDS: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_Z: tl.constexpr,
):
    """Aᵀ: a program owns a tile of voxels and gathers the pixels that see them, view by view."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    deep, wide = tl.cdiv(nz, TILE_Z), tl.cdiv(ny, TILE_Y)
    lane = tl.arange(0, TILE_X * TILE_Y * TILE_Z)
    z = (tile % deep) * TILE_Z + lane % TILE_Z
    y = (tile // deep % wide) * TILE_Y + lane // TILE_Z % TILE_Y
    x = (tile // (deep * wide)) * TILE_X + lane // (TILE_Z * TILE_Y)
    member = (x < nx) & (y < ny) & (z < nz)
    total = tl.zeros([TILE_X * TILE_Y * TILE_Z], dtype=out.dtype.element_ty)
    for n in range(0, views):
        view = batch * views + n
        line = table + view * TABLE_WIDTH
        axes = tl.load(line + 24).to(tl.int32)
        for axis in range(0, 3):
            if (axes >> axis) & 1:
                rays = weighed + (view * 3 + axis) * rows * cols
                limits = ends + view * 2 * rows * cols
                total = _gather(total, line, rays, limits, (x, y, z), member, axis, (rows, cols, nx, ny, nz), ENDS)
        total = tl.where(tl.load(line + 26) > 0, float("nan"), total)
    voxel = batch * nx * ny * nz + (x * ny * nz + y * nz + z)
    tl.store(out + voxel, total, mask=member)
