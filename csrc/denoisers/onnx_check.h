// Refuses ONNX graphs whose initializers live in other files. OpenVINO 2026.4 follows such references even for a model
// given as bytes, relative to the working directory: a plan from elsewhere could read files of this machine.
#ifndef DDPM_RT_DENOISERS_ONNX_CHECK_H_
#define DDPM_RT_DENOISERS_ONNX_CHECK_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "error.h"

namespace ddpm_rt {

// A walk over the protobuf encoding (onnx.proto3); reads tags and lengths, never tensor contents.
class OnnxCheck {
 public:
  // Throws Error(kBackend) for external data and for bytes that are not a whole encoding.
  static void run(const std::string& section, const std::vector<uint8_t>& onnx) {
    OnnxCheck(section).walk(kModel, onnx.data(), onnx.data() + onnx.size(), 0);
  }

 private:
  enum Kind { kNone, kModel, kGraph, kNode, kAttribute, kTensor, kSparse, kFunction, kTraining };
  static constexpr int kMaxDepth = 64;  // of nested graphs and their parts

  explicit OnnxCheck(const std::string& section) : section_(section) {}

  // What a length-delimited field of a message holds, as far as tensors can be reached through it.
  static Kind child(Kind kind, uint64_t field) {
    switch (kind) {
      case kModel:
        return field == 7 ? kGraph : field == 20 ? kTraining : field == 25 ? kFunction : kNone;
      case kTraining:
        return field == 1 || field == 2 ? kGraph : kNone;
      case kFunction:
        return field == 7 ? kNode : field == 11 ? kAttribute : kNone;
      case kGraph:
        return field == 1 ? kNode : field == 5 ? kTensor : field == 15 ? kSparse : kNone;
      case kNode:
        return field == 5 ? kAttribute : kNone;
      case kAttribute:
        return field == 5 || field == 10    ? kTensor
               : field == 6 || field == 11  ? kGraph
               : field == 22 || field == 23 ? kSparse
                                            : kNone;
      case kSparse:
        return field == 1 || field == 2 ? kTensor : kNone;
      default:
        return kNone;
    }
  }

  [[noreturn]] void damaged() const {
    throw Error(Code::kBackend, section_ + ": expected an ONNX model, got bytes that are not one");
  }

  uint64_t varint(const uint8_t*& p, const uint8_t* end) const {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (p == end) damaged();
      const uint8_t byte = *p++;
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    damaged();
  }

  void walk(Kind kind, const uint8_t* p, const uint8_t* end, int depth) const {
    if (depth > kMaxDepth) damaged();
    while (p != end) {
      const uint64_t tag = varint(p, end), field = tag >> 3;
      const size_t left = static_cast<size_t>(end - p);
      if (kind == kTensor && (field == 13 || field == 14)) external(tag, p, end);
      switch (tag & 7) {
        case 0:
          varint(p, end);
          break;
        case 1:
          p += left < 8 ? (damaged(), 0) : 8;
          break;
        case 5:
          p += left < 4 ? (damaged(), 0) : 4;
          break;
        case 2: {
          const uint64_t bytes = varint(p, end);
          if (bytes > static_cast<uint64_t>(end - p)) damaged();
          if (const Kind next = child(kind, field)) walk(next, p, p + bytes, depth + 1);
          p += bytes;
          break;
        }
        default:
          damaged();
      }
    }
  }

  // TensorProto.external_data (13), or data_location (14) other than its default.
  void external(uint64_t tag, const uint8_t* p, const uint8_t* end) const {
    if (tag == (14 << 3) && varint(p, end) == 0) return;
    throw Error(Code::kBackend, section_ +
                                    ": expected all weights inside the model, got an initializer with external data; " +
                                    "save it as one file (onnx.save(..., save_as_external_data=False))");
  }

  const std::string& section_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_DENOISERS_ONNX_CHECK_H_
