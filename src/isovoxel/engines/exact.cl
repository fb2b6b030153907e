// Scaling by tables: the rows of geometry/tables.py, applied on the device.
//
// Arrays are C-contiguous z, y, x. Positions are 64-bit. Macros set by the host for each build:
//   IN, OUT   voxel types read and written          ACC      type of weights and sums, float or double
//   K         weights per row                       V        voxels per vector along the contiguous axis
//   ROUND(v)  a sum as OUT, ROUNDV(v) V sums: rounded half to even and saturated where OUT is an integer type
//   SKIP      1 where a sample of weight 0 must not count, for it may be NaN or infinite
//
// fma everywhere and sums in the order of k: the same bits on every device and for every block.

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define INV JOIN(IN, V)
#define ACCV JOIN(ACC, V)
#define LOADV JOIN(vload, V)
#define STOREV JOIN(vstore, V)
#define TO_ACC JOIN(convert_, ACC)
#define TO_ACCV JOIN(convert_, ACCV)

#ifdef WEIGHTED
// One pass along an axis that is not the contiguous one. The arrays are (outer, n, inner) and (outer, m, inner):
//   out[o, j, i] = sum over k of weights[j, k] * in[o, first[j] + k, i]
// A table is one array: m rows of K weights, and after them the first sample of each row.
__kernel void along_rows(__global const IN *in, __global OUT *out, __global const ACC *weights,
                         const ulong n, const ulong m, const ulong inner)
{
    __global const int *first = (__global const int *)(weights + m * K);
    const ulong i = get_global_id(0) * V, j = get_global_id(1), o = get_global_id(2);
    if (i >= inner)
        return;
    in += (o * n + first[j]) * inner + i;
    out += (o * m + j) * inner + i;
    weights += j * K;
    if (i + V <= inner) {
        ACCV sum = (ACCV)(0);
        #if K <= 16  // longer ones take seconds to compile
        #pragma unroll
        #endif
        for (int k = 0; k < K; k++)
            if (!SKIP || weights[k] != 0)
                sum = fma((ACCV)(weights[k]), TO_ACCV(LOADV(0, in + k * inner)), sum);
        STOREV(ROUNDV(sum), 0, out);
    } else {
        for (ulong rest = 0; i + rest < inner; rest++) {
            ACC sum = 0;
            for (int k = 0; k < K; k++)
                if (!SKIP || weights[k] != 0)
                    sum = fma(weights[k], TO_ACC(in[k * inner + rest]), sum);
            out[rest] = ROUND(sum);
        }
    }
}

// One pass along the contiguous axis: arrays of (z, y, n) and (z, y, m).
__kernel void along_x(__global const IN *in, __global OUT *out, __global const ACC *weights,
                      const ulong n, const ulong m)
{
    __global const int *first = (__global const int *)(weights + m * K);
    const ulong x = get_global_id(0), row = get_global_id(2) * get_global_size(1) + get_global_id(1);
    if (x >= m)
        return;
    in += row * n + first[x];
    weights += x * K;
    ACC sum = 0;
    #if K <= 16
    #pragma unroll
    #endif
    for (int k = 0; k < K; k++)
        if (!SKIP || weights[k] != 0)
            sum = fma(weights[k], TO_ACC(in[k]), sum);
    out[row * m + x] = ROUND(sum);
}
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
    const int3 start = (int3)(x0[x], y0[y], z0[z]), stop = (int3)(x1[x], y1[y], z1[z]);
    const int3 size = stop - start;
    const int all = size.x * size.y * size.z;
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
