// Structs of the C API are read no further than their size says.
#ifndef DDPM_RT_CAPI_STRUCTS_H_
#define DDPM_RT_CAPI_STRUCTS_H_

#include <cstddef>
#include <cstring>
#include <string>

#include "error.h"

namespace ddpm_rt {

// A full struct from a caller's, which may be older (shorter) or newer (longer, if what we do not know is zero).
template <typename T>
T read_struct(const T* given, const char* field, void (*init)(T*, size_t)) {
  T full;
  init(&full, sizeof full);
  if (given == nullptr) return full;
  const size_t size = given->struct_size;
  if (size < sizeof(size_t)) {
    throw Error(Code::kOption, std::string(field) + ".struct_size: expected the struct's size, got " + std::to_string(size) +
                                   ": call its init function first");
  }
  const char* bytes = reinterpret_cast<const char*>(given);
  for (size_t i = sizeof full; i < size; ++i) {
    if (bytes[i] != 0) {
      throw Error(Code::kOption, std::string(field) + ".struct_size: expected at most " + std::to_string(sizeof full) +
                                     " or zeros beyond, got " + std::to_string(size) + ": a newer program with an older library");
    }
  }
  std::memcpy(&full, given, size < sizeof full ? size : sizeof full);
  full.struct_size = sizeof full;
  return full;
}

// Writes the part of `full` that the caller has room for.
template <typename T>
void write_struct(T full, T* to, size_t size) {
  if (to == nullptr || size < sizeof(size_t)) return;
  full.struct_size = size;
  std::memset(to, 0, size);
  std::memcpy(to, &full, size < sizeof full ? size : sizeof full);
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_CAPI_STRUCTS_H_
