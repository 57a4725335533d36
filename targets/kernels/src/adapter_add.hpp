// The operator edgepeft.AdapterAdd: a slot over an adapter that lies in one piece (adapter.hpp).
//
//   AdapterAdd(y, x, adapter[, rows]) -> y + (x A) B
//
//   y        float32 [..., out]; where nothing else reads it, the result takes its memory
//   x        float32 [..., in], as many rows as y
//   adapter  uint8 [..., bytes]: one adapter, or several behind one another; of no bytes without one
//   rows     int64 [batch]: where in `adapter` each row's own begins, -1: it has none. Empty: the first one serves all rows.
//   slot (attribute) the number of the slot in the adapter's table
#pragma once

#include "adapter_node.hpp"

namespace edgepeft::kernels {

class AdapterAdd : public AdapterNode {
 public:
  static constexpr const char* kName = "AdapterAdd";
  static constexpr std::size_t kInputs = 4, kRequired = 3, kOutputs = 1;
  static constexpr bool kVariadic = false;
  static constexpr ONNXTensorElementDataType kTypes[kInputs] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
  static constexpr std::size_t kShared = 1;
  static constexpr int kFrom[kShared] = {0}, kTo[kShared] = {0};
  static constexpr std::size_t outputs(std::size_t) { return 1; }
  static constexpr std::size_t y_of(std::size_t) { return 0; }

  AdapterAdd(const OrtApi* api, const OrtKernelInfo* info) : AdapterNode(api, info, kName) {
    if (failed(api_->KernelInfoGetAttribute_int64(info, "slot", &slot_)) || slot_ < 0) slot_ = 0;
  }

  OrtStatusPtr compute(OrtKernelContext* context) const {
    Shape of_y, of_x;
    Problem problem;
    Given given;
    if (auto status = begin(context, 0, 0, of_y, problem)) return status;
    if (auto status = this->given(context, 2, 3, given)) return status;
    if (given.bytes == 0 || problem.rows == 0) {  // the base
      copy(problem);
      return nullptr;
    }
    if (auto status = input_x(context, 1, of_y, problem, of_x)) return status;
    Call& mine = call(1, given);
    if (auto status = collect(slot_, problem, given, of_x, mine)) return status;
    return finish(context, mine);
  }

 private:
  int64_t slot_ = 0;
};

}  // namespace edgepeft::kernels
