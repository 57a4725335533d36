// The operator edgepeft.AdapterAddEach: slots that read the same activations, as gate and up, or q, k and v, do; one node for them all.
//
//   AdapterAddEach(x, adapter, rows, y, ...) -> y + (x A) B, ...
//
//   x, adapter, rows  as AdapterAdd's
//   y, ...            float32 [..., out], of each slot; where nothing else reads it, its result takes its memory
//   slots (attribute) the slots' numbers in the adapter's table
#pragma once

#include "adapter_node.hpp"

namespace edgepeft::kernels {

class AdapterAddEach : public AdapterNode {
 public:
  static constexpr const char* kName = "AdapterAddEach";
  static constexpr std::size_t kFirst = 3, kInputs = kFirst + 1, kRequired = kFirst, kOutputs = 1;
  static constexpr bool kVariadic = true;  // the last input, and the output
  static constexpr ONNXTensorElementDataType kTypes[kInputs] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr std::size_t kShared = 8;  // further ones have memory of their own
  static constexpr int kFrom[kShared] = {3, 4, 5, 6, 7, 8, 9, 10}, kTo[kShared] = {0, 1, 2, 3, 4, 5, 6, 7};
  static constexpr std::size_t outputs(std::size_t inputs) { return inputs > kFirst ? inputs - kFirst : 0; }
  static constexpr std::size_t y_of(std::size_t output) { return kFirst + output; }

  AdapterAddEach(const OrtApi* api, const OrtKernelInfo* info) : AdapterNode(api, info, kName) {
    std::size_t size = 0;
    if (!failed(api_->KernelInfoGetAttributeArray_int64(info, "slots", nullptr, &size)) && size > 0) {
      slots_.resize(size);
      failed(api_->KernelInfoGetAttributeArray_int64(info, "slots", slots_.data(), &size));
    }
    for (int64_t& slot : slots_)
      if (slot < 0) slot = 0;
  }

  OrtStatusPtr compute(OrtKernelContext* context) const {
    std::size_t inputs = 0, outputs = 0;
    if (auto status = api_->KernelContext_GetInputCount(context, &inputs)) return status;
    if (auto status = api_->KernelContext_GetOutputCount(context, &outputs)) return status;
    if (inputs != kFirst + slots_.size() || outputs != slots_.size())
      return wrong(std::to_string(slots_.size()) + " slots, " + std::to_string(inputs - kFirst) + " y and " + std::to_string(outputs) + " results");
    Given given;
    if (auto status = this->given(context, 1, 2, given)) return status;
    Call& mine = call(slots_.size(), given);
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      Shape of_y, of_x;
      Problem problem;
      if (auto status = begin(context, kFirst + i, i, of_y, problem)) return status;
      if (given.bytes == 0 || problem.rows == 0) {
        copy(problem);
        continue;
      }
      if (auto status = input_x(context, 0, of_y, problem, of_x)) return status;
      if (auto status = collect(slots_[i], problem, given, of_x, mine)) return status;
    }
    return finish(context, mine);
  }

 private:
  std::vector<int64_t> slots_;
};

}  // namespace edgepeft::kernels
