// The weights of one query's scores.
#pragma once
#include <cfloat>

#include "vector.h"

namespace stride {

// exp(s - max) of `count` scores in place, capped where `softcap` is not 0, zero up to the next sixteen; returns one over their sum.
inline float soften(float* scores, int64_t count, float softcap) {
    const __m512 least = _mm512_set1_ps(-FLT_MAX), cap = _mm512_set1_ps(softcap);
    __m512 most = least, total = _mm512_setzero_ps();
    for (int64_t j = 0; j < count; j += 16) {
        __m512 s = _mm512_loadu_ps(scores + j);
        if (softcap > 0.0f) s = _mm512_mul_ps(cap, tanh(_mm512_div_ps(s, cap)));
        _mm512_storeu_ps(scores + j, s);
        most = _mm512_mask_max_ps(most, tail(count - j), most, s);
    }
    const __m512 highest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t j = 0; j < count; j += 16) {
        const __m512 p = _mm512_maskz_mov_ps(tail(count - j), exp(_mm512_sub_ps(_mm512_loadu_ps(scores + j), highest)));
        _mm512_storeu_ps(scores + j, p);
        total = _mm512_add_ps(total, p);
    }
    return 1.0f / _mm512_reduce_add_ps(total);
}

}  // namespace stride
