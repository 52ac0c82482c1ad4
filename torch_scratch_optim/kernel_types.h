// Numbers in half precision, for every target: computed with as float, rounded to even when stored.
struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };

INLINE unsigned bits_of(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
INLINE float float_of(unsigned u) { float x; memcpy(&x, &u, 4); return x; }

INLINE float load(float x) { return x; }
INLINE double load(double x) { return x; }
INLINE float to_float(double x) { return (float)x; }
INLINE double to_double(double x) { return x; }

INLINE float load(bfloat16 x) { return float_of((unsigned)x.bits << 16); }
INLINE bfloat16 to_bfloat16(float x) {
  const unsigned u = bits_of(x);
  const unsigned rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return {(unsigned short)(x != x ? 0x7fc0 : rounded)};
}

#ifdef __CUDA_ARCH__  // by instructions of the device, so that no header of CUDA is needed
INLINE float load(float16 x) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits)); return f; }
INLINE float16 to_float16(float x) {
  float16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x)); return h;
}
#else
INLINE float load(float16 x) {
  const unsigned sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
  const unsigned denormal = bits_of((float)(int)(x.bits & 0x3ff) * (1.0f / (1 << 24)));
  const unsigned special = rest | 0x7f800000;  // infinite or NaN
  const unsigned finite = rest < 0x00800000 ? denormal : rest + 0x38000000;
  return float_of(sign | (rest >= 0x0f800000 ? special : finite));
}
INLINE float16 to_float16(float x) {
  const unsigned u = bits_of(x), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
  const unsigned normal = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
  const unsigned denormal = bits_of(float_of(rest) + 0.5f) - 0x3f000000;
  const unsigned large = rest > 0x7f800000 ? 0x7e00 : 0x7c00;  // NaN, infinite
  const unsigned finite = rest < 0x38800000 ? denormal : normal;
  return {(unsigned short)(sign | (rest >= 0x477ff000 ? large : finite))};
}
#endif

// torch's powers: those that are cheap are not computed as powers.
template <typename T> INLINE T power(T x, T exponent) {
  return exponent == 2 ? x * x : exponent == 3 ? x * x * x : exponent == T(0.5) ? sqrt(x)
       : exponent == -1 ? 1 / x : exponent == -2 ? 1 / (x * x) : exponent == T(-0.5) ? 1 / sqrt(x)
       : pow(x, exponent);
}
