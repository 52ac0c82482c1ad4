// What CUDA's text needs to be compiled by a C++ compiler and run on a CPU. It is included twice:
// before the text, where it gives CUDA's words a meaning, and after it, where it makes launchers.
// No header of the system is included: CUDA's text defines int64_t by itself, as another type.
#ifndef CUDA_ON_CPU
#define CUDA_ON_CPU

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads)
#define __grid_constant__
#define memcpy __builtin_memcpy

struct Index { unsigned x, y, z; };
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

// Each for float and double, as CUDA has them.
#define FUNCTION(name) \
  static inline float name(float x) { return __builtin_##name##f(x); } \
  static inline double name(double x) { return __builtin_##name(x); }
FUNCTION(sqrt) FUNCTION(fabs) FUNCTION(exp) FUNCTION(expm1) FUNCTION(log) FUNCTION(log1p)
FUNCTION(tanh) FUNCTION(floor) FUNCTION(ceil) FUNCTION(rint) FUNCTION(trunc)
#undef FUNCTION
static inline float pow(float x, float y) { return __builtin_powf(x, y); }
static inline double pow(double x, double y) { return __builtin_pow(x, y); }
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

// What stops a kernel on a GPU stops it here: the compiler's sanitizers call these, if asked to with
// -fsanitize=alignment,bounds. The numbers are the driver's for such errors.
static thread_local int fault;
static thread_local void* launch[5];
#define HANDLER extern "C" __attribute__((visibility("hidden"), noinline)) void
HANDLER __ubsan_handle_type_mismatch_v1(void*, void*) { fault = 716; __builtin_longjmp(launch, 1); }
HANDLER __ubsan_handle_out_of_bounds(void*, void*) { fault = 700; __builtin_longjmp(launch, 1); }

#else

// Threads run one after another, each to its end: there is no barrier that they would wait at. The
// last comes first, for nothing promises an order.
template <typename Parameter>
static int run(void (*kernel)(Parameter), unsigned blocks, unsigned threads, void* const* parameters) {
  fault = 0;
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  if (__builtin_setjmp(launch)) return fault;
  for (unsigned block = blocks; block--;)
    for (unsigned thread = threads; thread--;) {
      blockIdx = {block, 0, 0};
      threadIdx = {thread, 0, 0};
      kernel(*(const Parameter*)parameters[0]);
    }
  return 0;
}

#define LAUNCHER(name) \
  extern "C" int launch_##name(unsigned blocks, unsigned threads, void* const* parameters) { \
    return run(name, blocks, threads, parameters); \
  }
LAUNCHER(move_few)
#ifdef MANY_WORDS
LAUNCHER(move_many)
#endif
#ifdef OPTIONS
LAUNCHER(count)
#endif

#endif
