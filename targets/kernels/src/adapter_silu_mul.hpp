// The operator edgepeft.AdapterSiluMul: the slots of a gate and of what it gates, and the nodes behind them, in one.
//
//   AdapterSiluMul(x, adapter, rows, gate, up) -> silu(gate + (x A) B) * (up + (x A') B'), silu(v) = v / (1 + exp(-v))
//
//   x, adapter, rows  as AdapterAdd's
//   gate, up  float32 [..., out], of one shape; the result takes gate's memory where nothing else reads it
//   slots (attribute) the numbers of gate's and up's slots in the adapter's table
//
// silu is computed as by ONNX Runtime's own nodes, so that without an adapter the bits are the same.
#pragma once

#include <memory>

#include "adapter_node.hpp"

namespace edgepeft::kernels {

class AdapterSiluMul : public AdapterNode {
 public:
  static constexpr const char* kName = "AdapterSiluMul";
  static constexpr std::size_t kInputs = 5, kRequired = 5, kOutputs = 1;
  static constexpr bool kVariadic = false;
  static constexpr ONNXTensorElementDataType kTypes[kInputs] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr std::size_t kGate = 3, kUp = 4;
  static constexpr std::size_t kShared = 1;
  static constexpr int kFrom[kShared] = {kGate}, kTo[kShared] = {0};
  static constexpr std::size_t outputs(std::size_t) { return 1; }
  static constexpr std::size_t y_of(std::size_t) { return kGate; }

  AdapterSiluMul(const OrtApi* api, const OrtKernelInfo* info) : AdapterNode(api, info, kName) {
    std::size_t size = 2;
    if (failed(api_->KernelInfoGetAttributeArray_int64(info, "slots", slots_, &size)) || size != 2) slots_[0] = slots_[1] = 0;
    for (int64_t& slot : slots_)
      if (slot < 0) slot = 0;
  }

  OrtStatusPtr compute(OrtKernelContext* context) const {
    const OrtValue* value = nullptr;
    Shape of_gate, of_up, of_x;
    Problem gate, up;
    Given given;
    if (auto status = begin(context, kGate, 0, of_gate, gate)) return status;
    if (auto status = api_->KernelContext_GetInput(context, kUp, &value)) return status;
    if (auto status = shape(value, of_up)) return status;
    if (of_up.rank != of_gate.rank || std::memcmp(of_up.dims, of_gate.dims, of_up.rank * sizeof(int64_t)) != 0)
      return wrong("the shapes do not fit: gate " + of_gate.text() + ", up " + of_up.text());
    if (auto status = pointer(value, up.y)) return status;
    if (gate.rows * gate.out == 0) return nullptr;
    up.rows = gate.rows, up.out = gate.out;
    if (auto status = this->given(context, 1, 2, given)) return status;
    if (given.bytes == 0) return activate(context, nullptr, 0, gate, gate.y, up.y);
    if (auto status = input_x(context, 0, of_gate, gate, of_x)) return status;
    up.x = gate.x, up.in = gate.in;
    Call& mine = call(2, given);
    if (given.batch == 0) {
      if (auto status = collect_one(slots_[0], gate, given, mine)) return status;
      const float* of_gate_slot = mine.groups.empty() ? gate.y : gate.result;
      const std::size_t before = mine.groups.size();
      if (auto status = collect_one(slots_[1], up, given, mine)) return status;
      const bool edited = mine.groups.size() > before;
      if (edited) mine.groups.back().apart = true;
      return activate(context, mine.groups.data(), mine.groups.size(), gate, of_gate_slot, edited ? nullptr : up.y);
    }
    const std::unique_ptr<float[]> sums(new float[up.rows * up.out]);
    up.result = sums.get();
    if (auto status = collect(slots_[0], gate, given, of_x, mine)) return status;
    if (auto status = collect(slots_[1], up, given, of_x, mine)) return status;
    if (auto status = finish(context, mine)) return status;
    return activate(context, nullptr, 0, gate, gate.result, up.result);
  }

 private:
  // `of_up` is none where each thread has its tile of it apart.
  OrtStatusPtr activate(OrtKernelContext* context, Group* groups, std::size_t count, const Problem& gate, const float* of_gate,
                        const float* of_up) const {
    return spread_rows(context, groups, count, gate.rows, gate.out, [&](std::size_t row, std::size_t end, float* apart) {
      const std::size_t first = row * gate.out, size = (end - row) * gate.out;
      functions_.silu_mul(of_gate + first, of_up == nullptr ? apart : of_up + first, gate.result + first, size);
    });
  }

  int64_t slots_[2] = {0, 0};
};

}  // namespace edgepeft::kernels
