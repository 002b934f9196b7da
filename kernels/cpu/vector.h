// Lanes of sixteen float32: loads from float32 and bfloat16, tails under a mask, and exp.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace stride {

using bf16 = uint16_t;

inline __mmask16 tail(int64_t count) { return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1); }

inline __m512 widen(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }
inline __m256i narrow(__m512 wide) { return (__m256i)_mm512_cvtneps_pbh(wide); }

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline __m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load(const bf16* from, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, from)); }

inline void store(float* to, __m512 value, __mmask16 mask) { _mm512_mask_storeu_ps(to, mask, value); }
inline void store(bf16* to, __m512 value, __mmask16 mask) { _mm256_mask_storeu_epi16(to, mask, narrow(value)); }

// Minimum and maximum give their second operand where one is not a number: x stands there, so that nothing that went
// wrong is made to look right.

// e^x to about one unit in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by a polynomial of degree 6.
inline __m512 exp(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.3f), _mm512_min_ps(_mm512_set1_ps(88.3f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline __m512 tanh(__m512 x) {
    const __m512 two = _mm512_set1_ps(2.0f);
    return _mm512_fmsub_ps(two, sigmoid(_mm512_mul_ps(two, x)), _mm512_set1_ps(1.0f));
}

enum Activation : int32_t { SILU = 0, GELU_TANH = 1, GELU = 2, RELU_SQUARED = 3, RELU = 4 };

// Abramowitz and Stegun 7.1.26 is too coarse for float32 here; erf goes through the library, lane by lane.
inline __m512 erf(__m512 x) {
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, x);
    for (float& lane : lanes) lane = __builtin_erff(lane);
    return _mm512_load_ps(lanes);
}

inline __m512 activate(__m512 x, Activation kind) {
    switch (kind) {
        case SILU: return _mm512_mul_ps(x, sigmoid(x));
        case RELU_SQUARED: {
            const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x);
            return _mm512_mul_ps(positive, positive);
        }
        case RELU: return _mm512_max_ps(_mm512_setzero_ps(), x);
        case GELU: {
            const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
            return _mm512_fmadd_ps(half, erf(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f))), half);
        }
        default: {
            // x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 is x sigmoid of twice the tanh's argument.
            const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
            return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_mul_ps(x, cubic), _mm512_set1_ps(1.5957691216f))));
        }
    }
}

}  // namespace stride
