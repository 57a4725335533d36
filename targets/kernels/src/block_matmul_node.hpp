// The operator edgepeft.BlockMatMul: com.microsoft's MatMulNBits with accuracy_level 4 and blocks of 32, over weights as they lie in
// their file. ONNX Runtime's own node keeps a copy of them in another layout.
//
//   BlockMatMul(x, weights, scales[, zero_points][, bias]) -> x W' [+ bias]
//
//   x            float32 [..., K]; each block of 32 is rounded to 8 bits
//   weights      uint8 [N, blocks, 4 * bits], of 4 bits the even one of two the lower
//   scales       float32 or float16 [N, blocks]
//   zero_points  uint8 [N, ceil(blocks * bits / 8)]; none: 8 or 128
//   bias         float32 [N]
//   K, N, bits (attributes): bits is 4 or 8
#pragma once

#include <cstdlib>

#include "block_matmul.hpp"
#include "ort.hpp"

namespace edgepeft::kernels {

class BlockMatMulNode : public Node {
 public:
  static constexpr const char* kName = "BlockMatMul";
  static constexpr std::size_t kInputs = 5, kRequired = 3, kOutputs = 1;
  static constexpr bool kVariadic = false;
  static constexpr ONNXTensorElementDataType kTypes[kInputs] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr std::size_t kShared = 0;
  static constexpr int kFrom[1] = {0}, kTo[1] = {0};
  static constexpr std::size_t outputs(std::size_t) { return 1; }

  BlockMatMulNode(const OrtApi* api, const OrtKernelInfo* info) : Node(api, info, kName) {
    int64_t n = 0, k = 0, bits = 0;
    failed(api_->KernelInfoGetAttribute_int64(info, "N", &n));
    failed(api_->KernelInfoGetAttribute_int64(info, "K", &k));
    failed(api_->KernelInfoGetAttribute_int64(info, "bits", &bits));
    matrix_.n = n > 0 ? n : 0, matrix_.k = k > 0 ? k : 0, matrix_.bits = static_cast<int>(bits);
  }

  OrtStatusPtr compute(OrtKernelContext* context) const {
    const BlockMatMul* kernel = block_matmul();
    if (kernel == nullptr) return api_->CreateStatus(ORT_NOT_IMPLEMENTED, "BlockMatMul: this processor has no AVX-512 with dot products of bytes (VNNI)");
    if (matrix_.n == 0 || matrix_.k == 0 || (matrix_.bits != 4 && matrix_.bits != 8)) return wrong("N, K and bits (4 or 8) are attributes");
    const OrtValue* value = nullptr;
    Shape of_x;
    const float* x = nullptr;
    if (auto status = api_->KernelContext_GetInput(context, 0, &value)) return status;
    if (auto status = shape(value, of_x)) return status;
    if (of_x.rank < 1 || of_x.last() != static_cast<int64_t>(matrix_.k))
      return wrong("x is " + of_x.text() + ", and the weights are for " + std::to_string(matrix_.k));
    if (auto status = pointer(value, x)) return status;
    BlockMatrix matrix = matrix_;
    if (auto status = weights(context, matrix)) return status;
    const std::size_t rows = of_x.rows();
    of_x.dims[of_x.rank - 1] = static_cast<int64_t>(matrix.n);
    OrtValue* result = nullptr;
    void* y = nullptr;
    if (auto status = api_->KernelContext_GetOutput(context, 0, of_x.dims, of_x.rank, &result)) return status;
    if (auto status = api_->GetTensorMutableData(result, &y)) return status;
    return rows == 0 ? nullptr : run(context, *kernel, matrix, x, rows, static_cast<float*>(y));
  }

  // [..., K] -> [..., N]
  static OrtStatusPtr infer(OrtShapeInferContext* context) {
    OrtTensorTypeAndShapeInfo *of_x = nullptr, *of_y = nullptr;
    const OrtOpAttr* attribute = nullptr;
    int64_t dims[Shape::kMost], n = 0;
    const char* names[Shape::kMost];
    std::size_t rank = 0, size = 0;
    if (auto status = c_api->ShapeInferContext_GetInputTypeShape(context, 0, &of_x)) return status;
    if (auto status = c_api->GetDimensionsCount(of_x, &rank)) return status;
    if (rank < 1 || rank > Shape::kMost) return nullptr;
    if (auto status = c_api->GetDimensions(of_x, dims, rank)) return status;
    if (auto status = c_api->GetSymbolicDimensions(of_x, names, rank)) return status;
    if (auto status = c_api->ShapeInferContext_GetAttribute(context, "N", &attribute)) return status;
    if (auto status = c_api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &n, sizeof(n), &size)) return status;
    dims[rank - 1] = n, names[rank - 1] = "";
    if (auto status = c_api->CreateTensorTypeAndShapeInfo(&of_y)) return status;
    auto status = c_api->SetTensorElementType(of_y, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    if (status == nullptr) status = c_api->SetDimensions(of_y, dims, rank);
    if (status == nullptr) status = c_api->SetSymbolicDimensions(of_y, names, rank);
    if (status == nullptr) status = c_api->ShapeInferContext_SetOutputTypeShape(context, 0, of_y);
    c_api->ReleaseTensorTypeAndShapeInfo(of_y);
    return status;
  }

 private:
  // Multiplications that a thread takes at once; fewer take less time than it does to wake one.
  static constexpr std::size_t kShare = 1 << 18;

  struct Work {
    const BlockMatMul& kernel;
    const BlockMatrix& matrix;
    const float* x;
    void* rounded;
    std::size_t rows;
    float* y;
    std::size_t columns;  // of one share
  };

  OrtStatusPtr weights(OrtKernelContext* context, BlockMatrix& matrix) const {
    const int64_t n = matrix.n, blocks = matrix.blocks();
    Shape found;
    const OrtValue* value = nullptr;
    std::size_t inputs = 0;
    if (auto status = api_->KernelContext_GetInputCount(context, &inputs)) return status;
    if (auto status = held(context, 1, inputs, found, value)) return status;
    if (value == nullptr || found.rank != 3 || found.dims[0] != n || found.dims[1] != blocks || found.dims[2] != 4 * matrix.bits)
      return wrong("the weights are " + found.text() + ", expected " + std::to_string(n) + " x " + std::to_string(blocks) + " blocks of 32");
    if (auto status = pointer(value, matrix.weights)) return status;
    if (auto status = held(context, 2, inputs, found, value)) return status;
    matrix.half = found.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    if (value == nullptr || (!matrix.half && found.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) || found.size() != n * blocks)
      return wrong("the scales are " + found.text() + ", expected float32 or float16, one for each block");
    const unsigned char* scales = nullptr;
    if (auto status = pointer(value, scales)) return status;
    matrix.scales = scales;
    if (auto status = held(context, 3, inputs, found, value)) return status;
    if (value != nullptr) {
      if (found.size() != n * static_cast<int64_t>(matrix.zero_bytes())) return wrong("the zero points are " + found.text());
      if (auto status = pointer(value, matrix.zeros)) return status;
    }
    if (auto status = held(context, 4, inputs, found, value)) return status;
    if (value != nullptr) {
      if (found.size() != n) return wrong("the bias is " + found.text());
      if (auto status = pointer(value, matrix.bias)) return status;
    }
    return nullptr;
  }

  // An input of so many, or nothing where the node has none.
  OrtStatusPtr held(OrtKernelContext* context, std::size_t input, std::size_t inputs, Shape& found, const OrtValue*& value) const {
    value = nullptr, found.rank = 0;
    if (inputs <= input) return nullptr;
    if (auto status = api_->KernelContext_GetInput(context, input, &value)) return status;
    return value == nullptr ? nullptr : shape(value, found);
  }

  OrtStatusPtr run(OrtKernelContext* context, const BlockMatMul& kernel, const BlockMatrix& matrix, const float* x, std::size_t rows,
                   float* y) const {
    // The memory is the thread's, which runs one node at a time.
    static thread_local std::vector<char> memory;
    const std::size_t size = kernel.size(rows, matrix.k, matrix.bits) + kLine;
    if (memory.size() < size) memory.resize(size);
    void* rounded = memory.data() + (kLine - reinterpret_cast<uintptr_t>(memory.data()) % kLine) % kLine;
    Work work{kernel, matrix, x, rounded, rows, y, matrix.n};
    if (rows <= kTile) {
      kernel.round(x, rows, matrix.k, matrix.bits, rounded, 0, rows);
    } else if (auto status = api_->KernelContext_ParallelFor(context, round, (rows + kTile - 1) / kTile, 0, &work)) {
      return status;
    }
    OrtStatusPtr status = nullptr;
    std::size_t shares = rows * matrix.n * matrix.k / kShare;
    if (shares > kMostShares) shares = kMostShares;
    if (shares < 2) {
      kernel.multiply(matrix, rounded, rows, y, 0, matrix.n);
    } else {
      work.columns = ((matrix.n + shares - 1) / shares + 15) / 16 * 16;
      status = api_->KernelContext_ParallelFor(context, multiply, (matrix.n + work.columns - 1) / work.columns, 0, &work);
    }
    if (memory.size() > kMostKept) memory = {};
    return status;
  }

  static constexpr std::size_t kMostShares = 64;
  // Bytes that a thread keeps for its next call; long prompts take more for a moment.
  static constexpr std::size_t kMostKept = std::size_t{1} << 23;
  static_assert(kTile == BlockMatMul::kTileRows);

  static void round(void* user, std::size_t number) {
    const Work& work = *static_cast<const Work*>(user);
    const std::size_t from = number * kTile, to = work.rows - from < kTile ? work.rows : from + kTile;
    work.kernel.round(work.x, work.rows, work.matrix.k, work.matrix.bits, work.rounded, from, to);
  }

  static void multiply(void* user, std::size_t number) {
    const Work& work = *static_cast<const Work*>(user);
    const std::size_t from = number * work.columns, to = work.matrix.n - from < work.columns ? work.matrix.n : from + work.columns;
    work.kernel.multiply(work.matrix, work.rounded, work.rows, work.y, from, to);
  }

  BlockMatrix matrix_;
};

}  // namespace edgepeft::kernels
