// A JSON value that knows where it stands, so that every refusal names the field, what was expected and what was found.
#ifndef DDPM_RT_JSON_FIELD_H_
#define DDPM_RT_JSON_FIELD_H_

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>

#include <nlohmann/json.hpp>

#include "error.h"

namespace ddpm_rt {

constexpr int kMaxJsonDepth = 64;

class Field {
 public:
  Field(const nlohmann::json* value, std::string path, Code code) : value_(value), path_(std::move(path)), code_(code) {}

  const std::string& path() const { return path_; }
  bool is_present() const { return value_ != nullptr && !value_->is_null(); }  // null counts as absent

  [[noreturn]] void refuse(const std::string& expected) const { refuse(expected, found()); }
  [[noreturn]] void refuse(const std::string& expected, const std::string& got) const {
    throw Error(code_, path_ + ": expected " + expected + ", got " + got);
  }

  // The member, absent or not; its readers refuse an absent one.
  Field operator[](const std::string& key) const {
    object();
    const auto it = value_->find(key);
    return Field(it == value_->end() ? nullptr : &*it, path_.empty() ? key : path_ + "." + key, code_);
  }
  Field operator[](size_t i) const { return Field(&value_->at(i), path_ + "[" + std::to_string(i) + "]", code_); }

  const nlohmann::json& object() const {
    if (!is_present() || !value_->is_object()) refuse("an object");
    return *value_;
  }

  size_t array(size_t least, size_t most) const {  // its length
    if (!is_present() || !value_->is_array()) refuse("an array");
    const size_t n = value_->size();
    if (n < least || n > most) {
      refuse(least == most ? "an array of " + std::to_string(least)
                           : "an array of " + std::to_string(least) + " to " + std::to_string(most));
    }
    return n;
  }

  std::string text() const {
    if (!is_present() || !value_->is_string()) refuse("a string");
    return value_->get<std::string>();
  }

  std::string one_of(std::initializer_list<const char*> allowed) const {
    std::string list;
    for (const char* a : allowed) {
      if (is_present() && value_->is_string() && value_->get_ref<const std::string&>() == a) return a;
      list += list.empty() ? std::string("\"") + a + "\"" : std::string(" or \"") + a + "\"";
    }
    refuse(list);
  }

  int64_t integer(int64_t least, int64_t most) const {
    const bool fits = is_present() && value_->is_number_integer() &&
                      !(value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
    const int64_t v = fits ? value_->get<int64_t>() : 0;
    if (!fits || v < least || v > most) {
      refuse(least == most ? std::to_string(least)
                           : "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return v;
  }

  bool boolean() const {
    if (!is_present() || !value_->is_boolean()) refuse("true or false");
    return value_->get<bool>();
  }

  double real() const {  // finite, also as float32
    const double v = is_present() && value_->is_number() ? value_->get<double>() : NAN;
    if (!(std::fabs(v) <= 3.4028234663852886e38)) refuse("a finite number");
    return v;
  }

  std::string found() const {
    if (value_ == nullptr) return "nothing";
    if (value_->is_object()) return "an object";
    if (value_->is_array()) return "an array of " + std::to_string(value_->size());
    // Escaped to ASCII, so that cutting it cannot leave half a character.
    std::string shown = value_->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    return shown.size() <= 80 ? shown : shown.substr(0, 77) + "...";
  }

 private:
  const nlohmann::json* value_;
  std::string path_;
  Code code_;
};

}  // namespace ddpm_rt

#endif  // DDPM_RT_JSON_FIELD_H_
