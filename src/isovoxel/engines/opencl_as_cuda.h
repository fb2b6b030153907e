// What the kernels of this folder use of OpenCL C, in CUDA C++: one source for both, whose sums have the same bits.
//
// Compile without contraction of products and sums (`--fmad=false`): kernels say `fma` where they mean it. The kernels
// follow in namespace `opencl`, for CUDA has vector types of the same names, without arithmetic.

#define __kernel extern "C" __global__
#define __global
#define __local
#define LOCAL_ARRAY __shared__
#define restrict __restrict__
#define inline __device__ __forceinline__
#define FLT_MAX 3.402823466e+38f
#define CLK_LOCAL_MEM_FENCE
#define barrier(memory) __syncthreads()

__device__ __forceinline__ unsigned int along(const unsigned int axis, const uint3 of)
{
    return axis == 0 ? of.x : axis == 1 ? of.y : of.z;
}
#define get_group_id(axis) along(axis, blockIdx)
#define get_local_id(axis) along(axis, threadIdx)
#define get_local_size(axis) along(axis, {blockDim.x, blockDim.y, blockDim.z})
#define get_global_size(axis) \
    ((unsigned long)along(axis, {gridDim.x, gridDim.y, gridDim.z}) * get_local_size(axis))
#define get_global_id(axis) ((unsigned long)get_group_id(axis) * get_local_size(axis) + get_local_id(axis))

namespace opencl {

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
static_assert(sizeof(long) == 8, "long has 64 bits in OpenCL");

template <typename T, int N> struct alignas(N * sizeof(T)) Vector {
    typedef T Lane;
    T lane[N];
    Vector() = default;
    inline Vector(const T value)
    {
        #pragma unroll
        for (int l = 0; l < N; l++)
            lane[l] = value;
    }
};

// A vector made lane by lane.
#define EACH(N, expression) \
    _Pragma("unroll") for (int l = 0; l < N; l++) result.lane[l] = expression; \
    return result;

template <typename T, int N> inline Vector<T, N> fma(const Vector<T, N> a, const Vector<T, N> b, const Vector<T, N> c)
{
    Vector<T, N> result;
    EACH(N, ::fma(a.lane[l], b.lane[l], c.lane[l]))
}
inline float fma(const float a, const float b, const float c) { return ::fmaf(a, b, c); }
inline double fma(const double a, const double b, const double c) { return ::fma(a, b, c); }

template <typename T, int N> inline Vector<int, N> operator==(const Vector<T, N> a, const typename Vector<T, N>::Lane b)
{
    Vector<int, N> result;
    EACH(N, a.lane[l] == b ? -1 : 0)
}
template <int N> inline Vector<int, N> operator&(const Vector<int, N> a, const int b)
{
    Vector<int, N> result;
    EACH(N, a.lane[l] & b)
}
template <int N> inline Vector<int, N> &operator|=(Vector<int, N> &a, const Vector<int, N> b)
{
    for (int l = 0; l < N; l++)
        a.lane[l] |= b.lane[l];
    return a;
}

// In place of `condition ? a : b`, lane by lane.
#define WHERE(condition, a, b) where(condition, a, b)
template <typename T, int N>
inline Vector<T, N> where(const Vector<int, N> condition, const Vector<T, N> a, const Vector<T, N> b)
{
    Vector<T, N> result;
    EACH(N, condition.lane[l] ? a.lane[l] : b.lane[l])
}

template <typename To, typename T, int N> inline Vector<To, N> converted(const Vector<T, N> a)
{
    Vector<To, N> result;
    EACH(N, (To)a.lane[l])
}
// Rounded half to even and saturated. Every number of the range of `To` is one of `T`.
template <typename To, typename T, int N> inline Vector<To, N> saturated(const Vector<T, N> a)
{
    const bool is_signed = (To)-1 < (To)0;
    const T high = (T)((To)~(To)0 ^ (is_signed ? (To)((To)1 << (8 * sizeof(To) - 1)) : (To)0));
    const T low = is_signed ? -high - 1 : 0;
    Vector<To, N> result;
    EACH(N, (To)::rint(a.lane[l] > low ? (a.lane[l] < high ? a.lane[l] : high) : low))
}

#define VECTORS_OF(T, N) \
    typedef Vector<T, N> T##N; \
    template <typename From> inline T##N convert_##T##N(const Vector<From, N> a) { return converted<T>(a); } \
    template <typename From> inline T##N convert_##T##N##_sat_rte(const Vector<From, N> a) { return saturated<T>(a); }
#define VECTORS(T) VECTORS_OF(T, 2) VECTORS_OF(T, 4)
VECTORS(uchar) VECTORS(ushort) VECTORS(uint) VECTORS(ulong)
VECTORS(char) VECTORS(short) VECTORS(int) VECTORS(long)
VECTORS(float) VECTORS(double)

#define LOADS(N) \
    template <typename T> inline Vector<T, N> vload##N(const int, const T *from) \
    { \
        Vector<T, N> result; \
        EACH(N, from[l]) \
    } \
    template <typename T> inline void vstore##N(const Vector<T, N> value, const int, T *to) \
    { \
        _Pragma("unroll") for (int l = 0; l < N; l++) to[l] = value.lane[l]; \
    }
LOADS(2) LOADS(4)

struct int3 {
    int x, y, z;
};
#define INT3(x, y, z) {x, y, z}

inline float clamp(const float value, const float low, const float high) { return ::fminf(::fmaxf(value, low), high); }
inline float sign(const float value) { return value > 0 ? 1.0f : value < 0 ? -1.0f : 0.0f; }
inline int max(const int a, const int b) { return a > b ? a : b; }
inline ulong min(const ulong a, const ulong b) { return a < b ? a : b; }
