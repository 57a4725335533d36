// Checks a bundle's file against what edgepeft.json says of it, before ONNX Runtime opens it: ONNX Runtime checks nothing.
//
//   edgepeft::verify("bundle/onnx/model.onnx", sha256, bytes);   // `files` in edgepeft.json, read with the app's JSON library
//   edgepeft::Model model("bundle/onnx/model.onnx");
//
// Check every file that is loaded: the graph, its weights (`data` of the variant), the adapters, the tokenizer. A file that
// changes between the check and its use is not seen: keep bundles where only the app can write.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgepeft {

// SHA-256 as FIPS 180-4 defines it.
class Sha256 {
 public:
  void update(const unsigned char* data, size_t size) {
    length_ += size;
    while (size > 0) {
      size_t taken = std::min(size, block_.size() - used_);
      std::memcpy(block_.data() + used_, data, taken);
      used_ += taken;
      data += taken;
      size -= taken;
      if (used_ == block_.size()) {
        transform();
        used_ = 0;
      }
    }
  }

  // The digest in hexadecimal; nothing can be added after it.
  std::string hex() {
    uint64_t bits = length_ * 8;
    unsigned char end = 0x80, zero = 0;
    update(&end, 1);
    while (used_ != 56) update(&zero, 1);
    for (int shift = 56; shift >= 0; shift -= 8) {
      auto byte = static_cast<unsigned char>(bits >> shift);
      update(&byte, 1);
    }
    static const char* digits = "0123456789abcdef";
    std::string text;
    for (uint32_t word : state_)
      for (int shift = 28; shift >= 0; shift -= 4) text += digits[word >> shift & 15];
    return text;
  }

 private:
  static uint32_t rotated(uint32_t value, int by) { return value >> by | value << (32 - by); }

  void transform() {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
        0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
        0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
        0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
        0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
        0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; ++i)
      w[i] = uint32_t{block_[4 * i]} << 24 | uint32_t{block_[4 * i + 1]} << 16 | uint32_t{block_[4 * i + 2]} << 8 | block_[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; ++i) {
      uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
      uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + k[i] + w[i];
      uint32_t s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
      uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const uint32_t added[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state_[i] += added[i];
  }

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> block_{};
  size_t used_ = 0;
  uint64_t length_ = 0;
};

// Throws std::runtime_error, which names the file, where it is no regular file or not of this size and hash.
inline void verify(const std::string& file, const std::string& sha256, uintmax_t bytes) {
  // A link may lead anywhere, and a pipe would be waited for.
  std::error_code problem;
  if (std::filesystem::symlink_status(file, problem).type() != std::filesystem::file_type::regular)
    throw std::runtime_error(file + " is missing or no regular file; copy the bundle again");
  auto size = std::filesystem::file_size(file, problem);
  if (problem || size != bytes)
    throw std::runtime_error(file + " has " + std::to_string(size) + " bytes, the manifest says " + std::to_string(bytes) + "; copy the bundle again");
  std::ifstream stream(file, std::ios::binary);
  std::vector<char> buffer(1 << 20);
  Sha256 hash;
  while (bytes > 0 && stream.read(buffer.data(), static_cast<std::streamsize>(std::min<uintmax_t>(buffer.size(), bytes))).gcount() > 0) {
    hash.update(reinterpret_cast<unsigned char*>(buffer.data()), static_cast<size_t>(stream.gcount()));
    bytes -= static_cast<uintmax_t>(stream.gcount());
  }
  if (bytes != 0 || hash.hex() != sha256)
    throw std::runtime_error(file + " was changed after the bundle was written; copy the bundle again, or export it again if the change was meant");
}

}  // namespace edgepeft
