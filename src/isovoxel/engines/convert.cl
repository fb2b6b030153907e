// Between the source's voxels and the float32 that cle computes in. Arrays are C-contiguous z, y, x.
// Macros set by the host for each build:
//   IN         voxel type of source and result
//   FLOAT(v)   what of a voxel is computed with: all of it, or 16 of its 32 bits
//   VOXEL(v)   a result as a voxel, rounded half to even and saturated
//   JOIN(a, b) what a second half adds to the first: b where there is one pass

// The work items of a group share a row: one on a CPU, whose compiler makes vectors of the loops, warps on a GPU.

// The read box, its outermost voxels repeated over the pads around it, and 0 beyond those where the array is larger.
__kernel void widen(__global const IN *restrict in, __global float *restrict out, const int3 n, const int3 before,
                    const int3 padded, const int3 whole)
{
    const int y = get_global_id(1), z = get_global_id(2), first = get_local_id(0), step = get_local_size(0);
    const int from_y = clamp(y - before.y, 0, n.y - 1), from_z = clamp(z - before.z, 0, n.z - 1);
    const int end = y < padded.y && z < padded.z ? padded.x : 0;
    in += ((ulong)from_z * n.y + from_y) * n.x;
    out += ((ulong)z * whole.y + y) * whole.x;
    for (int x = end + first; x < whole.x; x += step)
        out[x] = 0;
    if (end == 0)
        return;
    for (int x = first; x < before.x; x += step)
        out[x] = FLOAT(in[0]);
    for (int x = first; x < n.x; x += step)
        out[before.x + x] = FLOAT(in[x]);
    for (int x = before.x + n.x + first; x < end; x += step)
        out[x] = FLOAT(in[n.x - 1]);
}

// The result, the first voxels of an array that may be larger, as voxels.
__kernel void narrow(__global const float *restrict in, __global IN *restrict out, const int3 n, const int3 whole)
{
    in += ((ulong)get_global_id(2) * whole.y + get_global_id(1)) * whole.x;
    out += ((ulong)get_global_id(2) * n.y + get_global_id(1)) * n.x;
    for (int x = get_local_id(0); x < n.x; x += get_local_size(0))
        out[x] = JOIN(out[x], VOXEL(in[x]));
}

// Linear sums that left the range of float32 although no sample is NaN or infinite, as one voxel's samples near the largest
// do by rounding: again, from the samples, in numbers so much smaller that none can, saturated. Position x of the result
// lies at (x + 0.5) / factor + shift of the padded input, in whose coordinates sample 0 lies at 0.5, and around which 0 lies.
#define SMALLER 0x1p-8f

__kernel void mend(__global const IN *restrict in, __global float *restrict out, const int3 n, const int3 before,
                   const int3 padded, const int3 m, const int3 whole, const float3 factor, const float3 shift)
{
    const int y = get_global_id(1), z = get_global_id(2);
    out += ((ulong)z * whole.y + y) * whole.x;
    for (int x = get_local_id(0); x < m.x; x += get_local_size(0)) {
        if (out[x] - out[x] == 0)
            continue;
        const float3 at = ((float3)(x, y, z) + 0.5f) / factor + shift - 0.5f, below = floor(at), above = at - below;
        float sum = 0;
        for (int corner = 0; corner < 8; corner++) {
            const int3 side = (int3)(corner & 1, corner >> 1 & 1, corner >> 2), place = convert_int3(below) + side;
            const float3 weight = side == 1 ? above : 1.0f - above;
            if (any(place < 0) || any(place >= padded))
                continue;
            const int3 i = clamp(place - before, (int3)(0), n - 1);
            sum = fma(weight.x * weight.y * weight.z, in[((ulong)i.z * n.y + i.y) * n.x + i.x] * SMALLER, sum);
        }
        if (sum - sum == 0)
            out[x] = clamp(sum, -FLT_MAX * SMALLER, FLT_MAX * SMALLER) / SMALLER;
    }
}
