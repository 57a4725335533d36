// The sum of a residual and what is added to it, and its norm, row by row, as ONNX Runtime's SkipSimplifiedLayerNormalization (the
// root-mean-square norm) and SkipLayerNormalization compute them: each sum in order, in float32.
#pragma once

#include <cmath>
#include <cstddef>

namespace edgepeft::kernels {

struct SkipNorm {
  const float* y = nullptr;     // [rows, out]
  const float* skip = nullptr;  // [skip_rows, out], from the beginning again behind its end
  const float *gamma = nullptr, *beta = nullptr, *bias = nullptr;  // [out]; there may be no beta and no bias
  float* sum = nullptr;     // [rows, out]; may be y
  float* result = nullptr;  // [rows, out]; may be skip where that has as many rows
  std::size_t rows = 0, skip_rows = 0, out = 0;
  float epsilon = 0;
  bool centered = false;  // SkipLayerNormalization

  void run(std::size_t row, std::size_t end) const {
    // A row's sums wait for their own additions only: rows side by side take as long as one.
    if (centered) {
      for (; row + 4 <= end; row += 4) rows_of<4, true>(row);
      for (; row < end; ++row) rows_of<1, true>(row);
    } else {
      for (; row + 4 <= end; row += 4) rows_of<4, false>(row);
      for (; row < end; ++row) rows_of<1, false>(row);
    }
  }

 private:
  template <int ROWS, bool CENTERED>
  void rows_of(std::size_t row) const {
    float squares[ROWS] = {}, means[ROWS] = {};
    const float *from[ROWS], *other[ROWS];
    float* to[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      from[r] = y + (row + r) * out, to[r] = sum + (row + r) * out;
      other[r] = skip + (row + r) % skip_rows * out;
    }
    for (std::size_t i = 0; i < out; ++i) {
      const float count = static_cast<float>(i + 1);
      for (int r = 0; r < ROWS; ++r) {
        float value = from[r][i] + other[r][i];
        if (bias != nullptr) value += bias[i];
        to[r][i] = value;
        if constexpr (CENTERED) {  // Welford's: squares around the mean of what was seen
          const float before = value - means[r];
          means[r] += before / count;
          squares[r] += before * (value - means[r]);
        } else {
          squares[r] += value * value;
        }
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      const float mean = means[r], root = std::sqrt(squares[r] / static_cast<float>(out) + epsilon);
      float* mine = result + (row + r) * out;
      if constexpr (!CENTERED) {
        for (std::size_t i = 0; i < out; ++i) mine[i] = to[r][i] / root * gamma[i];
      } else if (beta == nullptr) {
        for (std::size_t i = 0; i < out; ++i) mine[i] = (to[r][i] - mean) / root * gamma[i];
      } else {
        for (std::size_t i = 0; i < out; ++i) mine[i] = (to[r][i] - mean) / root * gamma[i] + beta[i];
      }
    }
  }
};

}  // namespace edgepeft::kernels
