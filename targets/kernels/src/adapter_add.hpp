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

#include "adapter.hpp"
#include "ort.hpp"

namespace edgepeft::kernels {

class AdapterAdd : public Node {
 public:
  static constexpr const char* kName = "AdapterAdd";
  static constexpr std::size_t kInputs = 4, kRequired = 3;
  static constexpr ONNXTensorElementDataType kTypes[kInputs] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                                ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};

  AdapterAdd(const OrtApi* api, const OrtKernelInfo* info) : Node(api, info, kName) {
    if (failed(api_->KernelInfoGetAttribute_int64(info, "slot", &slot_)) || slot_ < 0) slot_ = 0;
  }

  OrtStatusPtr compute(OrtKernelContext* context) const {
    const OrtValue *x = nullptr, *adapter = nullptr, *rows = nullptr;
    Shape of_y, of_x, of_adapter, of_rows;
    Problem problem;
    if (auto status = begin(context, of_y, problem)) return status;
    if (auto status = api_->KernelContext_GetInput(context, 2, &adapter)) return status;
    if (auto status = shape(adapter, of_adapter)) return status;
    const std::size_t bytes = of_adapter.rank < 1 ? 0 : of_adapter.rows() * of_adapter.last();
    if (bytes == 0 || problem.rows == 0) {  // the base
      copy(problem);
      return nullptr;
    }
    const unsigned char* content = nullptr;
    if (auto status = pointer(adapter, content)) return status;
    if (auto status = api_->KernelContext_GetInput(context, 1, &x)) return status;
    if (auto status = shape(x, of_x)) return status;
    if (of_x.rank < 2 || of_x.rows() != static_cast<int64_t>(problem.rows))
      return wrong("the shapes do not fit: y " + of_y.text() + ", x " + of_x.text());
    problem.in = of_x.last();
    if (auto status = pointer(x, problem.x)) return status;
    std::size_t inputs = 0;
    if (auto status = api_->KernelContext_GetInputCount(context, &inputs)) return status;
    if (inputs > 3) {
      if (auto status = api_->KernelContext_GetInput(context, 3, &rows)) return status;
    }
    const int64_t* places = nullptr;
    std::size_t batch = 0;
    if (rows != nullptr) {
      if (auto status = shape(rows, of_rows)) return status;
      batch = of_rows.rank < 1 ? 0 : of_rows.rows() * of_rows.last();
      if (batch > 0) {
        if (auto status = pointer(rows, places)) return status;
      }
    }
    if (batch == 0) return alone(context, problem, content, bytes);
    return mixed(context, problem, content, bytes, places, batch, of_x);
  }

 private:
  // One adapter for all rows: nothing is kept behind the call.
  OrtStatusPtr alone(OrtKernelContext* context, Problem& problem, const unsigned char* content, std::size_t bytes) const {
    Slot slot;
    if (const char* what = read_slot(content, bytes, 0, slot_, problem.in, problem.out, slot)) return wrong(what);
    if (slot.rank == 0) {
      copy(problem);
      return nullptr;
    }
    slot.fill(problem);
    Group group{problem};
    return spread(context, &group, 1);
  }

  OrtStatusPtr mixed(OrtKernelContext* context, Problem problem, const unsigned char* content, std::size_t bytes,
                     const int64_t* places, std::size_t batch, const Shape& of_x) const {
    static thread_local std::vector<Slot> slots;
    static thread_local std::vector<Group> groups;
    groups.clear();
    if (slots.size() < batch) slots.resize(batch);  // before anything points into it
    const bool fits = of_x.dims[0] == static_cast<int64_t>(batch) && problem.rows % batch == 0;
    if (fits) problem.rows /= batch;
    for (std::size_t row = 0; row < batch; ++row) {
      Slot& slot = slots[row];
      slot.rank = 0;
      if (places[row] >= 0) {
        if (const char* what = read_slot(content, bytes, places[row], slot_, problem.in, problem.out, slot)) return wrong(what);
      }
      if (!fits) {
        if (slot.rank > 0)
          return wrong("there are adapters for " + std::to_string(batch) + " rows, and x is " + of_x.text());
        continue;
      }
      if (slot.rank == 0) {
        copy(problem);
      } else if (!groups.empty() && places[row] == places[row - 1]) {
        groups.back().problem.rows += problem.rows;  // rows of one adapter behind one another are read for together
      } else {
        Problem mine = problem;
        slot.fill(mine);
        groups.push_back({mine});
      }
      problem.x += problem.rows * problem.in;
      problem.y += problem.rows * problem.out, problem.result += problem.rows * problem.out;
    }
    if (!fits) {  // an activation that is one for the whole batch, which no row's adapter edits
      copy(problem);
      return nullptr;
    }
    return spread(context, groups.data(), groups.size());
  }

  int64_t slot_ = 0;
};

}  // namespace edgepeft::kernels
