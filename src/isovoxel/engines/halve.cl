// Means of neighbouring voxels along the axes that are halved, rounded half to even: those of geometry/resampling.py.
//
// Arrays are C-contiguous z, y, x. Positions are 64-bit. Macros set by the host for each build:
//   T            type of the voxels: integers of 8 or 16 bits, whose sums of eight have no rounding in an int
//   PAIR, BITS   unsigned type of two neighbours along x, and the bits of one
//   HZ, HY, HX   1 for an axis that is halved
//   ROWS, TILE   rows that a work item makes, and voxels of each: many on a CPU, which loops
//
// A voxel at an odd end is its own neighbour, which leaves the mean.

#define HALVINGS (HZ + HY + HX)

typedef struct __attribute__((packed)) { PAIR v; } pair_anywhere;

inline T mean(const int sum)
{
#if HALVINGS
    return (T)((sum + ((sum >> HALVINGS) & 1) + (1 << (HALVINGS - 1)) - 1) >> HALVINGS);
#else
    return (T)sum;
#endif
}

// What a row adds to mean x. Two voxels are loaded at once: compilers make vectors of that, and not of every other voxel.
inline int of_row(__global const T *row, const ulong x)
{
#if HX
    const PAIR both = ((__global const pair_anywhere *)row)[x].v;
    return (int)(T)both + (int)(T)(both >> BITS);
#else
    return row[x];
#endif
}

// Voxels n are those of a block, from voxel `first` of the buffer on; their means, m voxels, follow behind them.
__kernel void halve(__global T *voxels, ulong first, ulong nz, ulong ny, ulong nx, ulong mz, ulong my, ulong mx)
{
    voxels += first;
    const ulong begin = get_global_id(0) * TILE, end = min(begin + TILE, mx), z = get_global_id(2);
    const ulong z0 = z << HZ, z1 = min(z0 + HZ, nz - 1);
    // Whole pairs, and then a voxel that is its own neighbour, if there is one.
    const ulong pairs = HX ? min(end, nx / 2) : end;
    for (ulong y = get_global_id(1) * ROWS; y < min(my, (get_global_id(1) + 1) * ROWS); y++) {
        const ulong y0 = y << HY, y1 = min(y0 + HY, ny - 1);
        __global const T *rows[4] = {voxels + (z0 * ny + y0) * nx, voxels + (z0 * ny + y1) * nx,
                                     voxels + (z1 * ny + y0) * nx, voxels + (z1 * ny + y1) * nx};
        __global T *out = voxels + nz * ny * nx + (z * my + y) * mx;
        for (ulong x = begin; x < pairs; x++) {
            int sum = of_row(rows[0], x);
            if (HY)
                sum += of_row(rows[1], x);
            if (HZ)
                sum += of_row(rows[2], x);
            if (HZ && HY)
                sum += of_row(rows[3], x);
            out[x] = mean(sum);
        }
        if (begin <= pairs && pairs < end) {
            int sum = 0;
            for (int row = 0; row < 4; row += HY ? 1 : 2)
                if (HZ || row < 2)
                    sum += 2 * rows[row][nx - 1];
            out[pairs] = mean(sum);
        }
    }
}
