// An adapter in one piece of memory, as edgepeft/runtime/kernel_adapter.py lays it out for this processor: never in a file.
//
//   header   64 bytes: "EDGEPEFT", then uint32: the layout's version, the factors' type (low_rank.hpp), the number of slots
//   table    64 bytes for each slot: Entry
//   content  each array at a multiple of 64 bytes from the header: A, B, and the records of further parts
//
// A rank whose row of B has no number in a part is not among the part's ranks; B's row holds the part's columns only.
#pragma once

#include <cstdint>
#include <cstring>

#include "low_rank.hpp"

namespace edgepeft::kernels {

constexpr uint32_t kLayout = 1;
constexpr std::size_t kUnit = 64;        // places are in units of so many bytes; 0: there is none
constexpr std::size_t kMostParts = 64;   // of one slot
constexpr uint32_t kMostSize = 1 << 24;  // of any dimension, so that no product below overflows

struct Header {
  char magic[8];
  uint32_t layout, type, slots, unused;
};

struct Record {
  uint32_t begin, ranks, b, order, scale, unused;  // begin: of its columns; it ends where the next one begins
};

struct Entry {
  uint32_t in, out, rank, parts;  // rank: A's columns, 0: the adapter does not edit this slot
  uint32_t a, more;               // more: the records of the parts behind the first
  Record first;
  uint32_t unused[4];
};
static_assert(sizeof(Entry) == kUnit && sizeof(Header) == 24 && sizeof(Record) == 24);

struct Slot {
  std::size_t rank = 0, parts = 0;
  Type type = Type::kFloat;
  const void* a = nullptr;
  Part part[kMostParts];  // the first `parts` of them

  void fill(Problem& p) const {
    p.a = a, p.rank = p.stride = rank, p.type = type;
    p.parts = part, p.part_count = parts;
  }
};

// The slot of the adapter that begins at `place`; what is wrong with it, or nothing. Only what lies inside is ever pointed to.
inline const char* read_slot(const unsigned char* content, std::size_t bytes, int64_t place, int64_t number, std::size_t in,
                             std::size_t out, Slot& found) {
  if (place < 0 || static_cast<std::size_t>(place) > bytes || bytes - place < kUnit) return "its adapter begins beyond the tensor";
  content += place, bytes -= place;
  if (reinterpret_cast<uintptr_t>(content) % alignof(float) != 0) return "its adapter does not begin at a multiple of 4 bytes";
  Header header;
  std::memcpy(&header, content, sizeof(header));
  if (std::memcmp(header.magic, "EDGEPEFT", 8) != 0 || header.layout != kLayout || header.type > 2)
    return "its adapter is not in this library's layout";
  if (number >= header.slots || bytes / kUnit < 1 + static_cast<std::size_t>(header.slots)) return "its adapter has fewer slots";
  Entry entry;
  std::memcpy(&entry, content + (1 + number) * kUnit, sizeof(entry));
  found.rank = entry.rank;
  if (entry.rank == 0) return nullptr;
  if (entry.in != in || entry.out != out) return "its adapter is for a slot of another shape";
  if (entry.rank > kMostSize || in > kMostSize || out > kMostSize || entry.parts < 1 || entry.parts > kMostParts)
    return "its adapter is larger than the operator takes";
  found.type = static_cast<Type>(header.type);
  const std::size_t size = size_of(found.type);
  auto inside = [&](uint32_t at, std::size_t length) {
    const std::size_t start = at * kUnit;
    return at > 0 && start <= bytes && length <= bytes - start ? content + start : nullptr;
  };
  constexpr const char* outside = "its adapter points outside of itself";
  found.a = inside(entry.a, in * entry.rank * size);
  const unsigned char* more = entry.parts > 1 ? inside(entry.more, (entry.parts - 1) * sizeof(Record)) : content;
  if (found.a == nullptr || more == nullptr) return outside;
  found.parts = entry.parts;
  Record record = entry.first;
  for (std::size_t p = 0; p < entry.parts; ++p) {
    Record next{};
    next.begin = static_cast<uint32_t>(out);
    if (p + 1 < entry.parts) std::memcpy(&next, more + p * sizeof(Record), sizeof(next));
    if ((p == 0 && record.begin != 0) || next.begin < record.begin || next.begin > out || record.ranks > entry.rank) return outside;
    Part& part = found.part[p];
    part = {record.begin, next.begin, record.ranks};
    part.stride = part.end - part.begin;
    if (record.ranks > 0) {
      part.b = inside(record.b, record.ranks * part.stride * size);
      if (part.b == nullptr) return outside;
      if (record.order > 0) {
        part.order = reinterpret_cast<const uint32_t*>(inside(record.order, record.ranks * 4));
        if (part.order == nullptr) return outside;
        for (std::size_t i = 0; i < record.ranks; ++i)
          if (part.order[i] >= entry.rank) return outside;
      }
      if (record.scale > 0) {
        part.scale = reinterpret_cast<const float*>(inside(record.scale, record.ranks * 4));
        if (part.scale == nullptr) return outside;
      }
    }
    record = next;
  }
  return nullptr;
}

}  // namespace edgepeft::kernels
