// How sure a distribution is of its token: entropy, and what the likeliest leads the next by. See kernels/token_sampling.
#include <algorithm>
#include <cmath>

#include "team.h"
#include "vector.h"

namespace stride {

struct Spread {
    const float* logits;       // [rows, vocabulary]
    const float* temperature;  // of the entropy
    float* entropy;            // in nats
    float* margin;             // at temperature 1
    int64_t rows, vocabulary;
};

inline void spread_row(const Spread& s, int64_t row) {
    const float* logits = s.logits + row * s.vocabulary;
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < s.vocabulary; ++i) {
        second = std::max(second, std::min(first, logits[i]));
        first = std::max(first, logits[i]);
    }
    const __m512 top = _mm512_set1_ps(first), rate = _mm512_set1_ps(1.0f / s.temperature[row]);
    const __m512 lowest = _mm512_set1_ps(-87.0f);
    double plain = 0.0, total = 0.0, moment = 0.0;  // sums of e^x at temperature 1, of e^(x/T), and of x/T e^(x/T)
    __m512d sums[3] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd()};
    const auto add = [&](int which, __m512 value) {
        sums[which] = _mm512_add_pd(sums[which], _mm512_cvtps_pd(_mm512_castps512_ps256(value)));
        sums[which] = _mm512_add_pd(sums[which], _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1)));
    };
    for (int64_t i = 0; i < s.vocabulary; i += 16) {
        const __mmask16 mask = tail(s.vocabulary - i);
        const __m512 x = _mm512_sub_ps(load(logits + i, mask), top), scaled = _mm512_mul_ps(x, rate);
        const __mmask16 seen = _mm512_mask_cmp_ps_mask(mask, scaled, lowest, _CMP_GT_OQ);
        const __m512 weight = _mm512_maskz_mov_ps(seen, exp(scaled));
        add(0, _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(mask, x, lowest, _CMP_GT_OQ), exp(x)));
        add(1, weight);
        add(2, _mm512_maskz_mul_ps(seen, scaled, weight));
    }
    plain = _mm512_reduce_add_pd(sums[0]), total = _mm512_reduce_add_pd(sums[1]), moment = _mm512_reduce_add_pd(sums[2]);
    s.entropy[row] = static_cast<float>(std::max(0.0, std::log(total) - moment / total));
    s.margin[row] = static_cast<float>((1.0 - std::exp(static_cast<double>(second) - first)) / plain);
}

}  // namespace stride

extern "C" int stride_spread(const stride::Spread* spread, int threads) {
    return stride::guarded([&] {
        stride::Team team(1);
        stride::Pool::shared().run(threads, [&](int) {
            int phase = 0;
            team.share(phase, spread->rows, 1, [&](int64_t row) { stride::spread_row(*spread, row); });
        });
    });
}
