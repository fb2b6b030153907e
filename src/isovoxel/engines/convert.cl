// Between the source's voxels and the float32 that cle computes in. Arrays are C-contiguous z, y, x.
// Macros set by the host for each build:
//   IN         voxel type of source and result
//   FLOAT(v)   what of a voxel is computed with: all of it, or 16 of its 32 bits
//   VOXEL(v)   a result as a voxel, rounded half to even and saturated
//   JOIN(a, b) what a second half adds to the first: b where there is one pass

// The read box, its outermost voxels repeated over the pads around it.
__kernel void widen(__global const IN *in, __global float *out, const int3 n, const int3 before, const int3 padded)
{
    const int x = get_global_id(0), y = get_global_id(1), z = get_global_id(2);
    if (x >= padded.x)
        return;
    const int3 from = clamp((int3)(x, y, z) - before, (int3)(0), n - 1);
    out[((ulong)z * padded.y + y) * padded.x + x] = FLOAT(in[((ulong)from.z * n.y + from.y) * n.x + from.x]);
}

// The result as voxels.
__kernel void narrow(__global const float *in, __global IN *out, const int3 n)
{
    const int x = get_global_id(0), y = get_global_id(1), z = get_global_id(2);
    if (x >= n.x)
        return;
    const ulong i = ((ulong)z * n.y + y) * n.x + x;
    out[i] = JOIN(out[i], VOXEL(in[i]));
}
