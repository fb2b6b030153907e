// Blosc 1 containers, made on a device: chunks are cut out of an array, bits of voxels are transposed, a codec compresses
// each block, and the pieces are put together; and the way back. One source for OpenCL and for CUDA, so that a machine
// without a GPU tests what a GPU runs.
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
#define WAIT_FOR_GROUP barrier(CLK_GLOBAL_MEM_FENCE)
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
#define WAIT_FOR_GROUP __syncthreads()
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

// Hacker's Delight, 7-3: a matrix of 8 by 8 bits is transposed by swaps of 1, 2 and 4.
INLINE u64 transposed(u64 x)
{
    u64 t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAul;
    x ^= t ^ (t << 7);
    t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCul;
    x ^= t ^ (t << 14);
    t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ul;
    return x ^ t ^ (t << 28);
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

// Mark the chunks that have a bit set. One item for 32 bytes of a chunk, of `groups`.
KERNEL void mark_full(GLOBAL const u8 *voxels, GLOBAL u32 *full, u32 chunk, u32 groups, u64 items)
{
    u64 item = ITEM;
    if (item >= items)
        return;
    const u64 number = item / groups, at = item % groups * 32;
    GLOBAL const u8 *from = voxels + number * chunk;
    u32 any = 0;
    for (u64 i = at; i < at + 32 && i < chunk; ++i)
        any |= from[i];
    if (any)
        full[number] = 1;
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
        x = transposed(x);
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

// ---- the way back: streams become voxels --------------------------------------------------------------------------

// Add to a length of LZ4's what the bytes behind its token say, the last of which is less than 255; `end` where there is
// no such byte.
INLINE u32 extended(u32 length, GLOBAL const u8 *stream, u32 *at, u32 end)
{
    if (length < 15)
        return length;
    while (*at < end) {
        u32 more = stream[(*at)++];
        length += more;
        if (more < 255)
            return length;
    }
    return end;
}

// Decompress streams of LZ4, of which nothing is believed. What would reach beyond its stream or its block, or what LZ4's
// own decoder does not accept either, is not done, and the stream has failed: `found`, the bytes that were written, is 0.
// One group for each stream. All its items read the same, and share the copying.
//
// Source: https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md
KERNEL void decompress_lz4(
    GLOBAL const u8 *encoded, GLOBAL u8 *blocks, GLOBAL const u64 *begins, GLOBAL const u64 *lengths,
    GLOBAL const u64 *targets, GLOBAL const u64 *sizes, GLOBAL u64 *found)
{
    GLOBAL const u8 *stream = encoded + begins[GROUP];
    GLOBAL u8 *block = blocks + targets[GROUP];
    const u32 end = (u32)lengths[GROUP], size = (u32)sizes[GROUP];
    u32 at = 0, made = 0;
    bool whole = false;
    while (at < end) {
        const u32 token = stream[at++], literals = extended(token >> 4, stream, &at, end);
        if (literals > end - at || literals > size - made)
            break;
        for (u32 i = LOCAL; i < literals; i += LOCALS)
            block[made + i] = stream[at + i];
        at += literals;
        made += literals;
        if (at == end) {
            whole = made == size;
            break;
        }
        if (end - at < 8 || size - made < 12) // only the last literals come as late
            break;
        const u32 back = stream[at] | (u32)stream[at + 1] << 8;
        at += 2;
        const u32 match = 4 + extended(token & 15, stream, &at, end);
        if (!back || back > made || match > size - made - 5)
            break;
        WAIT_FOR_GROUP; // until all that may be repeated is there
        GLOBAL const u8 *from = block + made - back;
        for (u32 i = LOCAL; i < match; i += LOCALS)
            block[made + i] = from[i < back ? i : i % back];
        made += match;
    }
    if (!LOCAL)
        found[GROUP] = whole ? size : 0;
}

// Copy pieces of encoded chunks to where the blocks are that they hold as they are. One group for each piece.
KERNEL void copy_pieces(
    GLOBAL const u8 *encoded, GLOBAL u8 *blocks, GLOBAL const u64 *begins, GLOBAL const u64 *targets,
    GLOBAL const u64 *lengths)
{
    const u64 length = lengths[GROUP];
    GLOBAL const u8 *from = encoded + begins[GROUP];
    GLOBAL u8 *to = blocks + targets[GROUP];
    for (u64 i = LOCAL; i < length; i += LOCALS)
        to[i] = from[i];
}

// Bring the bytes (1) or bits (2) of each block's voxels back together; of 0, nothing was moved. What is told of each
// chunk are four numbers: which of these, the bytes of a block, those of a voxel, and whether the chunk is there at all.
// The last block may be shorter; all others hold a multiple of 8 voxels. One item for 8 voxels of a chunk, of `groups`.
KERNEL void unshuffle(
    GLOBAL const u8 *shuffled, GLOBAL u8 *voxels, GLOBAL const u32 *told, u32 chunk, u32 groups, u64 items)
{
    u64 item = ITEM;
    if (item >= items)
        return;
    const u64 number = item / groups;
    GLOBAL const u32 *how = told + 4 * number;
    const u32 block = how[1], width = how[2];
    const u64 at = item % groups * 8 * width;
    if (!how[3] || at >= chunk)
        return;
    const u32 which = (u32)(at / block), bytes = bytes_of(which, chunk, block), count = bytes / width;
    const u32 first = (u32)((at - (u64)which * block) / width);
    GLOBAL const u8 *from = shuffled + number * chunk + (u64)which * block;
    GLOBAL u8 *to = voxels + number * chunk + at;
    const u32 voxels_here = count - first < 8 ? count - first : 8;
    if (how[0] == 1) {
        for (u32 i = 0; i < voxels_here; ++i)
            for (u32 byte = 0; byte < width; ++byte)
                to[i * width + byte] = from[(u64)byte * count + first + i];
        return;
    }
    if (how[0] == 0 || count % 8) {
        for (u32 i = 0; i < voxels_here * width; ++i)
            to[i] = from[(u64)first * width + i];
        return;
    }
    const u32 plane = count / 8;
    for (u32 byte = 0; byte < width; ++byte) {
        u64 x = 0;
        for (u32 bit = 0; bit < 8; ++bit)
            x |= (u64)from[(u64)(byte * 8 + bit) * plane + first / 8] << (8 * bit);
        x = transposed(x);
        for (u32 i = 0; i < 8; ++i)
            to[i * width + byte] = (u8)(x >> (8 * i));
    }
}

// Put chunks of `cz` by `cy` by `cx` voxels, `across` and `down` of them beside each other, into an array of `ny` by `nx`
// voxels a plane, which begins at a voxel of the first one; where a chunk is not there, voxels are `fill`. One item for
// each voxel of the array.
KERNEL void place(
    GLOBAL const u8 *voxels, GLOBAL u8 *array, GLOBAL const u32 *told, u32 sz, u32 sy, u32 sx, u32 ny, u32 nx, u32 cz,
    u32 cy, u32 cx, u32 down, u32 across, u32 width, u64 fill, u64 items)
{
    u64 item = ITEM;
    if (item >= items)
        return;
    u32 x = (u32)(item % nx) + sx, y = (u32)(item / nx % ny) + sy, z = (u32)(item / nx / ny) + sz;
    u64 number = ((u64)(z / cz) * down + y / cy) * across + x / cx;
    u64 voxel = ((u64)(z % cz) * cy + y % cy) * cx + x % cx;
    GLOBAL u8 *to = array + item * width;
    if (told[4 * number + 3])
        copy_voxel(to, voxels + (number * cz * cy * cx + voxel) * width, width);
    else
        for (u32 i = 0; i < width; ++i)
            to[i] = (u8)(fill >> (8 * i));
}
