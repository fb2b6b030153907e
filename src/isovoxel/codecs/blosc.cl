// Blosc 1 containers, made on a device: chunks are cut out of an array, bits of voxels are transposed, a codec compresses each block, and the pieces are
// put together. One source for OpenCL and for CUDA, so that a machine without a GPU tests what a GPU runs.
//
// A chunk has `chunk` bytes of voxels of `width` bytes each, in blocks of `block` bytes, the last of which may be shorter.
// Its container is a header of 16 bytes, the place of each block in it (uint32), and for each block the length of its
// stream (uint32) and the stream. A stream as long as its block is the block itself. A container that would be longer
// than the chunk by more than its header is the header and the voxels as they are.
//
// Source: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst, and `shuffle.c` for blocks whose number of
// voxels is no multiple of 8, of which no bit is moved.

#ifdef __OPENCL_VERSION__
#define KERNEL __kernel
#define GLOBAL __global
#define ITEM get_global_id(0)
#define GROUP get_group_id(0)
#define LOCAL get_local_id(0)
#define LOCALS get_local_size(0)
typedef uchar u8;
typedef uint u32;
typedef ulong u64;
#else
#define KERNEL extern "C" __global__
#define GLOBAL
#define ITEM (blockIdx.x * (u64)blockDim.x + threadIdx.x)
#define GROUP blockIdx.x
#define LOCAL threadIdx.x
#define LOCALS blockDim.x
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
#endif

#define HEADER 16u
#define STORED 0x02u

#ifdef __OPENCL_VERSION__
#define INLINE static inline
#else
#define INLINE static __device__ inline
#endif

INLINE u32 bytes_of(u32 number, u32 chunk, u32 block)
{
    return (number + 1) * block < chunk ? block : chunk - number * block;
}

INLINE void put_u32(GLOBAL u8 *to, u32 value)
{
    for (u32 i = 0; i < 4; ++i)
        to[i] = (u8)(value >> (8 * i));
}

INLINE void copy_voxel(GLOBAL u8 *to, GLOBAL const u8 *from, u32 width)
{
    if (width == 2)
        *(GLOBAL unsigned short *)to = *(GLOBAL const unsigned short *)from;
    else if (width == 4)
        *(GLOBAL u32 *)to = *(GLOBAL const u32 *)from;
    else if (width == 8)
        *(GLOBAL u64 *)to = *(GLOBAL const u64 *)from;
    else
        *to = *from;
}

// Copy the voxels of chunks, z slowest, from number `first` on, to one after the other; beyond the volume they are 0.
// From a part of `nz` by `ny` by `nx` voxels of an array that begins at byte `begin`, and whose planes and rows are so many
// bytes apart. One item for each voxel.
KERNEL void gather(
    GLOBAL const u8 *array, GLOBAL u8 *voxels, u64 begin, u64 plane, u64 row, u32 nz, u32 ny, u32 nx, u32 cz, u32 cy,
    u32 cx, u32 first, u32 width, u64 items)
{
    u64 item = ITEM;
    if (item >= items)
        return;
    const u32 size = cz * cy * cx, across = (nx + cx - 1) / cx, down = (ny + cy - 1) / cy;
    u32 chunk = first + (u32)(item / size), voxel = (u32)(item % size);
    u32 x = chunk % across * cx + voxel % cx, y = chunk / across % down * cy + voxel / cx % cy;
    u32 z = chunk / across / down * cz + voxel / cx / cy;
    GLOBAL u8 *to = voxels + item * width;
    if (z < nz && y < ny && x < nx)
        copy_voxel(to, array + begin + z * plane + y * row + (u64)x * width, width);
    else
        for (u32 i = 0; i < width; ++i)
            to[i] = 0;
}

// Transpose the bits of each block: first the lowest bit of the first byte of all voxels, then the next bit.
// One item for 8 voxels of a block, as many for each block as the longest one has.
KERNEL void shuffle_bits(
    GLOBAL const u8 *voxels, GLOBAL u8 *shuffled, u32 chunk, u32 block, u32 width, u64 items)
{
    u64 item = ITEM;
    if (item >= items)
        return;
    const u32 blocks = (chunk + block - 1) / block, groups = (block / width + 7) / 8;
    u32 group = (u32)(item % groups), number = (u32)(item / groups % blocks);
    u64 base = item / groups / blocks * chunk + (u64)number * block;
    u32 count = bytes_of(number, chunk, block) / width;
    if (group * 8 >= count)
        return;
    GLOBAL const u8 *from = voxels + base + (u64)group * 8 * width;
    if (count % 8) {
        u32 end = count - group * 8 < 8 ? (count - group * 8) * width : 8 * width;
        for (u32 i = 0; i < end; ++i)
            shuffled[base + (u64)group * 8 * width + i] = from[i];
        return;
    }
    GLOBAL u8 *to = shuffled + base + group;
    const u32 plane = count / 8;
    for (u32 byte = 0; byte < width; ++byte) {
        u64 x = 0;
        for (u32 i = 0; i < 8; ++i)
            x |= (u64)from[i * width + byte] << (8 * i);
        // Hacker's Delight, 7-3: a matrix of 8 by 8 bits is transposed by swaps of 1, 2 and 4.
        u64 t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAul;
        x ^= t ^ (t << 7);
        t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCul;
        x ^= t ^ (t << 14);
        t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ul;
        x ^= t ^ (t << 28);
        for (u32 bit = 0; bit < 8; ++bit)
            to[(u64)(byte * 8 + bit) * plane] = (u8)(x >> (8 * bit));
    }
}

// The place of each stream in its container, and the length of each container. One item for each chunk.
KERNEL void lay_out(
    GLOBAL const u64 *lengths, GLOBAL u32 *places, GLOBAL u64 *sizes, u32 chunk, u32 block, u32 chunks)
{
    u32 number = (u32)ITEM;
    if (number >= chunks)
        return;
    const u32 blocks = (chunk + block - 1) / block;
    u64 size = HEADER + 4u * blocks;
    for (u32 i = 0; i < blocks; ++i) {
        u64 length = lengths[number * blocks + i];
        u32 most = bytes_of(i, chunk, block);
        places[number * blocks + i] = (u32)size;
        size += 4 + (length < most ? length : most);
    }
    sizes[number] = size < (u64)chunk + HEADER ? size : (u64)chunk + HEADER;
}

// Copy streams to their places, and write what stands before them; `gap` bytes are left behind each container.
// `begins` gets where each container begins, `base` being where the first does. One group for each block. Of a stream,
// `stride` bytes have room.
KERNEL void pack(
    GLOBAL const u8 *voxels, GLOBAL const u8 *shuffled, GLOBAL const u8 *streams, GLOBAL const u64 *lengths,
    GLOBAL const u32 *places, GLOBAL const u64 *sizes, GLOBAL u8 *packed, GLOBAL u64 *begins, u64 base, u64 stride,
    u32 chunk, u32 block, u32 width, u32 flags, u32 gap)
{
    const u32 blocks = (chunk + block - 1) / block;
    u32 stream = (u32)GROUP, at = stream / blocks, number = stream % blocks;
    u32 bytes = bytes_of(number, chunk, block), place = places[stream];
    u64 length = lengths[stream], begin = (u64)at * chunk + (u64)number * block;
    GLOBAL u8 *container = packed;
    for (u32 before = 0; before < at; ++before)
        container += sizes[before] + gap;
    bool stored = sizes[at] == (u64)chunk + HEADER;
    GLOBAL const u8 *from = streams + (u64)stream * stride;
    GLOBAL u8 *to = container + place + 4;
    if (stored) {
        from = voxels + begin;
        to = container + HEADER + (u64)number * block;
        length = bytes;
    } else if (length >= bytes) {
        from = shuffled + begin;
        length = bytes;
    }
    for (u64 i = LOCAL; i < length; i += LOCALS)
        to[i] = from[i];
    if (LOCAL)
        return;
    if (!stored) {
        put_u32(container + HEADER + 4 * number, place);
        put_u32(container + place, (u32)length);
    }
    if (number == 0) {
        begins[at] = base + (u64)(container - packed);
        container[0] = 2;
        container[1] = 1;
        container[2] = (u8)(flags | (stored ? STORED : 0u));
        container[3] = (u8)width;
        put_u32(container + 4, chunk);
        put_u32(container + 8, block);
        put_u32(container + 12, (u32)sizes[at]);
    }
}

// Write the checksum of each container behind it. One item for each chunk.
KERNEL void seal(
    GLOBAL u8 *packed, GLOBAL const u64 *begins, u64 base, GLOBAL const u64 *sizes, GLOBAL const u32 *checksums,
    u32 chunks)
{
    u32 number = (u32)ITEM;
    if (number < chunks)
        put_u32(packed + (begins[number] - base) + sizes[number], checksums[number]);
}
