// Random matrices in 4 and 8 bits through BlockMatMul, against sums in double over the same rounded numbers. Built with sanitizers by
// the tests, as fuzz.cpp is; arrays have exactly the elements that they need. Prints what it ran; exit 1 on a difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "block_matmul.hpp"

using namespace edgepeft::kernels;

namespace {

// A float16 and what it is: 1 + fraction / 1024, times a power of two.
struct Half {
  uint16_t bits;
  double value;
  explicit Half(std::mt19937& random) : bits(static_cast<uint16_t>((8 + random() % 6) << 10 | random() % 1024)) {
    value = std::ldexp(1024 + (bits & 1023), (bits >> 10) - 25);
  }
};

// Memory of exactly so many bytes at a multiple of 64, so that a sanitizer sees what is read beyond.
struct Aligned {
  std::unique_ptr<char[]> held;
  char* at;
  explicit Aligned(std::size_t size) : held(new char[size + 64]), at(held.get() + (64 - reinterpret_cast<uintptr_t>(held.get()) % 64) % 64) {}
};

int one(const BlockMatMul& kernel, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const std::size_t blocks = 1 + random() % 40, n = 1 + random() % 40, rows = 1 + random() % (random() % 3 ? 12 : 70);
  const std::size_t k = blocks * kBlock - (random() % 2 ? random() % kBlock : 0);
  BlockMatrix matrix;
  matrix.n = n, matrix.k = k, matrix.bits = random() % 3 ? 4 : 8, matrix.half = random() % 2;
  const std::size_t size = 4 * matrix.bits;
  std::vector<unsigned char> weights(n * blocks * size), zeros(n * matrix.zero_bytes());
  std::vector<float> x(rows * k), bias(n), scales(n * blocks), y(rows * n);
  std::vector<uint16_t> halves;
  std::vector<double> scale;
  for (auto& v : weights) v = static_cast<unsigned char>(random());
  for (auto& v : zeros) v = static_cast<unsigned char>(random());
  for (auto& v : x) v = normal(random);
  for (auto& v : bias) v = normal(random);
  if (random() % 8 == 0) std::fill(x.begin(), x.begin() + k, 0.0f);  // a row of nothing
  for (std::size_t i = 0; i < n * blocks; ++i) {
    const Half half(random);
    halves.push_back(half.bits), scale.push_back(half.value), scales[i] = static_cast<float>(half.value);
  }
  matrix.weights = weights.data();
  matrix.scales = matrix.half ? static_cast<const void*>(halves.data()) : scales.data();
  if (random() % 4) matrix.zeros = zeros.data();
  if (random() % 2) matrix.bias = bias.data();
  const Aligned rounded(kernel.size(rows, k, matrix.bits));
  // As threads would: tiles of rows in any order, then columns in shares.
  constexpr std::size_t kTile = BlockMatMul::kTileRows;
  for (std::size_t tile = (rows + kTile - 1) / kTile; tile-- > 0;)
    kernel.round(x.data(), rows, k, matrix.bits, rounded.at, tile * kTile, rows < (tile + 1) * kTile ? rows : (tile + 1) * kTile);
  const std::size_t cut = random() % (n + 1);
  kernel.multiply(matrix, rounded.at, rows, y.data(), cut, n);
  kernel.multiply(matrix, rounded.at, rows, y.data(), 0, cut);
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t column = 0; column < n; ++column) {
      double sum = matrix.bias ? bias[column] : 0, terms = std::fabs(sum);
      for (std::size_t block = 0; block < blocks; ++block) {
        float most = 0;
        for (std::size_t i = block * kBlock; i < k && i < (block + 1) * kBlock; ++i) most = std::fmax(most, std::fabs(x[row * k + i]));
        const float inverse = most > 0 ? 127 / most : 0;
        const unsigned char* held = &weights[(column * blocks + block) * size];
        const std::size_t of_block = column * matrix.zero_bytes() + block * matrix.bits / 8;
        int zero = matrix.bits == 8 ? 128 : 8;
        if (matrix.zeros) zero = matrix.bits == 8 ? zeros[of_block] : zeros[of_block] >> (block % 2 * 4) & 15;
        for (std::size_t i = 0; i < kBlock && block * kBlock + i < k; ++i) {
          const int weight = (matrix.bits == 8 ? held[i] : held[i / 2] >> (i % 2 * 4) & 15) - zero;
          const double number = std::nearbyint(x[row * k + block * kBlock + i] * inverse) * (most / 127.0);
          sum += weight * scale[column * blocks + block] * number, terms += std::fabs(weight * scale[column * blocks + block] * number);
          // Before zero points are taken away, sums are as large as these.
          terms += zero * scale[column * blocks + block] * std::fabs(number);
        }
      }
      const double error = std::fabs(sum - y[row * n + column]);
      if (!(error <= 2e-6 * terms + 1e-30)) {
        std::printf("%s: seed %u: %zu x %zu in %d bits, %zu rows: [%zu, %zu] differs by %g\n", kernel.name, seed, n, k, matrix.bits, rows, row, column, error);
        return 1;
      }
    }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const unsigned seeds = count > 1 ? std::atoi(words[1]) : 2000;
  const BlockMatMul* kernel = block_matmul();
  if (kernel == nullptr) {
    std::printf("none: this processor runs ONNX Runtime's own node\n");
    return 0;
  }
  for (unsigned seed = 0; seed < seeds; ++seed)
    if (one(*kernel, seed)) return 1;
  std::printf("%s: %u matrices agree\n", kernel->name, seeds);
  return 0;
}
