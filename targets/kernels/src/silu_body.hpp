// silu(gate) * up, included by low_rank_body.hpp, as ONNX Runtime 1.32 computes it (onnxruntime/core/mlas/lib/logistic.cpp, whose
// polynomials are Eigen's): with the same operations in the same order, so that the bits are the same. A product that is added to something
// is one operation with it where the processor has one for that.

namespace edgepeft::kernels::EDGEPEFT_ISA {
namespace {

constexpr int kWide = EDGEPEFT_WIDTH;
using F = V<kWide>;
inline F all(float value) { return value - F{}; }

// x times 1 / (1 + exp(-x)), by a ratio of polynomials between -18 and 18.
inline F silu(F x) {
  F v = x < all(-18.0f) ? all(-18.0f) : x;
  v = v > all(18.0f) ? all(18.0f) : v;
  const F square = v * v;
  F p = square * all(4.37031012579801e-11f) + all(1.15627324459942e-07f);
  p = p * square + all(6.08574864600143e-05f);
  p = p * square + all(8.51377133304701e-03f);
  p = p * square + all(2.48287947061529e-01f);
  p = p * v;
  F q = square * all(6.10247389755681e-13f) + all(5.76102136993427e-09f);
  q = q * square + all(6.29106785017040e-06f);
  q = q * square + all(1.70198817374094e-03f);
  q = q * square + all(1.16817656904453e-01f);
  q = q * square + all(9.93151921023180e-01f);
  F logistic = p / q + all(0.5f);
  logistic = logistic < all(0.0f) ? all(0.0f) : logistic;
  logistic = logistic > all(1.0f) ? all(1.0f) : logistic;
  return x * logistic;
}

}  // namespace

void silu_mul(const float* gate, const float* up, float* result, size_t count) {
  size_t i = 0;
  for (; i + kWide <= count; i += kWide) store<kWide>(result + i, silu(load<kWide>(gate + i)) * load<kWide>(up + i));
  if (i == count) return;
  float rest[2][kWide] = {};
  std::memcpy(rest[0], gate + i, (count - i) * sizeof(float));
  std::memcpy(rest[1], up + i, (count - i) * sizeof(float));
  store<kWide>(rest[0], silu(load<kWide>(rest[0])) * load<kWide>(rest[1]));
  std::memcpy(result + i, rest[0], (count - i) * sizeof(float));
}

}  // namespace edgepeft::kernels::EDGEPEFT_ISA
