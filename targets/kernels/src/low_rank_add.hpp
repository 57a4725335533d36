// The operator edgepeft.LowRankAdd:
//
//   LowRankAdd(y, x, A, B[, reach]) -> y + (x A) B
//
//   y      float32 [..., out]; where nothing else reads it, the result takes its memory
//   x      float32 [..., in], as many rows as y
//   A      float32 or float16 [adapters, in, rank]; adapters is 1, or x's first dimension: each row of the batch its own
//   B      of A's type [adapters, rank, out]; of rank 0 any width
//   reach  int32 [adapters, rank]: the part of B's columns in which a rank's row has numbers, -1: all, -2: none. Zeros are not read.
//   offsets (attribute) the first column of each part of a packed matrix; one part where it is missing
#pragma once

#include "ort.hpp"
#include "reach.hpp"

namespace edgepeft::kernels {

class LowRankAdd : public Node {
 public:
  static constexpr const char* kName = "LowRankAdd";
  static constexpr std::size_t kInputs = 5, kRequired = 4, kOutputs = 1;
  static constexpr bool kVariadic = false;
  static constexpr std::size_t kShared = 1;
  static constexpr int kFrom[kShared] = {0}, kTo[kShared] = {0};
  static constexpr std::size_t outputs(std::size_t) { return 1; }
  static constexpr std::size_t y_of(std::size_t) { return 0; }
  static constexpr ONNXTensorElementDataType kTypes[kInputs] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,  // float32 or float16
      ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32};

  LowRankAdd(const OrtApi* api, const OrtKernelInfo* info) : Node(api, info, kName) {
    std::size_t size = 0;
    if (!failed(api_->KernelInfoGetAttributeArray_int64(info, "offsets", nullptr, &size)) && size > 0) {
      offsets_.resize(size);
      failed(api_->KernelInfoGetAttributeArray_int64(info, "offsets", offsets_.data(), &size));
    }
  }

  OrtStatusPtr compute(OrtKernelContext* context) const {
    const OrtValue *x = nullptr, *a = nullptr, *b = nullptr, *reach = nullptr;
    Shape of_y, of_x, of_a, of_b, of_reach;
    Problem problem;
    if (auto status = begin(context, 0, 0, of_y, problem)) return status;
    if (auto status = api_->KernelContext_GetInput(context, 2, &a)) return status;
    if (auto status = shape(a, of_a)) return status;
    if (of_a.rank != 3) return wrong("A has shape " + of_a.text());
    if (of_a.dims[2] == 0 || problem.rows == 0) {  // the base
      copy(problem);
      return nullptr;
    }
    if (auto status = api_->KernelContext_GetInput(context, 1, &x)) return status;
    if (auto status = api_->KernelContext_GetInput(context, 3, &b)) return status;
    if (auto status = shape(x, of_x)) return status;
    if (auto status = shape(b, of_b)) return status;
    const int64_t adapters = of_a.dims[0], rank = of_a.dims[2];
    const bool half = of_a.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    if (of_a.type != of_b.type || (of_a.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && !half))
      return wrong("A and B must both be float32, or both float16");
    problem.type = half ? Type::kHalf : Type::kFloat;
    if (of_x.rank < 2 || of_x.rows() != static_cast<int64_t>(problem.rows) || of_x.last() != of_a.dims[1] || of_b.rank != 3 ||
        of_b.dims[0] != adapters || of_b.dims[1] != rank || of_b.dims[2] != static_cast<int64_t>(problem.out) ||
        (adapters != 1 && adapters != of_x.dims[0]))
      return wrong("the shapes do not fit: y " + of_y.text() + ", x " + of_x.text() + ", A " + of_a.text() + ", B " + of_b.text() +
                   "; A is [adapters, in, rank], B [adapters, rank, out], and adapters 1 or the batch");
    std::size_t inputs = 0;
    if (auto status = api_->KernelContext_GetInputCount(context, &inputs)) return status;
    if (inputs > 4) {
      if (auto status = api_->KernelContext_GetInput(context, 4, &reach)) return status;
    }
    if (reach != nullptr) {
      if (auto status = shape(reach, of_reach)) return status;
      if (of_reach.rank < 1 || of_reach.rows() * of_reach.last() == 0) {
        reach = nullptr;  // the default: nothing is known of zeros
      } else if (of_reach.rank != 2 || of_reach.dims[0] != adapters || of_reach.dims[1] != rank ||
                 of_reach.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
        return wrong("reach is " + of_reach.text() + "; it is int32 [adapters, rank], here [" + std::to_string(adapters) + ", " +
                     std::to_string(rank) + "]");
      }
    }
    if (!offsets_.empty() && offsets_.back() > static_cast<int64_t>(problem.out)) return wrong("a part begins beyond the output");
    const char *from_a = nullptr, *from_b = nullptr;
    const int32_t* parts = nullptr;
    if (auto status = pointer(x, problem.x)) return status;
    if (auto status = pointer(a, from_a)) return status;
    if (auto status = pointer(b, from_b)) return status;
    if (reach != nullptr) {
      if (auto status = pointer(reach, parts)) return status;
    }
    problem.rows /= adapters;
    problem.in = of_a.dims[1], problem.stride = rank;
    return each(context, problem, adapters, from_a, from_b, parts);
  }

 private:
  OrtStatusPtr each(OrtKernelContext* context, Problem problem, std::size_t adapters, const char* a, const char* b,
                    const int32_t* reach) const {
    static thread_local std::vector<Reached> reached;
    static thread_local std::vector<Group> groups;
    if (reached.size() < adapters) reached.resize(adapters);
    groups.clear();
    const std::size_t size = size_of(problem.type), rank = problem.stride;
    for (std::size_t i = 0; i < adapters; ++i) {
      Reached& mine = reached[i];
      find_parts(b, problem.type, rank, problem.out, reach, offsets_.data(), offsets_.size(), mine);
      problem.a = a, problem.rank = mine.rank;
      problem.parts = mine.parts.data(), problem.part_count = mine.parts.size();
      if (mine.rank == 0) {
        copy(problem);
      } else {
        groups.push_back({problem});
      }
      problem.x += problem.rows * problem.in;
      problem.y += problem.rows * problem.out, problem.result += problem.rows * problem.out;
      a += problem.in * rank * size, b += rank * problem.out * size;
      if (reach != nullptr) reach += rank;
    }
    return spread(context, groups.data(), groups.size());
  }

  std::vector<int64_t> offsets_;
};

}  // namespace edgepeft::kernels
