// Draws tokens: argmax, or a race of Gumbel numbers after top-k, top-p and min-p, row by row. See kernels/token_sampling.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "philox.h"
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
    const int64_t* seed;
    const int64_t* number;  // of the draw, in its request
    int64_t* token;
    float* confidence;  // the token's probability in the plain softmax
    int64_t rows, vocabulary, purpose;
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

// A Gumbel number for every token of one draw, -log(-log u) with a uniform u of 32 bits. Sixty-four tokens take sixteen
// counters: token 64 g + 16 k + l has word k of counter 16 g + l, so that a vector of words is one of neighbouring tokens.
struct Gumbel {
    uint64_t seed, number;
    uint32_t purpose;

    static double of(uint32_t word) { return -std::log(-std::log((word + 0.5) * 0x1p-32)); }

    Words group(int64_t token) const {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i counter = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(token / 64 * 16)));
        return philox(seed, counter, static_cast<uint32_t>(number), purpose, static_cast<uint32_t>(number >> 32));
    }

    double at(int64_t token) const {
        alignas(64) uint32_t word[16];
        _mm512_store_si512(word, group(token).word[token / 16 % 4]);
        return of(word[token % 16]);
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

    // The token with the highest logit / temperature + Gumbel number of those that have a weight of at least `least`.
    // `best` has the highest logit: it sets a mark that few others need a logarithm to be measured against.
    int64_t race(const Gumbel& gumbel, float temperature, int64_t best, float least) const {
        int64_t winner = best;
        double score = -INFINITY;
        float mark = 0.0f;  // e^score in units of 1 - u = 2^-32, a little less
        const auto lead = [&](int64_t token, double reached) {
            winner = token;
            score = reached;
            mark = static_cast<float>(std::exp(score) * 0x1p-32 * (1.0 - 1e-4));
        };
        if (p[best] > 0.0f) lead(best, gumbel.at(best));
        const __m512 some = _mm512_set1_ps(std::max(least, FLT_MIN));
        for (int64_t group = 0; group < size; group += 64) {
            __m512 weight[4];
            __mmask16 open[4];
            // 1 - u is at least half a unit.
            const __m512 lowest = _mm512_max_ps(some, _mm512_set1_ps(0.5f * mark));
            for (int k = 0; k < 4; ++k) {
                const __mmask16 there = tail(std::max<int64_t>(0, size - group - 16 * k));
                weight[k] = load(p.data() + group + 16 * k, there);
                open[k] = _mm512_mask_cmp_ps_mask(there, weight[k], lowest, _CMP_GE_OQ);
            }
            if (!(open[0] | open[1] | open[2] | open[3])) continue;
            const Words words = gumbel.group(group);
            for (int k = 0; k < 4; ++k) {
                // -log u < e^(x - score) is needed to lead, and -log u is at least 1 - u.
                const __m512i inverse = _mm512_xor_si512(words.word[k], _mm512_set1_epi32(-1));
                const __m512 away = _mm512_add_ps(_mm512_cvtepu32_ps(inverse), _mm512_set1_ps(0.5f));
                __mmask16 hit = _mm512_mask_cmp_ps_mask(
                    open[k], _mm512_mul_ps(away, _mm512_set1_ps(mark)), weight[k], _CMP_LE_OQ);
                if (!hit) continue;
                alignas(64) uint32_t word[16];
                _mm512_store_si512(word, words.word[k]);
                for (; hit; hit &= hit - 1) {
                    const int lane = __builtin_ctz(hit);
                    const int64_t token = group + 16 * k + lane;
                    const double x = (static_cast<double>(logits[token]) - logits[best]) / temperature;
                    const double reached = x + Gumbel::of(word[lane]);
                    if (reached > score || (reached == score && token < winner)) lead(token, reached);
                }
            }
        }
        return winner;
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
        const Gumbel gumbel{static_cast<uint64_t>(d.seed[row]), static_cast<uint64_t>(d.number[row]),
                            static_cast<uint32_t>(d.purpose)};
        token = r.race(gumbel, temperature, best, d.min_p[row]);
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
