// Random shapes through every instruction set that this processor has, against sums in double. Built with sanitizers by the tests:
//   g++ -std=gnu++17 -O1 -g -fsanitize=address,undefined -DEDGEPEFT_X86 -I../src fuzz.cpp ../src/dispatch.cpp ...
// Arrays have exactly the elements that they need, so that a read or write beyond one is seen. Prints what it ran; exit 1 on a
// difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "low_rank.hpp"

using namespace edgepeft::kernels;

namespace {

// Rounds to the nearest float16 (normal numbers and zero, which is all that is drawn here).
uint16_t to_half(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const uint32_t sign = word >> 16 & 0x8000;
  word &= 0x7fffffff;
  if (word < 0x38800000) {  // below the least normal number: a multiple of 2^-24
    const float magnitude = std::fabs(value) * 0x1p24f;
    return sign | static_cast<uint16_t>(std::nearbyint(magnitude));
  }
  word += 0xfff + (word >> 13 & 1);
  return sign | ((word - (112u << 23)) >> 13);
}

double of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double value = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits & 0x8000 ? -value : value;
}

int fail(const char* isa, unsigned seed, double error) {
  std::printf("%s: seed %u differs by %g\n", isa, seed, error);
  return 1;
}

int one(const char* isa, Function run, unsigned seed) {
  std::mt19937 random(seed);
  auto below = [&](int n) { return static_cast<int>(random() % n); };
  std::normal_distribution<float> normal;
  const size_t rows = 1 + below(9), in = 1 + below(70), rank = below(75), out = 1 + below(150);
  const bool half = below(2), in_place = below(2), with_reach = below(2);
  std::vector<int64_t> offsets = {0};
  for (int extra = below(3); extra > 0; --extra) offsets.push_back(offsets.back() + below(static_cast<int>(out - offsets.back()) + 1));
  std::vector<float> x(rows * in), y(rows * out), result(rows * out), scratch(rows * rank);
  std::vector<double> a(in * rank), b(rank * out);
  for (auto& v : x) v = normal(random);
  for (auto& v : y) v = normal(random);
  for (auto* factor : {&a, &b})
    for (auto& v : *factor) {
      const float drawn = below(20) ? normal(random) : normal(random) * 1e-7f;  // subnormal as float16
      v = half ? of_half(to_half(drawn)) : drawn;
    }
  std::vector<int32_t> reach(rank);
  for (size_t r = 0; r < rank; ++r) {
    reach[r] = below(static_cast<int>(offsets.size()) + 2) - 2;
    if (!with_reach || reach[r] == kWhole) continue;
    for (size_t n = 0; n < out; ++n) {
      const bool mine = reach[r] >= 0 && static_cast<int64_t>(n) >= offsets[reach[r]] &&
                        (reach[r] + 1 == static_cast<int>(offsets.size()) || static_cast<int64_t>(n) < offsets[reach[r] + 1]);
      if (!mine) b[r * out + n] = 0;
    }
  }
  std::vector<float> af(a.begin(), a.end()), bf(b.begin(), b.end());
  std::vector<uint16_t> ah(half ? a.size() : 0), bh(half ? b.size() : 0);
  for (size_t i = 0; i < ah.size(); ++i) ah[i] = to_half(af[i]);
  for (size_t i = 0; i < bh.size(); ++i) bh[i] = to_half(bf[i]);
  std::vector<uint32_t> order(rank);
  Problem p;
  const std::vector<float> before = y;
  p.x = x.data(), p.y = y.data(), p.result = in_place ? y.data() : result.data();
  p.a = half ? static_cast<void*>(ah.data()) : af.data(), p.b = half ? static_cast<void*>(bh.data()) : bf.data();
  p.rows = rows, p.in = in, p.rank = rank, p.out = out, p.half = half;
  p.reach = with_reach ? reach.data() : nullptr;
  p.offsets = offsets.data(), p.parts = offsets.size();
  p.scratch = scratch.data(), p.order = order.data();
  run(p);
  for (size_t row = 0; row < rows; ++row) {
    std::vector<double> h(rank);
    for (size_t r = 0; r < rank; ++r)
      for (size_t k = 0; k < in; ++k) h[r] += static_cast<double>(x[row * in + k]) * a[k * rank + r];
    for (size_t n = 0; n < out; ++n) {
      double sum = before[row * out + n], size = std::fabs(sum);
      for (size_t r = 0; r < rank; ++r) sum += h[r] * b[r * out + n], size += std::fabs(h[r] * b[r * out + n]);
      // 24 bits over sums of at most 75 and 70 terms: far below 1e-5 of their size (h's own terms are as large as h times 10).
      const double error = std::fabs(sum - p.result[row * out + n]);
      if (!(error <= 1e-5 * (size + 10))) return fail(isa, seed, error);
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const unsigned seeds = count > 1 ? std::atoi(words[1]) : 2000;
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    Function run = named(isa);
    if (run == nullptr) continue;
    for (unsigned seed = 0; seed < seeds; ++seed)
      if (one(isa, run, seed)) return 1;
    int failed[2] = {};
    std::thread other([&] { for (unsigned seed = 0; seed < seeds / 4; ++seed) failed[0] |= one(isa, run, seed); });
    for (unsigned seed = seeds / 4; seed < seeds / 2; ++seed) failed[1] |= one(isa, run, seed);
    other.join();
    if (failed[0] || failed[1]) return 1;
    std::printf("%s: %u shapes agree\n", isa, seeds);
  }
  return 0;
}
