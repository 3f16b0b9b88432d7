#include <norma/io/safetensors.hpp>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>

#include "tests/support/io_files.hpp"
#include "tests/support/shared_fixtures.hpp"

using namespace norma;
using io::DType;
using io::TensorFileWriter;
using io::Weights;

namespace {

/// A file from its header's text and its data.
std::vector<std::byte> file_of(const std::string& header, std::size_t data_bytes) {
  std::string text;
  for (int i = 0; i < 8; ++i) text.push_back(static_cast<char>(header.size() >> (8 * i)));
  text += header;
  for (std::size_t i = 0; i < data_bytes; ++i) text.push_back(static_cast<char>(i));
  return test::bytes_of(text);
}

TensorFileWriter small_writer() {
  TensorFileWriter writer;
  const float weight[6] = {1.0f, -2.0f, 3.5f, 0.25f, 1e-40f, -0.0f};
  const std::int64_t steps[1] = {7};
  const std::uint16_t halves[3] = {0x3c00, 0xc000, 0x7bff};
  REQUIRE(writer.add("conv.weight", {2, 3}, std::span<const float>(weight)).ok());
  REQUIRE(writer.add("steps", {}, std::span<const std::int64_t>(steps)).ok());
  REQUIRE(writer.add("half", DType::f16, {3}, std::as_bytes(std::span(halves))).ok());
  REQUIRE(writer.add("nothing", DType::f32, {0, 4}, {}).ok());
  REQUIRE(writer.set_metadata("method", "patchcore").ok());
  REQUIRE(writer.set_metadata("note", "a \"quoted\" text,\nwith \xc3\xa9").ok());
  return writer;
}

std::vector<std::byte> bytes_of(const TensorFileWriter& writer) {
  auto bytes = writer.to_bytes();
  REQUIRE_MESSAGE(bytes.ok(), bytes.message());
  return *std::move(bytes);
}

}  // namespace

TEST_CASE("what is written is read back") {
  const auto bytes = bytes_of(small_writer());
  const auto opened = Weights::from_bytes(bytes, "small");
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  const Weights& weights = *opened;
  CHECK(weights.name() == "small");
  CHECK(weights.total_bytes() == static_cast<std::int64_t>(bytes.size()));
  CHECK(weights.digest() == io::sha256_hex(bytes));
  REQUIRE(weights.tensors().size() == 4);
  CHECK(weights.metadata().size() == 2);
  CHECK(weights.metadata("method") == "patchcore");
  CHECK(weights.metadata("note") == "a \"quoted\" text,\nwith \xc3\xa9");
  CHECK_FALSE(weights.metadata("absent").has_value());

  std::vector<float> weight(6);
  REQUIRE(weights.read("conv.weight", {2, 3}, weight).ok());
  CHECK(weight == std::vector<float>{1.0f, -2.0f, 3.5f, 0.25f, 1e-40f, -0.0f});
  CHECK(std::signbit(weight[5]));
  std::vector<float> half(3);
  REQUIRE(weights.read("half", {3}, half).ok());
  CHECK(half == std::vector<float>{1.0f, -2.0f, 65504.0f});
  std::int64_t steps = 0;
  REQUIRE(weights.read_int64("steps", {}, std::span(&steps, 1)).ok());
  CHECK(steps == 7);
  REQUIRE(weights.read("nothing", {0, 4}, std::span<float>()).ok());
  std::vector<std::byte> raw(6);
  REQUIRE(weights.read_raw("half", DType::f16, {3}, raw).ok());
  CHECK(raw[1] == std::byte{0x3c});
  REQUIRE(weights.find("conv.weight") != nullptr);
  CHECK(weights.find("conv.weight")->count() == 6);
  CHECK(weights.find("conv") == nullptr);
  CHECK(weights.find("") == nullptr);
}

TEST_CASE("the written file follows the format: length, padding, order, alignment") {
  const auto bytes = bytes_of(small_writer());
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  CHECK(header_bytes % 8 == 0);
  const auto header = io::as_text(std::span(bytes).subspan(8, header_bytes));
  CHECK(header.front() == '{');
  // Types by alignment from the largest, then names, as the Python package sorts them.
  std::string expected = R"({"__metadata__":{"method":"patchcore","note":"a \"quoted\" text,\nwith é"},)"
                         R"("steps":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                         R"("conv.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]},)"
                         R"("nothing":{"dtype":"F32","shape":[0,4],"data_offsets":[32,32]},)"
                         R"("half":{"dtype":"F16","shape":[3],"data_offsets":[32,38]}})";
  expected.append((8 - expected.size() % 8) % 8, ' ');
  CHECK(header == expected);
  CHECK(bytes.size() == 8 + header_bytes + 38);
  const auto weights = Weights::from_bytes(bytes);
  for (const io::TensorInfo& tensor : weights->tensors()) CHECK((tensor.bytes.data() - bytes.data()) % io::size_of(tensor.dtype) == 0);
}

TEST_CASE("output does not depend on the order of the calls") {
  TensorFileWriter a, b;
  const float x[2] = {1, 2}, y[1] = {3};
  REQUIRE(a.add("x", {2}, std::span<const float>(x)).ok());
  REQUIRE(a.add_view("y", {1}, std::span<const float>(y)).ok());
  REQUIRE(a.set_metadata("k", "1").ok());
  REQUIRE(a.set_metadata("j", "2").ok());
  REQUIRE(b.set_metadata("j", "other").ok());
  REQUIRE(b.set_metadata("j", "2").ok());
  REQUIRE(b.add("y", {1}, std::span<const float>(y)).ok());
  REQUIRE(b.add_view("x", {2}, std::span<const float>(x)).ok());
  REQUIRE(b.set_metadata("k", "1").ok());
  CHECK(bytes_of(a) == bytes_of(b));
}

TEST_CASE("add copies, add_view does not, add_converted rounds") {
  TensorFileWriter writer;
  float copied[1] = {1}, viewed[1] = {1};
  REQUIRE(writer.add("copied", {1}, std::span<const float>(copied)).ok());
  REQUIRE(writer.add_view("viewed", {1}, std::span<const float>(viewed)).ok());
  const float values[2] = {1.0f / 3.0f, 70000.0f};
  const std::int64_t shape[1] = {2};
  REQUIRE(writer.add_converted("converted", DType::f16, shape, values).ok());
  copied[0] = viewed[0] = 2;
  const auto bytes = bytes_of(writer);
  const auto weights = Weights::from_bytes(bytes);
  float out = 0;
  REQUIRE(weights->read("copied", {1}, std::span(&out, 1)).ok());
  CHECK(out == 1.0f);
  REQUIRE(weights->read("viewed", {1}, std::span(&out, 1)).ok());
  CHECK(out == 2.0f);
  float both[2] = {};
  REQUIRE(weights->read("converted", {2}, both).ok());
  CHECK(both[0] == io::float_from_half(io::half_from_float(1.0f / 3.0f)));
  CHECK(std::isinf(both[1]));
}

TEST_CASE("the writer refuses what no reader could take") {
  TensorFileWriter writer;
  const float x[2] = {1, 2};
  const auto bytes = std::as_bytes(std::span(x));
  REQUIRE(writer.add("x", {2}, std::span<const float>(x)).ok());
  CHECK(writer.add("x", {2}, std::span<const float>(x)).code() == Errc::invalid_argument);
  CHECK(writer.add("", {2}, std::span<const float>(x)).code() == Errc::invalid_argument);
  CHECK(writer.add("__metadata__", {2}, std::span<const float>(x)).code() == Errc::invalid_argument);
  CHECK(writer.add("a\nb", {2}, std::span<const float>(x)).code() == Errc::invalid_argument);
  CHECK(writer.add("\xff", {2}, std::span<const float>(x)).code() == Errc::invalid_argument);
  CHECK(writer.add("y", {3}, std::span<const float>(x)).code() == Errc::shape_mismatch);
  CHECK(writer.add("y", {-2}, std::span<const float>(x)).code() == Errc::shape_mismatch);
  CHECK(writer.add("y", DType::f64, {2}, bytes).code() == Errc::shape_mismatch);
  CHECK(writer.add("y", DType::f32, {std::int64_t{1} << 62, 4}, bytes).code() == Errc::shape_mismatch);
  CHECK(writer.set_metadata("k", "\xc3").code() == Errc::invalid_argument);
  const std::int64_t shape[1] = {2};
  CHECK(writer.add_converted("y", DType::i32, shape, x).code() == Errc::unsupported);
  const auto opened = Weights::from_bytes(bytes_of(writer));
  REQUIRE(opened.ok());
  CHECK(opened->tensors().size() == 1);  // a refused call changes nothing
}

TEST_CASE("an empty file of tensors") {
  const auto weights = Weights::from_bytes(bytes_of(TensorFileWriter()));
  REQUIRE_MESSAGE(weights.ok(), weights.message());
  CHECK(weights->tensors().empty());
  CHECK(weights->metadata().empty());
}

TEST_CASE("reading errors name file, tensor, expected and found") {
  const auto bytes = bytes_of(small_writer());
  const auto weights = Weights::from_bytes(bytes, "net.safetensors");
  std::vector<float> out(6);
  std::vector<std::int64_t> integers(6);
  std::vector<std::byte> raw(24);
  struct Case {
    Status status;
    Errc code;
    std::vector<std::string> says;
  };
  const Case cases[] = {
      {weights->read("absent", {6}, out), Errc::not_found, {"net.safetensors", "'absent'"}},
      {weights->read("weight", {2, 3}, out), Errc::not_found, {"it has 'conv.weight'"}},
      {weights->read("conv.weight", {3, 2}, out), Errc::shape_mismatch, {"net.safetensors", "'conv.weight'", "[2, 3]", "expected [3, 2]"}},
      {weights->read("conv.weight", {6}, out), Errc::shape_mismatch, {"expected [6]"}},
      {weights->read("conv.weight", {2, 3}, std::span(out).first(5)), Errc::shape_mismatch, {"room for 5 elements, expected 6"}},
      {weights->read("steps", {}, std::span(out).first(1)), Errc::wrong_type, {"'steps'", "I64", "expected F64, F32, F16 or BF16"}},
      {weights->read_int64("half", {3}, std::span(integers).first(3)), Errc::wrong_type, {"'half'", "F16"}},
      {weights->read_raw("half", DType::bf16, {3}, std::span(raw).first(6)), Errc::wrong_type, {"F16", "expected BF16"}},
      {weights->read_raw("half", DType::f16, {3}, std::span(raw).first(7)), Errc::shape_mismatch, {"7 bytes"}},
      {weights->get("absent").status(), Errc::not_found, {"among 4"}}};
  for (const Case& c : cases) {
    CAPTURE(c.status.message());
    CHECK(c.status.code() == c.code);
    for (const std::string& text : c.says) CHECK(c.status.message().find(text) != std::string::npos);
  }
}

TEST_CASE("data that starts at an odd address is read") {
  // A header whose length is no multiple of 8, as some writers leave it.
  const std::string header =
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  const auto bytes = file_of(header, 9);
  const auto weights = Weights::from_bytes(bytes);
  REQUIRE_MESSAGE(weights.ok(), weights.message());
  CHECK(weights->tensors()[0].name == "b");
  float out[2] = {};
  REQUIRE(weights->read("a", {2}, out).ok());
  float expected = 0;
  std::memcpy(&expected, "\x05\x06\x07\x08", 4);
  CHECK(out[1] == expected);
}

TEST_CASE("files that contradict themselves are refused, each for its reason") {
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"("a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
  };
  struct Case {
    std::string header;
    std::size_t data;
    Errc code;
    std::string says;
  };
  const std::string good = tensor("F32", "[2]", "[0,8]");
  REQUIRE(Weights::from_bytes(file_of("{" + good + "}", 8)).ok());
  const Case cases[] = {
      {"", 0, Errc::corrupt, "does not start with '{'"},
      {"[]", 0, Errc::corrupt, "does not start with '{'"},
      {" {}", 0, Errc::corrupt, "does not start with '{'"},
      {"{" + good, 8, Errc::corrupt, "byte"},
      {"{" + good + "}x", 8, Errc::corrupt, "more text"},
      {"{" + good + "," + good + "}", 8, Errc::corrupt, "twice"},
      {"{" + good + "}", 7, Errc::corrupt, "outside"},
      {"{" + good + "}", 9, Errc::corrupt, "1 bytes after the last tensor"},
      {"{}", 3, Errc::corrupt, "3 bytes after"},
      {"{" + tensor("F32", "[2]", "[4,12]") + "}", 12, Errc::corrupt, "a hole"},
      {"{" + tensor("F32", "[2]", "[0,8]") + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]})" + "}", 12, Errc::corrupt,
       "overlaps"},
      {"{" + tensor("F32", "[2]", "[0,8]") + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})" + "}", 8, Errc::corrupt,
       "overlaps"},
      {"{" + tensor("F32", "[3]", "[0,8]") + "}", 8, Errc::corrupt, "8 bytes, expected 12"},
      {"{" + tensor("F64", "[2]", "[0,8]") + "}", 8, Errc::corrupt, "8 bytes, expected 16"},
      {"{" + tensor("F31", "[2]", "[0,8]") + "}", 8, Errc::unsupported, "unknown dtype 'F31'"},
      {"{" + tensor("F32", "[-2]", "[0,8]") + "}", 8, Errc::corrupt, "whole number"},
      {"{" + tensor("F32", "[2.0]", "[0,8]") + "}", 8, Errc::corrupt, "whole number"},
      {"{" + tensor("F32", "2", "[0,8]") + "}", 8, Errc::corrupt, "not an array"},
      {"{" + tensor("F32", "[2]", "[8,0]") + "}", 8, Errc::corrupt, "outside"},
      {"{" + tensor("F32", "[2]", "[-8,0]") + "}", 8, Errc::corrupt, "outside"},
      {"{" + tensor("F32", "[2]", "[0]") + "}", 8, Errc::corrupt, "pair"},
      {"{" + tensor("F32", "[2]", "[0,8,9]") + "}", 8, Errc::corrupt, "pair"},
      {"{" + tensor("F32", "[2]", "[0,\"8\"]") + "}", 8, Errc::corrupt, "pair"},
      {"{" + tensor("F32", "[4294967296,4294967296,4294967296]", "[0,8]") + "}", 8, Errc::corrupt, "more elements than can be counted"},
      {"{" + tensor("F64", "[2305843009213693952]", "[0,8]") + "}", 8, Errc::corrupt, "more elements than can be counted"},
      {"{" + tensor("F32", "[99999999999999999999]", "[0,8]") + "}", 8, Errc::corrupt, "whole number"},
      {"{" + tensor("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4, Errc::corrupt,
       "at most 32"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", 8, Errc::corrupt, "exactly"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8, Errc::corrupt, "exactly"},
      {R"({"a":7})", 0, Errc::corrupt, "exactly"},
      {R"({"":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, Errc::corrupt, "without a name"},
      {R"({"a\u0000":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8, Errc::corrupt, "control character"},
      {R"({"__metadata__":7})", 0, Errc::corrupt, "not an object"},
      {R"({"__metadata__":{"a":7}})", 0, Errc::corrupt, "not a string"},
      {R"({"__metadata__":{"a":"x","a":"y"}})", 0, Errc::corrupt, "twice"},
      {"{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", 0, Errc::unsupported, "nested deeper"}};
  for (const Case& c : cases) {
    CAPTURE(c.header);
    const auto weights = Weights::from_bytes(file_of(c.header, c.data), "bad.safetensors");
    REQUIRE_FALSE(weights.ok());
    CAPTURE(weights.message());
    CHECK(weights.code() == c.code);
    CHECK(weights.message().find("bad.safetensors") != std::string::npos);
    CHECK(weights.message().find(c.says) != std::string::npos);
  }
}

TEST_CASE("every shortened file is refused, and lengths that lie") {
  const auto bytes = bytes_of(small_writer());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CAPTURE(size);
    CHECK(Weights::from_bytes(std::span(bytes).first(size)).code() == Errc::corrupt);
  }
  auto lying = bytes;
  for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{bytes.size()}, std::uint64_t{100'000'001},
                                     ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    std::memcpy(lying.data(), &length, 8);
    CHECK_FALSE(Weights::from_bytes(lying).ok());
  }
}

TEST_CASE("a sealed file verifies, and any changed byte is noticed") {
  for (const bool with_decoy : {false, true}) {
    TensorFileWriter writer = small_writer();
    // Metadata that looks like the seal must not be taken for it.
    if (with_decoy)
      REQUIRE(writer.set_metadata("decoy", R"("digest":"0000000000000000000000000000000000000000000000000000000000000000")").ok());
    const auto sealed = writer.to_sealed_bytes();
    REQUIRE_MESSAGE(sealed.ok(), sealed.message());
    const auto weights = Weights::from_bytes(*sealed, "sealed");
    REQUIRE(weights.ok());
    CHECK(weights->verify_seal().ok());
    CHECK(weights->metadata("digest")->size() == 64);
    std::size_t opened = 0;
    for (std::size_t i = 0; i < sealed->size(); ++i) {
      for (const int flip : {0x01, 0x20, 0x80, 0xff}) {  // 0x20 turns a letter into its capital: the same digit, another byte
        auto changed = *sealed;
        changed[i] ^= static_cast<std::byte>(flip);
        const auto again = Weights::from_bytes(changed, "changed");
        if (!again.ok()) continue;
        ++opened;
        CAPTURE(i);
        const auto status = again->verify_seal();
        REQUIRE_FALSE(status.ok());
        REQUIRE(status.code() == Errc::corrupt);
        REQUIRE(status.message().find("changed") != std::string::npos);
      }
    }
    CHECK(opened > 100);  // most of the data, and much of the metadata
  }
}

TEST_CASE("seals that are missing, of another name, or escaped") {
  const auto unsealed = Weights::from_bytes(bytes_of(small_writer()), "plain.safetensors");
  const auto missing = unsealed->verify_seal();
  CHECK(missing.code() == Errc::corrupt);
  CHECK(missing.message().find("not sealed") != std::string::npos);
  CHECK(missing.message().find("plain.safetensors") != std::string::npos);
  CHECK_FALSE(unsealed->verify_seal("method").ok());

  const auto named = small_writer().to_sealed_bytes("my \"seal\"");
  REQUIRE(named.ok());
  CHECK(Weights::from_bytes(*named)->verify_seal("my \"seal\"").ok());
  CHECK_FALSE(Weights::from_bytes(*named)->verify_seal().ok());
  CHECK_FALSE(small_writer().to_sealed_bytes("\xff").ok());

  std::string text(io::as_text(*small_writer().to_sealed_bytes()));
  const std::string digest(*Weights::from_bytes(test::bytes_of(text))->metadata("digest"));
  const std::size_t at = text.find(digest);
  std::string escaped = text;
  escaped.replace(at, 1,
                  "\\u00" + std::string(digest[0] < 'a' ? "3" : "6") +
                      std::string(1, digest[0] < 'a' ? digest[0] : static_cast<char>(digest[0] - 'a' + '1')));
  std::uint64_t header = 0;
  std::memcpy(&header, escaped.data(), 8);
  header += 5;
  std::memcpy(escaped.data(), &header, 8);
  const auto opened = Weights::from_bytes(test::bytes_of(escaped));
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  REQUIRE(opened->metadata("digest") == digest);
  CHECK_FALSE(opened->verify_seal().ok());
}

TEST_CASE("files: written, opened, shared by copies, replaced while open") {
  const test::TemporaryFolder folder;
  const std::string path = (folder.path() / "a.safetensors").string();
  const TensorFileWriter writer = small_writer();
  REQUIRE(writer.write(path).ok());
  const auto bytes = io::read_file(path);
  CHECK(*bytes == bytes_of(writer));
  std::optional<Weights> copy;
  {
    auto weights = Weights::open(path);
    REQUIRE_MESSAGE(weights.ok(), weights.message());
    CHECK(weights->name() == path);
    copy = *weights;
  }
  REQUIRE(writer.write_sealed(path).ok());
  CHECK(Weights::open(path)->verify_seal().ok());
  std::vector<float> out(6);
  REQUIRE(copy->read("conv.weight", {2, 3}, out).ok());
  CHECK(out[2] == 3.5f);
  CHECK_FALSE(copy->verify_seal().ok());

  auto owned = *bytes;
  const auto kept = Weights::from_bytes(std::move(owned), "owned");
  REQUIRE(kept.ok());
  REQUIRE(kept->read("conv.weight", {2, 3}, out).ok());

  CHECK(Weights::open((folder.path() / "absent").string()).code() == Errc::not_found);
  CHECK(Weights::open(folder.path().string()).code() == Errc::invalid_argument);
  CHECK(writer.write((folder.path() / "no" / "a").string()).code() == Errc::not_found);
  std::ofstream(folder.path() / "empty").close();
  const auto empty = Weights::open((folder.path() / "empty").string());
  CHECK(empty.code() == Errc::corrupt);
  CHECK(empty.message().find("0 bytes") != std::string::npos);
}

TEST_CASE("damaged files give an error or tensors inside the file") {
  auto sealed = *small_writer().to_sealed_bytes();
  Random random(11);
  int opened = 0;
  for (int i = 0; i < 6000; ++i) {
    const auto bytes = test::damaged(sealed, random);
    const auto weights = Weights::from_bytes(bytes, "damaged");
    if (!weights.ok()) {
      REQUIRE_FALSE(weights.message().empty());
      continue;
    }
    ++opened;
    std::int64_t sum = 0;
    for (const io::TensorInfo& tensor : weights->tensors()) {
      std::vector<float> out(static_cast<std::size_t>(tensor.count()));
      if (io::is_float(tensor.dtype)) REQUIRE(weights->read(tensor.name, tensor.shape, out).ok());
      for (const std::byte byte : tensor.bytes) sum += std::to_integer<std::int64_t>(byte);
    }
    REQUIRE(sum >= 0);
    if (bytes != sealed) REQUIRE_FALSE(weights->verify_seal().ok());
  }
  CHECK(opened > 100);
}
