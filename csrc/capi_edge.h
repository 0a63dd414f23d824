// The C edge: exceptions become statuses, structs are read no further than their size says.
#ifndef DDPM_RT_CAPI_EDGE_H_
#define DDPM_RT_CAPI_EDGE_H_

#include <exception>
#include <memory>
#include <new>
#include <string>

#include "capi_structs.h"
#include "ddpm_rt/ddpm_rt.h"
#include "error.h"

struct ddpm_rt_string {
  std::string text;
};

namespace ddpm_rt {

ddpm_rt_status set_last_error(ddpm_rt_status status, const char* message) noexcept;

// Runs f, which returns a status.
template <typename F>
ddpm_rt_status guarded(F&& f) noexcept {
  try {
    return f();
  } catch (const Error& e) {
    return set_last_error(static_cast<ddpm_rt_status>(e.code()), e.what());
  } catch (const std::bad_alloc&) {
    return set_last_error(DDPM_RT_INTERNAL_ERROR, "memory: expected enough for this call, got none");
  } catch (const std::exception& e) {
    return set_last_error(DDPM_RT_INTERNAL_ERROR, e.what());
  } catch (...) {
    return set_last_error(DDPM_RT_INTERNAL_ERROR, "unknown exception");
  }
}

inline void expect_given(const void* pointer, const char* field) {
  if (pointer == nullptr) throw Error(Code::kOption, std::string(field) + ": expected a pointer, got null");
}

}  // namespace ddpm_rt

#endif  // DDPM_RT_CAPI_EDGE_H_
