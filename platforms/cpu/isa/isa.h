// Inner products in the instructions that this processor was compiled for: AVX-512, AVX2 and Arm's dot products.
//
// Chosen by the compiler's own feature macros. What an instruction set lacks is computed in vector types.

#pragma once

#include "portable.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace core {
namespace isa {

#if defined(__AVX512F__)
constexpr int kWidth = 64, kRows = 12, kGroupedRows = 6;  // 32 registers
#elif defined(__AVX2__)
constexpr int kWidth = 32, kRows = 3, kGroupedRows = 1;  // 16 registers, half as wide
#else
constexpr int kWidth = 16, kRows = 3, kGroupedRows = 1;
#endif

typedef portable::Types<kWidth>::Floats Floats;
typedef portable::Types<kWidth>::Ints Ints;
typedef portable::Types<kWidth>::Words Words;

inline Floats dot_bfloat16(const Floats& acc, const Words& weights, const Words& x) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(acc, bits_of<__m512bh>(weights), bits_of<__m512bh>(x));
#else
  return portable::dot_bfloat16(acc, weights, x);
#endif
}

// The instructions take one operand unsigned: signed weights are packed with 128 added, and their products contain
// it. Where there are none, weights keep their sign.
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
constexpr int kOffset = 128;
#else
constexpr int kOffset = 0;
#endif

// acc + the products of x, bytes within +-127, with weights from 0 to 15.
inline Ints dot_nibbles(const Ints& acc, const Words& weights, const Words& x) {
#if defined(__AVX512VNNI__)
  return bits_of<Ints>(_mm512_dpbusd_epi32(bits_of<__m512i>(acc), bits_of<__m512i>(weights), bits_of<__m512i>(x)));
#elif defined(__AVX512BW__)
  const __m512i pairs = _mm512_maddubs_epi16(bits_of<__m512i>(weights), bits_of<__m512i>(x));
  return acc + bits_of<Ints>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVXVNNI__)
  return bits_of<Ints>(
      _mm256_dpbusd_avx_epi32(bits_of<__m256i>(acc), bits_of<__m256i>(weights), bits_of<__m256i>(x)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i pairs = _mm256_maddubs_epi16(bits_of<__m256i>(weights), bits_of<__m256i>(x));
  return acc + bits_of<Ints>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif defined(__ARM_FEATURE_DOTPROD)
  return bits_of<Ints>(vdotq_s32(bits_of<int32x4_t>(acc), bits_of<int8x16_t>(weights), bits_of<int8x16_t>(x)));
#else
  return portable::dot_signed(acc, weights, x);
#endif
}

// acc + the products of x, bytes within +-127, with weights that had kOffset added. Where instructions add pairs in
// 16 bits, they are given |w| and x with the sign of w: 2 * 128 * 127 does not saturate, as 2 * 255 * 127 would.
inline Ints dot_bytes(const Ints& acc, const Words& weights, const Words& x) {
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__)) || defined(__ARM_FEATURE_DOTPROD)
  return dot_nibbles(acc, weights, x);  // no instruction of these saturates
#elif defined(__AVX512BW__)
  const __m512i w = bits_of<__m512i>(weights), bytes = bits_of<__m512i>(x);
  const __m512i turned = _mm512_mask_sub_epi8(bytes, _mm512_movepi8_mask(w), _mm512_setzero_si512(), bytes);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), turned);
  return acc + bits_of<Ints>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i w = bits_of<__m256i>(weights);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(bits_of<__m256i>(x), w));
  return acc + bits_of<Ints>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
  return portable::dot_signed(acc, weights, x);
#endif
}

// As many float16 as a vector has floats, to float.
inline Floats widen_halves(const uint16_t* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__) && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__aarch64__) && defined(__ARM_NEON)
  return bits_of<Floats>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
#else
  return portable::widen_halves<kWidth>(from);
#endif
}

inline Halves to_bfloat16(const Vector& v) {
#if defined(__AVX512BF16__)
  return bits_of<Halves>(_mm512_cvtneps_pbh(v));
#else
  return portable::to_bfloat16(v);
#endif
}

// The larger of each pair; b where either is not a number.
inline Vector larger(const Vector& a, const Vector& b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);  // the compiler compares and blends where one is a constant
#else
  return portable::larger(a, b);
#endif
}

// Lower halves from `even`, upper halves from `odd`.
inline Bits to_pairs(const Vector& even, const Vector& odd) {
#if defined(__AVX512BF16__)
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return bits_of<Bits>(_mm512_permutexvar_epi16(order, bits_of<__m512i>(_mm512_cvtne2ps_pbh(odd, even))));
#else
  return portable::to_pairs(even, odd);
#endif
}

}  // namespace isa
}  // namespace core
