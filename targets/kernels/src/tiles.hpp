// Problems in tiles of rows, over the session's own threads, each tile in the memory of the thread that has it.
#pragma once

#include <new>
#include <vector>

#include "low_rank.hpp"

namespace edgepeft::kernels {

// Rows of the activations that meet one adapter.
struct Group {
  Problem problem;
  std::size_t tiles = 0;
  Widened* wide = nullptr;  // where there are many rows
  bool apart = false;             // the result is one tile in the thread's memory, and `problem.result` is not used
};

// Plans for the factors of groups of many rows; the memory is the thread's, and holds until its next call.
inline void plan_groups(const Functions& functions, Group* groups, std::size_t count) {
  static thread_local std::vector<Widened> room;
  std::size_t used = 0;
  for (std::size_t i = 0; i < count; ++i) used += groups[i].problem.rows >= kMany;
  if (room.size() < used) room.resize(used);  // before anything points into it
  used = 0;
  for (std::size_t i = 0; i < count; ++i) {
    groups[i].wide = nullptr;
    if (groups[i].problem.rows < kMany) continue;
    Widened& mine = room[used++];
    functions.plan_wide(groups[i].problem, mine);
    groups[i].wide = &mine;
  }
}

// One tile of a group. `apart`: where the result begins of a group whose result is in the thread's memory.
inline void run_tile(const Functions& functions, const Group& group, std::size_t number, float* apart) {
  static thread_local std::vector<float> scratch;
  Problem mine = group.problem;
  const std::size_t row = number * kTile;
  mine.x += row * mine.in, mine.y += row * mine.out;
  mine.result = group.apart ? apart : mine.result + row * mine.out;
  mine.rows = mine.rows - row < kTile ? mine.rows - row : kTile;
  if (scratch.size() < scratch_size(mine)) scratch.resize(scratch_size(mine));
  mine.scratch = scratch.data();
  if (group.wide != nullptr) {
    functions.run_wide(mine, *group.wide);
  } else {
    functions.run(mine);
  }
}

// A result that a thread keeps for one tile.
inline float* room_apart(std::size_t size) {
  static thread_local std::vector<float> room;
  if (room.size() < size) room.resize(size);
  return room.data();
}

}  // namespace edgepeft::kernels
