// One query token against a paged cache.
#pragma once
#include <algorithm>
#include <type_traits>

#include "softmax.h"
#include "vector.h"

namespace stride {

// Keys of one head of one layer, in a store [blocks * block_size, 2, kv_heads, head_dim]: where each position's key begins,
// in elements. The value lies `value` elements behind it.
template <class T>
struct Context {
    const T* store;
    const int32_t* places;
    int64_t count, value, head_dim;

    const T* key(int64_t i) const { return store + static_cast<int64_t>(places[i]) * 2 * value; }

    // Asks memory for sixteen positions: from here `behind` heads' keys and values, which lie in two runs.
    void fetch(int64_t from, int64_t behind) const {
        const int64_t bytes = behind * head_dim * static_cast<int64_t>(sizeof(T));
        for (int64_t i = from; i < std::min(from + 16, count); ++i) {
            const char* at = reinterpret_cast<const char*>(key(i));
            for (int64_t line = 0; line < bytes; line += 64) {
                _mm_prefetch(at + line, _MM_HINT_T1);
                _mm_prefetch(at + line + value * sizeof(T), _MM_HINT_T1);
            }
        }
    }
};

// Slots of the positions first..last of a block table, one after another; where the list then ends.
inline int32_t* find_places(const int32_t* table, int64_t block_size, int64_t first, int64_t last, int32_t* places) {
    int64_t block = first / block_size, within = first % block_size;
    for (int64_t position = first; position <= last; ++position) {
        *places++ = static_cast<int32_t>(table[block] * block_size + within);
        if (++within == block_size) ++block, within = 0;
    }
    return places;
}

// The same for the places start + i of the bits i that are set, but for the first `skipped` of them.
inline int32_t* find_places(
    const int32_t* table, int64_t block_size, int64_t start, uint64_t bits, int64_t skipped, int32_t* places) {
    for (; bits; bits &= bits - 1) {
        if (skipped-- > 0) continue;
        const int64_t place = start + __builtin_ctzll(bits);
        *places++ = static_cast<int32_t>(table[place / block_size] * block_size + place % block_size);
    }
    return places;
}

// The sums of sixteen vectors, in their order.
inline __m512 sums(const __m512* v) {
    __m512 pairs[8], fours[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const auto lanes = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    return lanes(lanes(fours[0], fours[1]), lanes(fours[2], fours[3]));
}

// What a query is multiplied by keys in: pairs of bfloat16 where the cache holds them, else float32.
template <class T, int VECTORS>
struct Query {
    static constexpr int PARTS = std::is_same_v<T, bf16> ? (VECTORS + 1) / 2 : VECTORS;
    __m512i part[PARTS];
    __mmask32 rest;

    Query(const float* query, int64_t size) {
        if constexpr (std::is_same_v<T, bf16>) {
            const int64_t left = size - (PARTS - 1) * 32;
            rest = left >= 32 ? 0xffffffffu : (1u << left) - 1;
            for (int v = 0; v < PARTS; ++v) {
                const __m512 low = load(query + v * 32, tail(std::max<int64_t>(0, size - v * 32)));
                const __m512 high = load(query + v * 32 + 16, tail(std::max<int64_t>(0, size - v * 32 - 16)));
                part[v] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            }
        } else {
            rest = tail(size - (PARTS - 1) * 16);
            for (int v = 0; v < PARTS; ++v) part[v] = _mm512_castps_si512(load(query + v * 16, v + 1 < PARTS ? 0xffff : rest));
        }
    }

    __m512 products(const T* key) const {
        __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 16
        for (int v = 0; v < PARTS; ++v) {
            if constexpr (std::is_same_v<T, bf16>) {
                const __m512i k = v + 1 < PARTS ? _mm512_loadu_si512(key + v * 32) : _mm512_maskz_loadu_epi16(rest, key + v * 32);
                sum = _mm512_dpbf16_ps(sum, (__m512bh)k, (__m512bh)part[v]);
            } else {
                const __m512 k = v + 1 < PARTS ? load(key + v * 16) : load(key + v * 16, static_cast<__mmask16>(rest));
                sum = _mm512_fmadd_ps(k, _mm512_castsi512_ps(part[v]), sum);
            }
        }
        return sum;
    }
};

// out [GROUP, head_dim] = the values of a context, weighted. The heads of a group share every load.
template <class T, int VECTORS, int GROUP>
inline void weigh(const Context<T>& context, const float* weights, int64_t stride, const float* factors, float* out) {
    const int64_t size = context.head_dim;
    const __mmask16 rest = tail(size - (VECTORS - 1) * 16);
    __m512 sum[GROUP][VECTORS];
#pragma GCC unroll 16
    for (int g = 0; g < GROUP; ++g)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sum[g][v] = _mm512_setzero_ps();
    for (int64_t j = 0; j < context.count; ++j) {
        const T* value = context.key(j) + context.value;
        __m512 p[GROUP];
#pragma GCC unroll 16
        for (int g = 0; g < GROUP; ++g) p[g] = _mm512_set1_ps(weights[g * stride + j]);
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) {
            const __m512 part = v + 1 < VECTORS ? load(value + v * 16) : load(value + v * 16, rest);
#pragma GCC unroll 16
            for (int g = 0; g < GROUP; ++g) sum[g][v] = _mm512_fmadd_ps(p[g], part, sum[g][v]);
        }
    }
#pragma GCC unroll 16
    for (int g = 0; g < GROUP; ++g)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v)
            store(out + g * size + v * 16, _mm512_mul_ps(sum[g][v], _mm512_set1_ps(factors[g])), v + 1 < VECTORS ? 0xffff : rest);
}

// Query heads [group, head_dim] (scaled) that share one key head, over a context -> out of the same shape. `scores` has
// room for `group` contexts, each rounded up to sixteens. `behind` heads are asked of memory ahead of
// their use. VECTORS is head_dim / 16 rounded up. Positions are taken in order, so the result depends on the query and its
// context alone.
template <class T, int VECTORS>
inline void attend(
    const Context<T>& context, const float* query, int64_t group, float softcap, int64_t behind, float* scores,
    float* out) {
    const int64_t size = context.head_dim, count = context.count, stride = (count + 15) / 16 * 16;
    for (int64_t g = 0; g < group; ++g) {
        const Query<T, VECTORS> q(query + g * size, size);
        for (int64_t j = 0; j < count; j += 16) {
            __m512 products[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) products[i] = q.products(context.key(std::min(j + i, count - 1)));
            if (g == 0 && behind > 0) context.fetch(j + 32, behind);
            _mm512_storeu_ps(scores + g * stride + j, sums(products));
        }
    }
    float factors[64];
    constexpr int TOGETHER = VECTORS <= 4 ? 4 : VECTORS <= 8 ? 2 : 1;
    for (int64_t g = 0; g < group;) {
        const int64_t now = std::min<int64_t>(TOGETHER, group - g);
        for (int64_t i = 0; i < now; ++i) factors[i] = soften(scores + (g + i) * stride, count, softcap);
        const float* weights = scores + g * stride;
        float* to = out + g * size;
        switch (now) {
            case 4: weigh<T, VECTORS, std::min(4, TOGETHER)>(context, weights, stride, factors, to); break;
            case 3: weigh<T, VECTORS, std::min(3, TOGETHER)>(context, weights, stride, factors, to); break;
            case 2: weigh<T, VECTORS, std::min(2, TOGETHER)>(context, weights, stride, factors, to); break;
            default: weigh<T, VECTORS, 1>(context, weights, stride, factors, to);
        }
        g += now;
    }
}

template <class T>
inline void attend_any(
    const Context<T>& context, const float* query, int64_t group, float softcap, int64_t behind, float* scores,
    float* out) {
    switch ((context.head_dim + 15) / 16) {
#define STRIDE_VECTORS(V) \
    case V: return attend<T, V>(context, query, group, softcap, behind, scores, out);
        STRIDE_VECTORS(1) STRIDE_VECTORS(2) STRIDE_VECTORS(3) STRIDE_VECTORS(4) STRIDE_VECTORS(5) STRIDE_VECTORS(6)
        STRIDE_VECTORS(8) STRIDE_VECTORS(16)
#undef STRIDE_VECTORS
    }
}

}  // namespace stride
