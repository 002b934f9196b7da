// Root-mean-square and layer norms.
#pragma once
#include <cmath>

#include "vector.h"

namespace stride {

// The factor 1 / sqrt(mean square + epsilon) of x - centre.
inline __m512 inverse_rms(const float* x, int64_t size, float epsilon, __m512 centre) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        const __m512 part = _mm512_maskz_sub_ps(tail(size - i), load(x + i, tail(size - i)), centre);
        squares = _mm512_fmadd_ps(part, part, squares);
    }
    return _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / size + epsilon));
}

inline __m512 mean(const float* x, int64_t size) {
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) total = _mm512_add_ps(total, load(x + i, tail(size - i)));
    return _mm512_set1_ps(_mm512_reduce_add_ps(total) / size);
}

// weight (x - mean) / deviation + bias with the mean where `centred`, else without; `bias` may be null, `out` may be `x`.
template <class A>
void normalise(const float* x, int64_t size, const float* weight, const float* bias, float epsilon, bool centred, A* out) {
    const __m512 centre = centred ? mean(x, size) : _mm512_setzero_ps();
    const __m512 factor = inverse_rms(x, size, epsilon, centre);
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 mask = tail(size - i);
        __m512 value = _mm512_mul_ps(_mm512_sub_ps(load(x + i, mask), centre), factor);
        value = _mm512_mul_ps(value, load(weight + i, mask));
        if (bias) value = _mm512_add_ps(value, load(bias + i, mask));
        store(out + i, value, mask);
    }
}

}  // namespace stride
