// References to other files are refused wherever an ONNX model can hold a tensor; damaged bytes never read out of
// bounds.
#include <string>

#include "check.h"
#include "denoisers/onnx_check.h"
#include "expect_error.h"

using namespace ddpm_rt;

namespace {

std::string field(int number, const std::string& content) {
  std::string out(1, static_cast<char>(number << 3 | 2));
  size_t size = content.size();
  for (; size >= 0x80; size >>= 7) out += static_cast<char>((size & 0x7f) | 0x80);
  return out + static_cast<char>(size) + content;
}

// Tensors by every way from a model to one; field numbers of onnx.proto3.
void test_external_data() {
  const std::string inside = std::string("\x70\x00", 2) + field(9, "abcd");  // data_location 0, raw_data
  const std::string moved("\x70\x01", 2), named = field(13, field(1, "location") + field(2, "/etc/passwd"));
  const auto check = [](const std::string& model) {
    return [model] { OnnxCheck::run("unet.onnx", {model.begin(), model.end()}); };
  };
  const auto attribute = [](const std::string& content) { return field(7, field(1, field(5, content))); };
  const auto model_of = [&](int way, const std::string& tensor) {
    switch (way) {
      case 0:
        return field(7, field(5, tensor));  // graph.initializer
      case 1:
        return field(7, std::string("\x7a", 1) + static_cast<char>(tensor.size() + 2) + field(1, tensor));  // sparse
      case 2:
        return attribute(field(5, tensor));  // a Constant's value
      case 3:
        return attribute(field(6, field(5, tensor)));  // a body's initializer
      default:
        return attribute(field(11, field(1, field(5, field(10, tensor)))));  // and a Constant in one of its bodies
    }
  };
  for (int way = 0; way < 5; ++way) {
    check(model_of(way, inside))();
    CHECK(contains(message_of(Code::kBackend, check(model_of(way, inside + moved))), "external data"));
    CHECK(contains(message_of(Code::kBackend, check(model_of(way, named))), "external data"));
  }
  const std::string whole = model_of(4, inside + field(9, std::string(300, 'x')));
  check(whole)();
  for (size_t cut = 1; cut < whole.size(); ++cut) {
    CHECK(contains(message_of(Code::kBackend, check(whole.substr(0, cut))), "not one"));
  }
  CHECK(contains(message_of(Code::kBackend, check(std::string(11, '\xff'))), "not one"));
  std::string deep = field(5, inside);
  for (int i = 0; i < 40; ++i) deep = field(1, field(5, field(6, deep)));
  CHECK(contains(message_of(Code::kBackend, check(field(7, deep))), "not one"));
}

}  // namespace

int main() {
  test_external_data();
  return finish();
}
