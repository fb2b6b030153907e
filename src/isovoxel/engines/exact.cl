// Scaling by tables: the rows of geometry/resampling.py, applied on the device.
//
// Arrays are C-contiguous z, y, x. Positions are 64-bit. Macros set by the host for each build:
//   IN, OUT   voxel types read and written          ACC      type of weights and sums, float or double
//   K, KX     weights per row, also of x' table      V        voxels per vector along the contiguous axis
//   SPAN      sums to keep in local memory, set where x comes with the axis before it
//   SKIP      1 where a sample of weight 0 must not count, for it may be NaN or infinite
//   LOWEST, HIGHEST   the range of OUT, set where OUT is an integer type: sums are rounded half to even and saturated
//   SHIFT     1.5 * 2^23 for float, 1.5 * 2^52 for double: what is added to it is rounded to an integer
//   PROCESSOR 1 on a CPU
//   KZ, KY, KX, CHECKED, TILE   for `mend`: weights per row of each axis' table, 0 for an axis that stays as it is
//
// The work items of a group make a tile of a row together, V voxels each and then the next, so that any number of them
// will do: one on a CPU, whole warps on a graphics card.
//
// fma everywhere and sums in the order of k: the same bits on every device and for every block.
//
// CUDA compiles this behind `opencl_as_cuda.h`, which says in its own way what the next three say.
#ifndef LOCAL_ARRAY
#define LOCAL_ARRAY __local
#define WHERE(condition, a, b) ((condition) ? (a) : (b))
#define INT3(x, y, z) (int3)(x, y, z)
#endif

#ifdef WEIGHTED
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define INV JOIN(IN, V)
#define OUTV JOIN(OUT, V)
#define ACCV JOIN(ACC, V)
#define TO_ACCV JOIN(convert_, ACCV)
#define TO_OUTV JOIN(convert_, OUTV)

// PoCL's built-ins for vectors are functions, and are not inlined where it takes the processor for another one than its
// library was built for (PoCL 3.0 on Zen 4): they then take five times as long as these operators.
#if PROCESSOR
typedef struct __attribute__((packed)) { INV v; } in_anywhere;
typedef struct __attribute__((packed)) { OUTV v; } out_anywhere;
typedef struct __attribute__((packed)) { ACCV v; } acc_anywhere;
#define LOAD(p) ((__global const in_anywhere *)(p))->v
#define LOAD_WEIGHTS(p) ((__global const acc_anywhere *)(p))->v
#define STORE(value, p) ((__global out_anywhere *)(p))->v = value
#else
#define LOAD(p) JOIN(vload, V)(0, p)
#define LOAD_WEIGHTS(p) JOIN(vload, V)(0, p)
#define STORE(value, p) JOIN(vstore, V)(value, 0, p)
#endif

#if PROCESSOR && defined(__FMA__)  // clang contracts a product and a sum in one expression wherever it may
#pragma OPENCL FP_CONTRACT ON
#define FMA(a, b, c) ((a) * (b) + (c))
#else
#define FMA(a, b, c) fma(a, b, c)
#endif

// V sums as voxels.
inline OUTV rounded(ACCV sum)
{
#ifndef LOWEST
    return TO_OUTV(sum);
#elif PROCESSOR
    sum = sum > (ACCV)(LOWEST) ? sum : (ACCV)(LOWEST);
    sum = sum < (ACCV)(HIGHEST) ? sum : (ACCV)(HIGHEST);
    return TO_OUTV((sum + SHIFT) - SHIFT);
#else
    return JOIN(TO_OUTV, _sat_rte)(sum);
#endif
}

// Store the first `count` voxels of a vector.
inline void store(const OUTV value, __global OUT *out, const int count)
{
    if (count == V) {
        STORE(value, out);
        return;
    }
    union { OUTV all; OUT lane[V]; } part = {value};
    for (int l = 0; l < count; l++)
        out[l] = part.lane[l];
}

// The sums of `count` neighbouring voxels over K rows, which lie `inner` apart.
inline ACCV over_rows(__global const IN *in, __global const ACC *weights, const ulong inner, const int count)
{
    ACCV sum = (ACCV)(0);
    #if K <= 16  // longer ones take seconds to compile
    #pragma unroll
    #endif
    for (int k = 0; k < K; k++, in += inner) {
        if (SKIP && weights[k] == 0)
            continue;
        union { INV all; IN lane[V]; } samples;
        if (count == V)
            samples.all = LOAD(in);
        else
            for (int l = 0; l < V; l++)
                samples.lane[l] = in[l < count ? l : 0];
        sum = FMA((ACCV)(weights[k]), TO_ACCV(samples.all), sum);
    }
    return sum;
}

// One pass along an axis that is not the contiguous one. The arrays are (outer, n, inner) and (outer, m, inner):
//   out[o, j, i] = sum over k of weights[j, k] * in[o, first[j] + k, i]
// A table is one array: m rows of K weights, and after them the first sample of each row.
__kernel void along_rows(__global const IN *restrict in, __global OUT *restrict out,
                         __global const ACC *restrict weights, const ulong n, const ulong m, const ulong inner,
                         const ulong tile)
{
    __global const int *first = (__global const int *)(weights + m * K);
    const ulong j = get_global_id(1), o = get_global_id(2);
    const ulong begin = get_group_id(0) * tile, end = begin + tile < inner ? begin + tile : inner;
    in += (o * n + first[j]) * inner;
    out += (o * m + j) * inner;
    weights += j * K;
    for (ulong i = begin + get_local_id(0) * V; i < end; i += get_local_size(0) * V)
        if (i + V <= end)
            store(rounded(over_rows(in + i, weights, inner, V)), out + i, V);
        else
            store(rounded(over_rows(in + i, weights, inner, end - i)), out + i, end - i);
}

// What the pass along x reads: voxels, or the sums of the pass before it.
#ifdef SPAN
#define SAMPLES __local const ACC
#define SAMPLE ACC
#else
#define SAMPLES __global const IN
#define SAMPLE IN
#endif

// The sums of `count` neighbouring voxels along x, each with KX samples of its own; weights of a sample lie `m` apart.
inline ACCV over_x(SAMPLES *samples, __global const int *first, __global const ACC *weights, const ulong m,
                   const int start, const int count)
{
    ACCV sum = (ACCV)(0);
    #if KX <= 16
    #pragma unroll
    #endif
    for (int k = 0; k < KX; k++, samples++, weights += m) {
        union { JOIN(SAMPLE, V) all; SAMPLE lane[V]; } sample;
        union { ACCV all; ACC lane[V]; } weight;
        #pragma unroll
        for (int l = 0; l < V; l++)
            sample.lane[l] = samples[first[l < count ? l : 0] - start];
        if (count == V)
            weight.all = LOAD_WEIGHTS(weights);
        else
            for (int l = 0; l < V; l++)
                weight.lane[l] = weights[l < count ? l : 0];
        const ACCV next = FMA(weight.all, TO_ACCV(sample.all), sum);
        sum = SKIP ? WHERE(weight.all == 0, sum, next) : next;
    }
    return sum;
}

#ifdef SPAN
// A pass along another axis and the one along x at once: arrays of (outer, n, between, nx) and (outer, m, between, mx).
// A work group makes a tile of a row. The sums that it needs of the first pass stay in local memory, as the numbers
// that they would be outside.
__kernel void rows_then_x(__global const IN *restrict in, __global OUT *restrict out,
                          __global const ACC *restrict weights, __global const ACC *restrict weights_x, const ulong n,
                          const ulong m, const ulong between, const ulong nx, const ulong mx, const ulong tile)
{
    LOCAL_ARRAY ACC sums[SPAN + V] __attribute__((aligned(64)));
    __global const int *first = (__global const int *)(weights + m * K);
    __global const int *first_x = (__global const int *)(weights_x + mx * KX);
    const ulong j = get_global_id(1), o = get_global_id(2) / between, b = get_global_id(2) % between;
    const ulong begin = get_group_id(0) * tile, end = begin + tile < mx ? begin + tile : mx;
    if (begin >= mx)
        return;
    in += ((o * n + first[j]) * between + b) * nx;
    out += ((o * m + j) * between + b) * mx;
    weights += j * K;
    const int start = first_x[begin], stop = first_x[end - 1] + KX;
    for (int i = start + get_local_id(0) * V; i < stop; i += get_local_size(0) * V)
        if (i + V <= nx)
            *(__local ACCV *)(sums + i - start) = over_rows(in + i, weights, between * nx, V);
        else
            *(__local ACCV *)(sums + i - start) = over_rows(in + i, weights, between * nx, nx - i);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (ulong x = begin + get_local_id(0) * V; x < end; x += get_local_size(0) * V)
        if (x + V <= end)
            store(rounded(over_x(sums, first_x + x, weights_x + x, mx, start, V)), out + x, V);
        else
            store(rounded(over_x(sums, first_x + x, weights_x + x, mx, start, end - x)), out + x, end - x);
}
#else
// One pass along the contiguous axis: arrays of (rows, n) and (rows, m). A work group makes a tile of `each` rows; rows
// are the first axis of work, for there may be more of them than CUDA counts along another one.
// Its table has the weights of a k side by side, KX rows of m of them, so that they can be loaded as a vector.
__kernel void along_x(__global const IN *restrict in, __global OUT *restrict out,
                      __global const ACC *restrict weights, const ulong n, const ulong m, const ulong rows,
                      const ulong tile, const ulong each)
{
    __global const int *first = (__global const int *)(weights + m * KX);
    const ulong begin = get_group_id(1) * tile, end = begin + tile < m ? begin + tile : m;
    const ulong from = get_group_id(0) * each, to = from + each < rows ? from + each : rows;
    for (ulong row = from; row < to; row++)
        for (ulong x = begin + get_local_id(0) * V; x < end; x += get_local_size(0) * V)
            if (x + V <= end)
                store(rounded(over_x(in + row * n, first + x, weights + x, m, 0, V)), out + row * m + x, V);
            else
                store(rounded(over_x(in + row * n, first + x, weights + x, m, 0, end - x)), out + row * m + x, end - x);
}
#endif
#endif

#ifdef PICKED
// Nearest: one sample per axis, moved as bits of the voxel's size; -1 stands for the 0 around the volume.
__kernel void pick(__global const IN *in, __global IN *out, __global const int *iz, __global const int *iy,
                   __global const int *ix, const ulong ny, const ulong nx, const ulong mx)
{
    const ulong x = get_global_id(0), y = get_global_id(1), z = get_global_id(2);
    if (x >= mx)
        return;
    const int a = iz[z], b = iy[y], c = ix[x];
    out[(z * get_global_size(1) + y) * mx + x] =
        (a < 0 || b < 0 || c < 0) ? 0 : in[(a * ny + b) * nx + c];
}

// How many voxels of a footprint have this label.
inline int votes(__global const IN *in, const IN label, const int3 start, const int3 stop, const ulong ny, const ulong nx)
{
    int count = 0;
    for (int z = start.z; z < stop.z; z++)
        for (int y = start.y; y < stop.y; y++) {
            __global const IN *row = in + ((ulong)z * ny + y) * nx;
            for (int x = start.x; x < stop.x; x++)
                count += row[x] == label;
        }
    return count;
}

// Mode: the label that fills most of the footprint [start, stop) of an output voxel. Of labels that fill as much,
// the one in the middle wins if it is one of them, else the smallest. IN is signed where the labels are.
__kernel void mode(__global const IN *in, __global IN *out,
                   __global const int *z0, __global const int *z1, __global const int *iz,
                   __global const int *y0, __global const int *y1, __global const int *iy,
                   __global const int *x0, __global const int *x1, __global const int *ix,
                   const ulong ny, const ulong nx, const ulong mx)
{
    const ulong x = get_global_id(0), y = get_global_id(1), z = get_global_id(2);
    if (x >= mx)
        return;
    const ulong to = (z * get_global_size(1) + y) * mx + x;
    if (iz[z] < 0 || iy[y] < 0 || ix[x] < 0) {
        out[to] = 0;
        return;
    }
    const int3 start = INT3(x0[x], y0[y], z0[z]), stop = INT3(x1[x], y1[y], z1[z]);
    const int all = (stop.x - start.x) * (stop.y - start.y) * (stop.z - start.z);
    const IN middle = in[((ulong)iz[z] * ny + iy[y]) * nx + ix[x]];
    IN best = middle;
    int most = votes(in, middle, start, stop, ny, nx);
    for (int a = start.z; a < stop.z && 2 * most <= all; a++)
        for (int b = start.y; b < stop.y; b++)
            for (int c = start.x; c < stop.x; c++) {
                const IN label = in[((ulong)a * ny + b) * nx + c];
                if (label == best)
                    continue;
                const int count = votes(in, label, start, stop, ny, nx);
                if (count > most || (count == most && best != middle && label < best)) {
                    best = label;
                    most = count;
                }
            }
    out[to] = best;
}
#endif

#ifdef SMOOTHED
// Smooth: the label whose samples have the largest sum of linear weights, and of those that have the smallest label. 0
// has what the weights lack of 1, for it lies around the volume. Sums that differ by less than TIE are equal, so that
// rounding decides nothing. A table is one array, weights and then first samples; along x weights of a k lie side by side.
#pragma OPENCL FP_CONTRACT OFF
#define TIE 0x1p-40
__kernel void smooth(__global const IN *in, __global IN *out, __global const double *wz, __global const double *wy,
                     __global const double *wx, const ulong ny, const ulong nx, const ulong mx, const ulong mz,
                     const ulong my)
{
    const ulong x = get_global_id(0), y = get_global_id(1), z = get_global_id(2);
    if (x >= mx)
        return;
    const int z0 = ((__global const int *)(wz + mz * KZ))[z], y0 = ((__global const int *)(wy + my * KY))[y],
              x0 = ((__global const int *)(wx + mx * KX))[x];
    in += ((ulong)z0 * ny + y0) * nx + x0;
    out += (z * my + y) * mx + x;
    IN labels[KZ * KY * KX + 1];
    double shares[KZ * KY * KX + 1], all = 0;
    int n = 0, other = 0;
    for (int a = 0; a < KZ; a++)
        for (int b = 0; b < KY; b++)
            for (int c = 0; c < KX; c++, n++) {
                labels[n] = in[(a * ny + b) * nx + c];
                shares[n] = wz[z * KZ + a] * wy[y * KY + b] * wx[c * mx + x];
                all += shares[n];
                other |= labels[n] != labels[0];
            }
    if (1 - all > TIE) {
        labels[n] = 0;
        shares[n] = 1 - all;
        other |= labels[0] != 0;
        n++;
    }
    IN best = labels[0];
    double most = 0;
    for (int i = 0; i < n && other; i++) {
        double share = 0;
        for (int j = 0; j < n; j++)
            share += labels[j] == labels[i] ? shares[j] : 0;
        if (share > most + TIE || (share >= most - TIE && labels[i] < best)) {
            best = labels[i];
            most = fmax(share, most);
        }
    }
    *out = best;
}
#endif

#ifdef MENDED
// Sums that left the range of float32 on their way, although what they come to may be inside: again, from the samples,
// in numbers so much smaller that none can. What ends beyond the range is saturated. NaN and infinities among the samples
// stay what they are, wherever they have weight. A voxel is made of its own samples alone, and of its bits nothing
// changes where the sums were finite.
//
// Arrays are (., ny, nx) and (mz, my, mx); the tables are those of the passes. A work item makes TILE voxels, of which it
// looks at CHECKED at a time, V to a vector.
#define SMALLER 0x1p-8f
#define WEIGHT(K, table, at) (K ? (table)[at] : 1.0f)
#define FIRST(K, table, m, i) (K ? ((__global const int *)((table) + (m) * K))[i] : (int)(i))
#define EXPONENT 0x7f800000
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define INTV JOIN(int, V)
#if PROCESSOR
typedef struct __attribute__((packed)) { INTV v; } ints_anywhere;
#define LOAD_BITS(p) ((__global const ints_anywhere *)(p))->v
#else
#define LOAD_BITS(p) JOIN(vload, V)(0, (__global const int *)(p))
#endif

// Whether none of the next CHECKED voxels is NaN or infinite.
inline bool finite(__global const float *voxels)
{
    union { INTV all; int lane[V]; } found = {(INTV)(0)};
    for (int i = 0; i < CHECKED; i += V)
        found.all |= (LOAD_BITS(voxels + i) & EXPONENT) == EXPONENT;
    int any = 0;
    for (int l = 0; l < V; l++)
        any |= found.lane[l];
    return any == 0;
}

__kernel void mend(__global const float *restrict in, __global float *restrict out, __global const float *wz,
                   __global const float *wy, __global const float *wx, const ulong ny, const ulong nx, const ulong mz,
                   const ulong my, const ulong mx)
{
    const ulong begin = get_global_id(0) * TILE, all = mz * my * mx, end = begin + TILE < all ? begin + TILE : all;
    for (ulong i = begin; i < end;) {
        while (i + CHECKED <= end && finite(out + i))
            i += CHECKED;
        for (const ulong stop = i + CHECKED < end ? i + CHECKED : end; i < stop; i++) {
            if (out[i] - out[i] == 0)
                continue;
            const ulong x = i % mx, y = i / mx % my, z = i / mx / my;
            const int z0 = FIRST(KZ, wz, mz, z), y0 = FIRST(KY, wy, my, y), x0 = FIRST(KX, wx, mx, x);
            float sum = 0, special = 0;
            for (int a = 0; a < max(KZ, 1) && special == special; a++) {
                const float of_z = WEIGHT(KZ, wz, z * KZ + a);
                float plane = 0;
                for (int b = 0; b < max(KY, 1) && of_z != 0; b++) {
                    const float of_y = WEIGHT(KY, wy, y * KY + b);
                    __global const float *row = in + ((z0 + a) * ny + y0 + b) * nx + x0;
                    float line = 0;
                    for (int c = 0; c < max(KX, 1) && of_y != 0; c++) {
                        const float of_x = WEIGHT(KX, wx, c * mx + x), value = row[c];
                        if (of_x == 0)
                            continue;
                        if (value - value == 0)
                            line = fma(of_x, value * SMALLER, line);
                        else
                            special += sign(of_z) * sign(of_y) * sign(of_x) * value;
                    }
                    plane = fma(of_y, line, plane);
                }
                sum = fma(of_z, plane, sum);
            }
            if (special == 0)
                out[i] = clamp(sum, -FLT_MAX * SMALLER, FLT_MAX * SMALLER) / SMALLER;
            else if (special == special)
                out[i] = special;
        }
    }
}
#endif
