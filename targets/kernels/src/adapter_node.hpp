// What the operators over an adapter in one piece (adapter.hpp) share: which rows of the activations meet which adapter's slot.
#pragma once

#include "adapter.hpp"
#include "ort.hpp"

namespace edgepeft::kernels {

class AdapterNode : public Node {
 public:
  using Node::Node;

 protected:
  // The inputs `adapter` and `rows`.
  struct Given {
    const unsigned char* content = nullptr;
    std::size_t bytes = 0;            // 0: the base
    const int64_t* places = nullptr;  // where each row's adapter begins
    std::size_t batch = 0;            // 0: the first one serves all rows
  };

  // What one call computes, kept by the thread for the next one.
  struct Call {
    std::vector<Slot> slots;  // groups point into them
    std::size_t used = 0;
    std::vector<Group> groups;
    // Rows that share an adapter and do not follow each other are computed side by side in memory of their own.
    struct Gathered {
      std::vector<float> x, y;
      std::vector<std::size_t> rows;
      Problem from;  // rows: of one item of the batch
    };
    std::vector<Gathered> gathered;  // groups point into what they hold
    std::size_t gathers = 0;
  };

  OrtStatusPtr given(OrtKernelContext* context, std::size_t adapter_input, std::size_t rows_input, Given& found) const {
    const OrtValue *adapter = nullptr, *rows = nullptr;
    Shape of_adapter, of_rows;
    if (auto status = api_->KernelContext_GetInput(context, adapter_input, &adapter)) return status;
    if (auto status = shape(adapter, of_adapter)) return status;
    found.bytes = of_adapter.rank < 1 ? 0 : of_adapter.rows() * of_adapter.last();
    if (found.bytes == 0) return nullptr;
    if (auto status = pointer(adapter, found.content)) return status;
    std::size_t inputs = 0;
    if (auto status = api_->KernelContext_GetInputCount(context, &inputs)) return status;
    if (inputs <= rows_input) return nullptr;
    if (auto status = api_->KernelContext_GetInput(context, rows_input, &rows)) return status;
    if (rows == nullptr) return nullptr;
    if (auto status = shape(rows, of_rows)) return status;
    found.batch = of_rows.rank < 1 ? 0 : of_rows.rows() * of_rows.last();
    return found.batch > 0 ? pointer(rows, found.places) : nullptr;
  }

  // x, as many rows as y has; and how wide it is.
  OrtStatusPtr input_x(OrtKernelContext* context, std::size_t input, const Shape& of_y, Problem& problem, Shape& of_x) const {
    const OrtValue* x = nullptr;
    if (auto status = api_->KernelContext_GetInput(context, input, &x)) return status;
    if (auto status = shape(x, of_x)) return status;
    if (of_x.rank < 2 || of_x.rows() != static_cast<int64_t>(problem.rows))
      return wrong("the shapes do not fit: y " + of_y.text() + ", x " + of_x.text());
    problem.in = of_x.last();
    return pointer(x, problem.x);
  }

  // A call for so many slots. The memory is the thread's, which runs one node at a time.
  Call& call(std::size_t slots, const Given& given) const {
    static thread_local Call found;
    found.used = found.gathers = 0;
    found.groups.clear();
    const std::size_t most = slots * (given.batch > 0 ? given.batch : 1);
    if (found.slots.size() < most) found.slots.resize(most);  // before anything points into it
    return found;
  }

  // Adds what a slot has to compute where one adapter serves all rows: a group, or none where the adapter does not edit the slot.
  OrtStatusPtr collect_one(int64_t number, Problem problem, const Given& given, Call& call) const {
    Slot& slot = call.slots[call.used++];
    if (const char* what = read_slot(given.content, given.bytes, 0, number, problem.in, problem.out, slot)) return wrong(what);
    if (slot.rank == 0) return nullptr;
    slot.fill(problem);
    call.groups.push_back({problem});
    return nullptr;
  }

  // Adds what a slot's rows have to compute; rows without an adapter get y at once.
  OrtStatusPtr collect(int64_t number, Problem problem, const Given& given, const Shape& of_x, Call& call) const {
    if (given.batch == 0) {
      const std::size_t before = call.groups.size();
      if (auto status = collect_one(number, problem, given, call)) return status;
      if (call.groups.size() == before) copy(problem);
      return nullptr;
    }
    const std::size_t batch = given.batch;
    const bool fits = of_x.dims[0] == static_cast<int64_t>(batch) && problem.rows % batch == 0;
    if (fits) problem.rows /= batch;
    for (std::size_t row = 0; row < batch; ++row) {
      if (given.places[row] < 0) {
        if (fits) copy(item(problem, row));
        continue;
      }
      if (fits && first_with(given, row) < row) continue;  // computed with the first one
      Slot& slot = call.slots[call.used++];
      if (const char* what = read_slot(given.content, given.bytes, given.places[row], number, problem.in, problem.out, slot))
        return wrong(what);
      if (!fits) {
        if (slot.rank > 0) return wrong("there are adapters for " + std::to_string(batch) + " rows, and x is " + of_x.text());
        continue;
      }
      for_rows_of(row, problem, given, slot, call);
    }
    if (!fits) copy(problem);  // an activation that is one for the whole batch, which no row's adapter edits
    return nullptr;
  }

  // Computes all that was collected, over the session's own threads.
  OrtStatusPtr finish(OrtKernelContext* context, Call& call) const {
    if (call.groups.empty()) return nullptr;
    if (auto status = spread(context, call.groups.data(), call.groups.size())) return status;
    for (std::size_t i = 0; i < call.gathers; ++i) {
      const Call::Gathered& mine = call.gathered[i];
      const std::size_t size = mine.from.rows * mine.from.out;
      for (std::size_t place = 0; place < mine.rows.size(); ++place)
        std::memcpy(mine.from.result + mine.rows[place] * size, &mine.y[place * size], size * sizeof(float));
    }
    return nullptr;
  }

 private:
  static std::size_t first_with(const Given& given, std::size_t row) {
    std::size_t found = 0;
    while (given.places[found] != given.places[row]) ++found;
    return found;
  }

  // One item of a batch, of which `problem` says the rows of one.
  static Problem item(Problem problem, std::size_t row) {
    problem.x += row * problem.rows * problem.in;
    problem.y += row * problem.rows * problem.out, problem.result += row * problem.rows * problem.out;
    return problem;
  }

  // The items that have the same adapter as the item `row`, which is the first of them.
  static void for_rows_of(std::size_t row, const Problem& problem, const Given& given, const Slot& slot, Call& call) {
    const bool few = problem.rows < kMostRows;  // of many, the factors are read often enough for one item alone
    Call::Gathered* apart = nullptr;
    std::size_t end = row;  // behind the items of the last group
    for (std::size_t next = row; next < given.batch; ++next) {
      if (given.places[next] != given.places[row]) continue;
      if (slot.rank == 0) {
        copy(item(problem, next));
      } else if (apart != nullptr) {
        apart->rows.push_back(next);
      } else if (next > row && next == end) {
        call.groups.back().problem.rows += problem.rows;
        ++end;
      } else if (next == row || !few) {
        call.groups.push_back({item(problem, next)});
        slot.fill(call.groups.back().problem);
        end = next + 1;
      } else {  // not behind the ones before: all of them, side by side
        if (call.gathered.size() == call.gathers) call.gathered.emplace_back();
        apart = &call.gathered[call.gathers++];
        apart->from = problem, apart->rows.clear();
        for (std::size_t before = row; before < end; ++before) apart->rows.push_back(before);
        apart->rows.push_back(next);
      }
    }
    if (apart == nullptr) return;
    const std::size_t count = apart->rows.size(), of_x = problem.rows * problem.in, of_y = problem.rows * problem.out;
    apart->x.resize(count * of_x), apart->y.resize(count * of_y);
    for (std::size_t place = 0; place < count; ++place) {
      std::memcpy(&apart->x[place * of_x], problem.x + apart->rows[place] * of_x, of_x * sizeof(float));
      std::memcpy(&apart->y[place * of_y], problem.y + apart->rows[place] * of_y, of_y * sizeof(float));
    }
    Problem& mine = call.groups.back().problem;
    mine.x = apart->x.data(), mine.y = mine.result = apart->y.data(), mine.rows = count * problem.rows;
  }
};

}  // namespace edgepeft::kernels
