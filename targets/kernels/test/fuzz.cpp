// Random shapes through every instruction set that this processor has, against sums in double. Built with sanitizers by the tests:
//   g++ -std=gnu++17 -O1 -g -fsanitize=address,undefined -DEDGEPEFT_X86 -I../src fuzz.cpp ../src/dispatch.cpp ...
// Arrays have exactly the elements that they need, so that a read or write beyond one is seen. Prints what it ran; exit 1 on a
// difference. Factors come as LowRankAdd's inputs, or as an adapter in one piece, which is also damaged and read again.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "adapter.hpp"
#include "low_rank.hpp"
#include "reach.hpp"
#include "skip_norm.hpp"

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

// Numbers as a factor stores them, appended to `to`.
void put(std::vector<unsigned char>& to, const std::vector<double>& values, Type type) {
  for (double value : values) {
    const float single = static_cast<float>(value);
    const uint16_t half = to_half(single);
    const int8_t byte = static_cast<int8_t>(value);
    const void* from = type == Type::kFloat ? static_cast<const void*>(&single) : type == Type::kHalf ? static_cast<const void*>(&half) : &byte;
    to.insert(to.end(), static_cast<const unsigned char*>(from), static_cast<const unsigned char*>(from) + size_of(type));
  }
}

int fail(const char* isa, unsigned seed, double error) {
  std::printf("%s: seed %u differs by %g\n", isa, seed, error);
  return 1;
}

struct Drawn {
  std::size_t rows, in, rank, out;
  Type type;
  std::vector<int64_t> offsets = {0};
  std::vector<float> x, y;
  std::vector<double> a, b;  // what the stored numbers are, without scales
  std::vector<int32_t> reach;
  std::vector<double> scale;  // [parts, rank]

  std::size_t end(std::size_t part) const { return part + 1 < offsets.size() ? offsets[part + 1] : out; }
  bool in_part(std::size_t r, std::size_t part) const { return reach[r] == kWhole || reach[r] == static_cast<int32_t>(part); }

  explicit Drawn(unsigned seed) {
    std::mt19937 random(seed);
    auto below = [&](int n) { return static_cast<int>(random() % n); };
    std::normal_distribution<float> normal;
    rows = 1 + below(kTile), in = 1 + below(70), rank = below(75), out = 1 + below(150), type = static_cast<Type>(below(3));
    for (int extra = below(3); extra > 0; --extra) offsets.push_back(offsets.back() + below(static_cast<int>(out - offsets.back()) + 1));
    x.resize(rows * in), y.resize(rows * out), a.resize(in * rank), b.resize(rank * out);
    for (auto& v : x) v = normal(random);
    for (auto& v : y) v = normal(random);
    for (auto* factor : {&a, &b})
      for (auto& v : *factor) {
        const float drawn = below(20) ? normal(random) : normal(random) * 1e-7f;  // subnormal as float16
        v = type == Type::kHalf ? of_half(to_half(drawn)) : type == Type::kFloat ? drawn : below(255) - 127;
      }
    reach.resize(rank), scale.assign(offsets.size() * rank, 1.0);
    for (auto& s : scale) {
      if (type == Type::kInt8) s = static_cast<float>(std::fabs(normal(random)) * 1e-4f);
    }
    for (std::size_t r = 0; r < rank; ++r) {
      reach[r] = below(static_cast<int>(offsets.size()) + 2) - 2;
      for (std::size_t part = 0; part < offsets.size(); ++part)
        for (std::size_t n = offsets[part]; n < end(part); ++n)
          if (!in_part(r, part)) b[r * out + n] = 0;
    }
  }

  // The adapter in one piece, with this as its second slot of three.
  std::vector<unsigned char> piece() const {
    std::vector<unsigned char> content(4 * kUnit);
    auto align = [&] {
      content.resize((content.size() + kUnit - 1) / kUnit * kUnit);
      return static_cast<uint32_t>(content.size() / kUnit);
    };
    Header header = {{'E', 'D', 'G', 'E', 'P', 'E', 'F', 'T'}, kLayout, static_cast<uint32_t>(type), 3, 0};
    Entry entry{};
    entry.in = in, entry.out = out, entry.rank = rank, entry.parts = offsets.size(), entry.a = align();
    put(content, a, type);
    std::vector<Record> records;
    for (std::size_t part = 0; part < offsets.size(); ++part) {
      std::vector<uint32_t> order;
      std::vector<float> scales;
      std::vector<double> rows_of_b;
      for (std::size_t r = 0; r < rank; ++r) {
        if (!in_part(r, part)) continue;
        order.push_back(r), scales.push_back(scale[part * rank + r]);
        rows_of_b.insert(rows_of_b.end(), &b[r * out + offsets[part]], &b[r * out] + end(part));
      }
      Record record{};
      record.begin = offsets[part], record.ranks = order.size();
      if (!order.empty()) {
        record.b = align(), put(content, rows_of_b, type);
        auto append = [&](const void* from, std::size_t size) {
          const uint32_t at = align();
          content.insert(content.end(), static_cast<const unsigned char*>(from), static_cast<const unsigned char*>(from) + size);
          return at;
        };
        if (order.size() < rank) record.order = append(order.data(), order.size() * 4);
        if (type == Type::kInt8) record.scale = append(scales.data(), scales.size() * 4);
      }
      records.push_back(record);
    }
    entry.first = records[0];
    if (records.size() > 1) {
      entry.more = align();
      const auto* from = reinterpret_cast<const unsigned char*>(&records[1]);
      content.insert(content.end(), from, from + (records.size() - 1) * sizeof(Record));
    }
    std::memcpy(content.data(), &header, sizeof(header));
    std::memcpy(content.data() + 2 * kUnit, &entry, sizeof(entry));
    return content;
  }
};

// Runs with scratch of just the size that it needs; `wide`: as a tile of many rows.
void compute(const Functions& isa, Problem p, bool wide) {
  std::vector<float> scratch(scratch_size(p));
  p.scratch = scratch.data();
  if (!wide) return isa.run(p);
  static thread_local Widened room;  // of the problem before, as a thread's is
  isa.plan_wide(p, room);
  for (std::size_t piece = 0; piece < kPieces; ++piece) isa.widen(p, room, piece);
  isa.run_wide(p, room);
}

int one(const Functions& functions, unsigned seed) {
  const char* isa = functions.name;
  const Drawn d(seed);
  std::mt19937 random(seed + 1);
  const bool in_place = random() % 2, with_reach = random() % 2, in_one_piece = d.type == Type::kInt8 || random() % 2;
  const bool wide = random() % 2;
  std::vector<float> y = d.y, result(d.y.size());
  Problem p;
  p.x = d.x.data(), p.y = y.data(), p.result = in_place ? y.data() : result.data();
  p.rows = d.rows, p.in = d.in, p.out = d.out;
  std::vector<unsigned char> a, b, content;
  Reached reached;
  Slot slot;
  if (in_one_piece) {
    content = d.piece();
    if (const char* what = read_slot(content.data(), content.size(), 0, 1, d.in, d.out, slot)) {
      std::printf("%s: seed %u: %s\n", isa, seed, what);
      return 1;
    }
    slot.fill(p);
  } else {
    put(a, d.a, d.type), put(b, d.b, d.type);
    find_parts(b.data(), d.type, d.rank, d.out, with_reach ? d.reach.data() : nullptr, d.offsets.data(), d.offsets.size(), reached);
    p.a = a.data(), p.rank = reached.rank, p.stride = d.rank, p.type = d.type;
    p.parts = reached.parts.data(), p.part_count = reached.parts.size();
  }
  if (p.rank == 0) {
    if (!in_place) std::copy(y.begin(), y.end(), result.begin());
  } else {
    compute(functions, p, wide);
  }
  for (std::size_t row = 0; row < d.rows; ++row) {
    std::vector<double> h(d.rank);
    for (std::size_t r = 0; r < d.rank; ++r)
      for (std::size_t k = 0; k < d.in; ++k) h[r] += static_cast<double>(d.x[row * d.in + k]) * d.a[k * d.rank + r];
    for (std::size_t part = 0; part < d.offsets.size(); ++part)
      for (std::size_t n = d.offsets[part]; n < d.end(part); ++n) {
        double sum = d.y[row * d.out + n], size = std::fabs(sum);
        for (std::size_t r = 0; r < d.rank; ++r) {
          const double term = h[r] * d.scale[part * d.rank + r] * d.b[r * d.out + n];
          sum += term, size += std::fabs(term);
        }
        // 24 bits over sums of at most 75 and 70 terms: far below 1e-5 of their size (h's own terms are as large as h times 10).
        const double error = std::fabs(sum - p.result[row * d.out + n]);
        if (!(error <= 1e-5 * (size + 10))) return fail(isa, seed, error);
      }
  }
  return 0;
}

// A damaged adapter is refused, or what it points to lies inside of it: run, under the sanitizers.
void damaged(const Functions& functions, unsigned seed) {
  const Drawn d(seed);
  std::mt19937 random(seed);
  const std::vector<unsigned char> whole = d.piece();
  for (int turn = 0; turn < 20; ++turn) {
    const std::size_t size = random() % 4 ? whole.size() : random() % whole.size();
    std::unique_ptr<unsigned char[]> content(new unsigned char[size]);
    std::copy(whole.begin(), whole.begin() + size, content.get());
    if (size >= 3 * kUnit)
      for (int hits = 1 + random() % 3; hits > 0; --hits) {
        const std::size_t at = random() % 3 ? 2 * kUnit + random() % sizeof(Entry) : random() % size;
        content[at] = random() % 2 ? random() % 256 : random() % 4;
      }
    Slot slot;
    if (read_slot(content.get(), size, 0, 1, d.in, d.out, slot) != nullptr || slot.rank == 0) continue;
    std::vector<float> result(d.y.size());
    Problem p;
    p.x = d.x.data(), p.y = d.y.data(), p.result = result.data();
    p.rows = d.rows, p.in = d.in, p.out = d.out;
    slot.fill(p);
    compute(functions, p, random() % 2);
  }
}

// silu(gate) * up, in new memory or over one of them.
int silu(const Functions& functions, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const std::size_t count = random() % 90;
  std::vector<float> gate(count), up(count), result(count);
  for (auto& v : gate) v = normal(random) * (random() % 5 ? 4 : 60);
  for (auto& v : up) v = normal(random);
  const std::vector<float> was_gate = gate, was_up = up;
  float* to = random() % 3 ? random() % 2 ? gate.data() : up.data() : result.data();
  functions.silu_mul(gate.data(), up.data(), to, count);
  for (std::size_t i = 0; i < count; ++i) {
    const double x = was_gate[i], wanted = x / (1 + std::exp(-x)) * was_up[i];
    // The logistic function to some units of 2^-24 of 1; it ends at -18, where it is 1.5e-8.
    if (!(std::fabs(to[i] - wanted) <= 3e-7 * std::fabs(x * was_up[i]))) return fail(functions.name, seed, to[i] - wanted);
  }
  return 0;
}

// A residual's norm, in new memory or over what it read.
int norm(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  SkipNorm n;
  n.rows = 1 + random() % 9, n.out = 1 + random() % 70, n.epsilon = 1e-5f;
  const bool in_place = random() % 2;
  n.skip_rows = !in_place && n.rows % 2 == 0 && random() % 2 ? n.rows / 2 : n.rows;
  n.centered = random() % 2;
  std::vector<float> y(n.rows * n.out), skip(n.skip_rows * n.out), gamma(n.out), beta(n.out), bias(n.out), sum(y.size()), result(y.size());
  for (auto* values : {&y, &skip, &gamma, &beta, &bias})
    for (auto& v : *values) v = normal(random);
  const std::vector<float> was_y = y, was_skip = skip;
  if (n.centered && random() % 2) n.beta = beta.data();
  if (random() % 2) n.bias = bias.data();
  n.y = y.data(), n.skip = skip.data(), n.gamma = gamma.data();
  n.sum = in_place ? y.data() : sum.data(), n.result = in_place ? skip.data() : result.data();
  const std::size_t half = random() % (n.rows + 1);  // as two threads would
  n.run(half, n.rows), n.run(0, half);
  for (std::size_t row = 0; row < n.rows; ++row) {
    double squares = 0, mean = 0;
    std::vector<double> total(n.out);
    for (std::size_t i = 0; i < n.out; ++i) {
      total[i] = static_cast<double>(was_y[row * n.out + i]) + was_skip[row % n.skip_rows * n.out + i] + (n.bias ? bias[i] : 0.0f);
      mean += n.centered ? total[i] / n.out : 0, squares += total[i] * total[i] / n.out;
    }
    const double root = std::sqrt(squares - mean * mean + 1e-5);
    for (std::size_t i = 0; i < n.out; ++i) {
      const double wanted = (total[i] - mean) / root * gamma[i] + (n.beta ? beta[i] : 0.0f);
      // 24 bits over a sum of at most 70 terms, and of a difference from the mean.
      const double most = 1e-5 * (1 + std::fabs(wanted) + std::fabs(total[i] / root));
      if (!(std::fabs(n.result[row * n.out + i] - wanted) <= most)) return fail("norm", seed, wanted);
      if (!(std::fabs(n.sum[row * n.out + i] - total[i]) <= 1e-6 * (1 + std::fabs(total[i])))) return fail("norm", seed, total[i]);
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const unsigned seeds = count > 1 ? std::atoi(words[1]) : 2000;
  for (unsigned seed = 0; seed < seeds; ++seed)
    if (norm(seed)) return 1;
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    const Functions* found = named(isa);
    if (found == nullptr) continue;
    const Functions& functions = *found;
    for (unsigned seed = 0; seed < seeds; ++seed)
      if (one(functions, seed) || silu(functions, seed)) return 1;
    for (unsigned seed = 0; seed < seeds / 4; ++seed) damaged(functions, seed);
    int failed[2] = {};
    std::thread other([&] { for (unsigned seed = 0; seed < seeds / 4; ++seed) failed[0] |= one(functions, seed); });
    for (unsigned seed = seeds / 4; seed < seeds / 2; ++seed) failed[1] |= one(functions, seed);
    other.join();
    if (failed[0] || failed[1]) return 1;
    std::printf("%s: %u shapes agree\n", isa, seeds);
  }
  return 0;
}
