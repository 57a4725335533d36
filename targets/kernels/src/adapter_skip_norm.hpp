// The operator edgepeft.AdapterSkipNorm: a slot and the node behind it, com.microsoft's SkipSimplifiedLayerNormalization or
// SkipLayerNormalization, in one.
//
//   AdapterSkipNorm(y, x, adapter, rows, skip, gamma[, beta][, bias]) -> norm(sum), sum = y + (x A) B + skip [+ bias]
//
//   y, x, adapter, rows  as AdapterAdd's
//   skip   float32, of y's shape or of its last dimensions
//   gamma, beta, bias  float32 [out]
//   slot, epsilon, centered (attributes): norm is sum / sqrt(mean(sum^2) + epsilon) * gamma, or centered
//   (sum - mean(sum)) / sqrt(variance(sum) + epsilon) * gamma [+ beta]
//
// It adds in the order in which ONNX Runtime's own node does, so that without an adapter the bits are the same.
#pragma once

#include "adapter_node.hpp"
#include "skip_norm.hpp"

namespace edgepeft::kernels {

class AdapterSkipNorm : public AdapterNode {
 public:
  static constexpr const char* kName = "AdapterSkipNorm";
  static constexpr std::size_t kInputs = 8, kRequired = 6, kOutputs = 2;
  static constexpr bool kVariadic = false;
  static constexpr ONNXTensorElementDataType kTypes[kInputs] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  // The sum may take y's memory, and the result that of `skip`: a row of it is written after the row was read.
  static constexpr std::size_t kShared = 2;
  static constexpr int kFrom[kShared] = {0, 4}, kTo[kShared] = {1, 0};
  static constexpr std::size_t outputs(std::size_t) { return kOutputs; }
  static constexpr std::size_t y_of(std::size_t) { return 0; }

  AdapterSkipNorm(const OrtApi* api, const OrtKernelInfo* info) : AdapterNode(api, info, kName) {
    if (failed(api_->KernelInfoGetAttribute_int64(info, "slot", &slot_)) || slot_ < 0) slot_ = 0;
    failed(api_->KernelInfoGetAttribute_float(info, "epsilon", &epsilon_));
    int64_t centered = 0;
    centered_ = !failed(api_->KernelInfoGetAttribute_int64(info, "centered", &centered)) && centered != 0;
  }

  OrtStatusPtr compute(OrtKernelContext* context) const {
    const OrtValue* skip = nullptr;
    Shape of_y, of_x, of_skip;
    Problem problem;
    Given given;
    SkipNorm norm;
    if (auto status = begin(context, 0, 1, of_y, problem)) return status;
    OrtValue* result = nullptr;
    void* data = nullptr;
    if (auto status = api_->KernelContext_GetOutput(context, 0, of_y.dims, of_y.rank, &result)) return status;
    if (auto status = api_->GetTensorMutableData(result, &data)) return status;
    if (auto status = api_->KernelContext_GetInput(context, 4, &skip)) return status;
    if (auto status = shape(skip, of_skip)) return status;
    if (auto status = parameter(context, 5, of_y, norm.gamma)) return status;
    if (auto status = parameter(context, 6, of_y, norm.beta)) return status;
    if (auto status = parameter(context, 7, of_y, norm.bias)) return status;
    if (norm.gamma == nullptr) return wrong("there is no gamma");
    if (problem.rows == 0) return nullptr;
    norm.skip_rows = of_skip.rank < 1 ? 0 : of_skip.rows();
    if (norm.skip_rows == 0 || of_skip.last() != of_y.last() || problem.rows % norm.skip_rows != 0)
      return wrong("the shapes do not fit: y " + of_y.text() + ", skip " + of_skip.text());
    if (auto status = pointer(skip, norm.skip)) return status;
    norm.y = problem.y, norm.sum = problem.result, norm.result = static_cast<float*>(data);
    norm.rows = problem.rows, norm.out = problem.out, norm.epsilon = epsilon_, norm.centered = centered_;
    if (auto status = this->given(context, 2, 3, given)) return status;
    Group* groups = nullptr;
    std::size_t count = 0;
    if (given.bytes > 0) {
      if (auto status = input_x(context, 1, of_y, problem, of_x)) return status;
      Call& mine = call(1, given);
      if (given.batch == 0) {
        if (auto status = collect_one(slot_, problem, given, mine)) return status;
        groups = mine.groups.data(), count = mine.groups.size();
      } else {
        if (auto status = collect(slot_, problem, given, of_x, mine)) return status;
        if (auto status = finish(context, mine)) return status;
      }
      if (count > 0 || given.batch > 0) norm.y = problem.result;
    }
    return spread_rows(context, groups, count, norm.rows, norm.out,
                       [&norm](std::size_t row, std::size_t end, float*) { norm.run(row, end); });
  }

 private:
  // A tensor [out], or none where the node has no such input.
  OrtStatusPtr parameter(OrtKernelContext* context, std::size_t input, const Shape& of_y, const float*& found) const {
    std::size_t inputs = 0;
    const OrtValue* value = nullptr;
    if (auto status = api_->KernelContext_GetInputCount(context, &inputs)) return status;
    if (inputs <= input) return nullptr;
    if (auto status = api_->KernelContext_GetInput(context, input, &value)) return status;
    if (value == nullptr) return nullptr;
    Shape shape;
    if (auto status = this->shape(value, shape)) return status;
    if (shape.rank != 1 || shape.last() != of_y.last())
      return wrong("the shapes do not fit: y " + of_y.text() + ", input " + std::to_string(input) + " " + shape.text());
    return pointer(value, found);
  }

  int64_t slot_ = 0;
  float epsilon_ = 0;
  bool centered_ = false;
};

}  // namespace edgepeft::kernels
