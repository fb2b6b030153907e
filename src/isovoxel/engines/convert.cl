// Between the source's voxels and the float32 that cle computes in. Arrays are C-contiguous z, y, x.
// Macros set by the host for each build:
//   IN         voxel type of source and result
//   FLOAT(v)   what of a voxel is computed with: all of it, or 16 of its 32 bits
//   VOXEL(v)   a result as a voxel, rounded half to even and saturated
//   JOIN(a, b) what a second half adds to the first: b where there is one pass

// The work items of a group share a row: one on a CPU, whose compiler makes vectors of the loops, warps on a GPU.

// The read box, its outermost voxels repeated over the pads around it.
__kernel void widen(__global const IN *restrict in, __global float *restrict out, const int3 n, const int3 before,
                    const int3 padded)
{
    const int y = get_global_id(1), z = get_global_id(2), first = get_local_id(0), step = get_local_size(0);
    const int from_y = clamp(y - before.y, 0, n.y - 1), from_z = clamp(z - before.z, 0, n.z - 1);
    in += ((ulong)from_z * n.y + from_y) * n.x;
    out += ((ulong)z * padded.y + y) * padded.x;
    for (int x = first; x < before.x; x += step)
        out[x] = FLOAT(in[0]);
    for (int x = first; x < n.x; x += step)
        out[before.x + x] = FLOAT(in[x]);
    for (int x = before.x + n.x + first; x < padded.x; x += step)
        out[x] = FLOAT(in[n.x - 1]);
}

// The result as voxels.
__kernel void narrow(__global const float *restrict in, __global IN *restrict out, const int3 n)
{
    const ulong row = ((ulong)get_global_id(2) * n.y + get_global_id(1)) * n.x;
    in += row;
    out += row;
    for (int x = get_local_id(0); x < n.x; x += get_local_size(0))
        out[x] = JOIN(out[x], VOXEL(in[x]));
}
