// Philox4x32-10, sixteen counters at once. See kernels/philox.py.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace stride {

// Words 0..3 of sixteen counters: lane l of word[k] is word k of counter l.
struct Words {
    __m512i word[4];
};

// High and low 32 bits of every lane's product.
inline void multiply(__m512i lanes, uint32_t factor, __m512i& high, __m512i& low) {
    const __m512i wide = _mm512_set1_epi64(factor);
    const __m512i even = _mm512_mul_epu32(lanes, wide), odd = _mm512_mul_epu32(_mm512_srli_epi64(lanes, 32), wide);
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
    low = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
}

inline Words philox(uint64_t seed, __m512i word_0, uint32_t word_1, uint32_t word_2, uint32_t word_3) {
    uint32_t key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
    Words w{{word_0, _mm512_set1_epi32(word_1), _mm512_set1_epi32(word_2), _mm512_set1_epi32(word_3)}};
    for (int round = 0; round < 10; ++round, key_0 += 0x9E3779B9, key_1 += 0xBB67AE85) {
        __m512i high_0, low_0, high_1, low_1;
        multiply(w.word[0], 0xD2511F53, high_0, low_0);
        multiply(w.word[2], 0xCD9E8D57, high_1, low_1);
        w = {{_mm512_xor_si512(_mm512_xor_si512(high_1, w.word[1]), _mm512_set1_epi32(key_0)), low_1,
              _mm512_xor_si512(_mm512_xor_si512(high_0, w.word[3]), _mm512_set1_epi32(key_1)), low_0}};
    }
    return w;
}

}  // namespace stride
