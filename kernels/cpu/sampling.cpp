// Draws tokens: argmax, or inversion after top-k, top-p and min-p, row by row. See kernels/token_sampling.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "team.h"
#include "vector.h"

namespace stride {

constexpr float COLDEST = 1e-5f;  // below it, differences of logits overflow, and the argmax is meant

struct Drawing {
    const float* logits;  // [rows, vocabulary]
    const float* temperature;
    const int64_t* top_k;  // 0: off
    const float* top_p;
    const float* min_p;
    const double* uniform;  // in (0, 1)
    int64_t* token;
    float* confidence;  // the token's probability in the plain softmax
    int64_t rows, vocabulary;
};

// What a thread needs to draw a row.
struct Desk {
    std::vector<float> p, kept;
    std::vector<uint64_t> keys;

    void fit(int64_t vocabulary) {
        if (static_cast<int64_t>(p.size()) < vocabulary) p.resize(vocabulary);
        keys.reserve(vocabulary);
        kept.reserve(vocabulary);
    }
};

struct Row {
    const float* logits;
    int64_t size;
    std::vector<float>& p;
    std::vector<uint64_t>& keys;
    std::vector<float>& kept;

    // Index of the first highest logit.
    int64_t best() const {
        __m512 most = _mm512_set1_ps(-INFINITY);
        for (int64_t i = 0; i < size; i += 16)
            most = _mm512_mask_max_ps(most, tail(size - i), most, load(logits + i, tail(size - i)));
        const __m512 highest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        for (int64_t i = 0; i < size; i += 16) {
            const __mmask16 hit = _mm512_mask_cmp_ps_mask(tail(size - i), load(logits + i, tail(size - i)), highest, _CMP_EQ_OQ);
            if (hit) return i + __builtin_ctz(hit);
        }
        return 0;
    }

    // exp((logit - highest) / temperature) in `p`, if `kept`; returns the sum.
    double soften(float highest, float temperature, bool kept) {
        const __m512 top = _mm512_set1_ps(highest), rate = _mm512_set1_ps(1.0f / temperature);
        const __m512 lowest = _mm512_set1_ps(-87.0f);
        __m512d total = _mm512_setzero_pd();
        for (int64_t i = 0; i < size; i += 16) {
            const __mmask16 mask = tail(size - i);
            const __m512 x = _mm512_mul_ps(_mm512_sub_ps(load(logits + i, mask), top), rate);
            // What is banned, or too far below to be a number, is zero and cannot be drawn.
            const __m512 e = _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(mask, x, lowest, _CMP_GT_OQ), exp(x));
            if (kept) store(p.data() + i, e, mask);
            total = _mm512_add_pd(total, _mm512_cvtps_pd(_mm512_castps512_ps256(e)));
            total = _mm512_add_pd(total, _mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1)));
        }
        return _mm512_reduce_add_pd(total);
    }

    // A token and its weight as one number: sorted, the heaviest come first, and equals in the order of the vocabulary.
    static uint64_t key(float weight, int64_t token) {
        uint32_t bits;
        std::memcpy(&bits, &weight, 4);
        return static_cast<uint64_t>(~bits) << 32 | static_cast<uint64_t>(token);
    }
    float weight(uint64_t key) const { return p[key & 0xffffffff]; }

    // In `keys` every token of at least this weight; returns how much they weigh together.
    double above(float least) {
        double total = 0.0;
        keys.clear();
        const __m512 bound = _mm512_set1_ps(least);
        for (int64_t i = 0; i < size; i += 16) {
            __mmask16 hit = _mm512_mask_cmp_ps_mask(tail(size - i), load(p.data() + i, tail(size - i)), bound, _CMP_GE_OQ);
            for (; hit; hit &= hit - 1) {
                const int64_t token = i + __builtin_ctz(hit);
                keys.push_back(key(p[token], token));
                total += p[token];
            }
        }
        return total;
    }

    // Orders `keys` so far that the fewest of the first which weigh `target` together come first; how many those are.
    int64_t heaviest(double target) {
        int64_t low = 0, high = static_cast<int64_t>(keys.size());
        double sum = 0.0;
        while (high - low > 32) {
            const int64_t middle = (low + high) / 2;
            std::nth_element(keys.begin() + low, keys.begin() + middle, keys.begin() + high);
            double half = 0.0;
            for (int64_t i = low; i < middle; ++i) half += weight(keys[i]);
            if (sum + half >= target) {
                high = middle;
            } else {
                sum += half;
                low = middle;
            }
        }
        std::sort(keys.begin() + low, keys.begin() + high);
        while (low < high && (low == 0 || sum < target)) sum += weight(keys[low++]);
        return low;
    }

    // Zeros what top-k and then top-p leave out; top-p takes a share of what top-k leaves.
    void restrict_to(int64_t top_k, float top_p, double total) {
        const int64_t most = top_k > 0 ? std::min(top_k, size) : size;
        // The likeliest weighs 1: looks further down until enough are found.
        float least = 1.0f / 64;
        double found = above(least);
        while (least > 0.0f && static_cast<int64_t>(keys.size()) < most && (top_k > 0 || found < top_p * total)) {
            least = least > 1e-36f ? least / 32 : 0.0f;
            found = above(least);
        }
        if (static_cast<int64_t>(keys.size()) > most) {
            std::nth_element(keys.begin(), keys.begin() + most, keys.end());
            keys.resize(most);
        }
        if (top_p < 1.0f) {
            double whole = total;
            if (top_k > 0) {
                whole = 0.0;
                for (const uint64_t k : keys) whole += weight(k);
            }
            keys.resize(heaviest(top_p * whole));
        }
        kept.clear();
        for (const uint64_t k : keys) kept.push_back(weight(k));
        std::fill(p.begin(), p.begin() + size, 0.0f);
        for (size_t i = 0; i < keys.size(); ++i) p[keys[i] & 0xffffffff] = kept[i];
    }

    // The first token whose cumulative weight exceeds the share `uniform` of all.
    int64_t draw(double uniform, float least) const {
        double total = 0.0;
        int64_t last = 0;
        for (int64_t i = 0; i < size; ++i)
            if (p[i] >= least && p[i] > 0.0f) total += p[i], last = i;
        const double target = uniform * total;
        double sum = 0.0;
        for (int64_t i = 0; i < size; ++i) {
            if (p[i] < least || p[i] <= 0.0f) continue;
            sum += p[i];
            if (sum > target) return i;
        }
        return last;
    }
};

inline void draw_row(const Drawing& d, int64_t row, Desk& desk) {
    Row r{d.logits + row * d.vocabulary, d.vocabulary, desk.p, desk.keys, desk.kept};
    const int64_t best = r.best();
    const float highest = r.logits[best], temperature = d.temperature[row];
    const double plain = r.soften(highest, 1.0f, temperature == 1.0f);
    int64_t token = best;
    if (temperature >= COLDEST) {
        const double total = temperature == 1.0f ? plain : r.soften(highest, temperature, true);
        if (d.top_k[row] > 0 || d.top_p[row] < 1.0f) r.restrict_to(d.top_k[row], d.top_p[row], total);
        token = r.draw(d.uniform[row], d.min_p[row]);
    }
    d.token[row] = token;
    d.confidence[row] = static_cast<float>(std::exp(static_cast<double>(r.logits[token] - highest)) / plain);
}

}  // namespace stride

extern "C" int stride_draw_tokens(const stride::Drawing* drawing, int threads) {
    return stride::guarded([&] {
        stride::Team team(1);
        static std::vector<stride::Desk> desks;
        if (static_cast<int>(desks.size()) < threads) desks.resize(threads);
        for (int i = 0; i < threads; ++i) desks[i].fit(drawing->vocabulary);
        stride::Pool::shared().run(threads, [&](int thread) {
            int phase = 0;
            team.share(phase, drawing->rows, 1, [&](int64_t row) { stride::draw_row(*drawing, row, desks[thread]); });
        });
    });
}
