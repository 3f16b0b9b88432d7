#include <norma/io/inflate.hpp>
#include <norma/io/zip.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/io/safetensors.hpp>

#include "tests/support/io_files.hpp"
#include "tests/support/zip_builder.hpp"

using namespace norma;

namespace {

std::vector<std::byte> filled(std::int64_t size) { return std::vector<std::byte>(static_cast<std::size_t>(size), std::byte{0xee}); }

io::ZipArchive opened(std::span<const std::byte> bytes) {
  auto archive = io::ZipArchive::open(bytes, "test.zip");
  REQUIRE_MESSAGE(archive.ok(), archive.message());
  return *std::move(archive);
}

}  // namespace

TEST_CASE("checksums") {
  CHECK(io::crc32(io::as_bytes("123456789")) == 0xcbf43926u);  // the standard's check value
  CHECK(io::crc32({}) == 0u);
  CHECK(io::adler32(io::as_bytes("Wikipedia")) == 0x11e60398u);
  CHECK(io::adler32({}) == 1u);
  const std::string text(20000, '\xff');  // long enough for the sums to wrap
  std::uint64_t a = 1, b = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    a = (a + 0xff) % 65521;
    b = (b + a) % 65521;
  }
  CHECK(io::adler32(io::as_bytes(text)) == (b << 16 | a));
  for (std::size_t split = 0; split <= 20; ++split) {
    const auto bytes = io::as_bytes("the same, in two steps");
    CHECK(io::crc32(bytes.subspan(split), io::crc32(bytes.first(split))) == io::crc32(bytes));
  }
}

TEST_CASE("streams of zlib inflate to what they were made from") {
  const auto file = test::data_bytes("io/deflate_streams.safetensors");
  const auto streams = io::Weights::from_bytes(file);
  REQUIRE_MESSAGE(streams.ok(), streams.message());
  int checked = 0;
  for (const io::TensorInfo& stream : streams->tensors()) {
    const std::string name(stream.name);
    if (name.starts_with("plain.")) continue;
    CAPTURE(name);
    const io::TensorInfo* plain = streams->find("plain" + name.substr(name.find('.')));
    REQUIRE(plain != nullptr);
    const bool zlib = name.starts_with("zlib.");
    auto out = filled(plain->count());
    const auto result = zlib ? io::inflate_zlib(stream.bytes, out) : io::inflate(stream.bytes, out);
    REQUIRE_MESSAGE(result.ok(), result.message());
    CHECK(result->ended);
    CHECK(result->produced == plain->count());
    CHECK(result->consumed == stream.count());
    CHECK(std::equal(out.begin(), out.end(), plain->bytes.begin(), plain->bytes.end()));

    // More room: the end is reached, the rest untouched.
    auto larger = filled(plain->count() + 3);
    const auto roomy = zlib ? io::inflate_zlib(stream.bytes, larger) : io::inflate(stream.bytes, larger);
    REQUIRE(roomy.ok());
    CHECK(roomy->produced == plain->count());
    CHECK(larger.back() == std::byte{0xee});

    // Less room: full, not ended, and right as far as it goes.
    if (plain->count() > 0) {
      auto smaller = filled(plain->count() - 1);
      const auto tight = zlib ? io::inflate_zlib(stream.bytes, smaller) : io::inflate(stream.bytes, smaller);
      REQUIRE(tight.ok());
      CHECK_FALSE(tight->ended);
      CHECK(std::equal(smaller.begin(), smaller.end(), plain->bytes.begin()));
    }

    // Every shortened stream is an error.
    const std::size_t step = stream.bytes.size() > 400 ? 37 : 1;
    for (std::size_t size = 0; size < stream.bytes.size(); size += step) {
      auto part = filled(plain->count());
      const auto cut = zlib ? io::inflate_zlib(stream.bytes.first(size), part) : io::inflate(stream.bytes.first(size), part);
      REQUIRE_FALSE(cut.ok());
    }
    ++checked;
  }
  CHECK(checked == 15);
}

TEST_CASE("damaged streams never write outside of the buffer") {
  const auto file = test::data_bytes("io/deflate_streams.safetensors");
  const auto streams = io::Weights::from_bytes(file);
  REQUIRE(streams.ok());
  Random random(21);
  int failed = 0, total = 0;
  for (const io::TensorInfo& stream : streams->tensors()) {
    if (stream.name.starts_with("plain.") || stream.count() > 6000) continue;
    const std::vector<std::byte> original(stream.bytes.begin(), stream.bytes.end());
    for (int i = 0; i < 400; ++i) {
      const auto bytes = test::damaged(original, random);
      std::vector<std::byte> out(static_cast<std::size_t>(random.below(8000)));
      const auto result = stream.name.starts_with("zlib.") ? io::inflate_zlib(bytes, out) : io::inflate(bytes, out);
      ++total;
      if (!result.ok()) {
        ++failed;
        continue;
      }
      REQUIRE(result->produced <= static_cast<std::int64_t>(out.size()));
      REQUIRE(result->consumed <= static_cast<std::int64_t>(bytes.size()));
    }
  }
  CHECK(failed > total / 10);
}

TEST_CASE("particular faults of deflate data") {
  struct Case {
    std::vector<int> bytes;
    const char* says;
  };
  const Case cases[] = {{{}, "ends before"},
                        {{0x07}, "unknown kind of block"},
                        {{0x01, 5, 0, 0xfa, 0xff, 1, 2}, "stored block"},  // five bytes announced, two there
                        {{0x01, 5, 0, 0xfb, 0xff}, "contradicts"},         // the complement is wrong
                        {{0x03}, "ends inside a block"},
                        {{0x4b, 0x04, 0x42, 0x00}, "reaches before the start"},  // fixed code: 'a', then a copy from too far back
                        {{0xfd, 0xff, 0xff}, "too many codes"}};
  for (const Case& c : cases) {
    std::vector<std::byte> in;
    for (const int byte : c.bytes) in.push_back(static_cast<std::byte>(byte));
    std::vector<std::byte> out(100);
    const auto result = io::inflate(in, out);
    CAPTURE(c.says);
    REQUIRE_FALSE(result.ok());
    CHECK(result.code() == Errc::corrupt);
    CHECK(result.message().find(c.says) != std::string::npos);
  }
  std::vector<std::byte> out(10);
  CHECK_FALSE(io::inflate_zlib(io::as_bytes("abcdefgh"), out).ok());
}

TEST_CASE("archives of another writer: deflated, stored, zip64, folders, a comment") {
  const auto wheel = test::data_bytes("io/wheel.whl");
  const auto archive = opened(wheel);
  REQUIRE(archive.entries().size() == 3);
  const io::ZipEntry* checkpoint = archive.find("tiny/models/tiny-01234567.pth");
  REQUIRE(checkpoint != nullptr);
  CHECK(checkpoint->method == io::ZipMethod::deflated);
  const auto unpacked = archive.read(*checkpoint);
  REQUIRE_MESSAGE(unpacked.ok(), unpacked.message());
  CHECK(*unpacked == test::data_bytes("io/torch_legacy.pt"));
  CHECK(archive.view(*checkpoint).code() == Errc::unsupported);
  const io::ZipEntry* metadata = archive.find("tiny-1.0.dist-info/METADATA");
  REQUIRE(metadata != nullptr);
  CHECK(io::as_text(*archive.view(*metadata)) == "Name: tiny\n");

  const auto zip64 = test::data_bytes("io/zip64.zip");
  const auto other = opened(zip64);
  REQUIRE(other.entries().size() == 2);
  CHECK(io::as_text(*other.read(*other.find("large.txt"))) == "large in name only\n");
  CHECK(io::as_text(*other.read(*other.find("folder/small.txt"))) == "small\n");
  CHECK(other.find("absent") == nullptr);
}

TEST_CASE("archives that must be refused") {
  using test::ZipBuilder;
  const auto status = [](const std::string& text) { return io::ZipArchive::open(io::as_bytes(text), "bad.zip").status(); };
  REQUIRE(status(ZipBuilder().add("a", "1").add("b/c", "2").text("comment")).ok());
  REQUIRE(status(ZipBuilder().text()).ok());
  struct Case {
    std::string text;
    Errc code;
    std::string says;
  };
  std::string overlapping = ZipBuilder().add("a", "1234567890").add("a", "1234567890").text();
  {
    // The second entry of the directory points at the first one's data.
    const std::size_t second = overlapping.rfind("PK\x01\x02");
    overlapping.replace(second + 42, 4, std::string(4, '\0'));
  }
  std::string several = ZipBuilder().add("a", "1").text();
  several[several.size() - 18] = 1;
  const Case cases[] = {{"", Errc::corrupt, "0 bytes"},
                        {std::string(100, 'x'), Errc::corrupt, "no end record"},
                        {ZipBuilder().add("a", "1").add("a", "2").text(), Errc::corrupt, "appears twice"},
                        {ZipBuilder().add("/etc/passwd", "1").text(), Errc::corrupt, "plain relative path"},
                        {ZipBuilder().add("a/../../b", "1").text(), Errc::corrupt, "plain relative path"},
                        {ZipBuilder().add("..", "1").text(), Errc::corrupt, "plain relative path"},
                        {ZipBuilder().add("a\\b", "1").text(), Errc::corrupt, "plain relative path"},
                        {ZipBuilder().add(std::string("a\0b", 3), "1").text(), Errc::corrupt, "plain relative path"},
                        {ZipBuilder().add("", "1").text(), Errc::corrupt, "plain relative path"},
                        {ZipBuilder().add_packed("a", "1", 1, 0, 0, 1).text(), Errc::unsupported, "encrypted"},
                        {ZipBuilder().add_packed("a", "1", 1, 12, 0).text(), Errc::unsupported, "compression method 12"},
                        {ZipBuilder().add_packed("a", "1", 2, 0, 0).text(), Errc::corrupt, "two sizes"},
                        {ZipBuilder().add_packed("a", "1", 1 << 20, 8, 0).text(), Errc::corrupt, "more bytes than deflate can make"},
                        {ZipBuilder().add_packed("a", std::string(40000, '1'), 1 << 25, 8, 0).text(), Errc::unsupported, "200 times"},
                        {overlapping, Errc::corrupt, "overlap"},
                        {several, Errc::unsupported, "volumes"}};
  for (const Case& c : cases) {
    CAPTURE(c.says);
    const Status s = status(c.text);
    REQUIRE_FALSE(s.ok());
    CAPTURE(s.message());
    CHECK(s.code() == c.code);
    CHECK(s.message().find(c.says) != std::string::npos);
    CHECK(s.message().find("bad.zip") != std::string::npos);
  }
  const std::string two = ZipBuilder().add("a", "1").add("b", "2").text();
  io::ZipLimits limits;
  limits.entries = 1;
  CHECK(io::ZipArchive::open(io::as_bytes(two), "x", limits).code() == Errc::unsupported);
  limits = {};
  limits.entry_bytes = 0;
  CHECK(io::ZipArchive::open(io::as_bytes(two), "x", limits).code() == Errc::unsupported);
}

TEST_CASE("wrong checksums and sizes are found when an entry is read") {
  using test::ZipBuilder;
  const std::string stored = ZipBuilder().add_packed("a", "hello", 5, 0, 1234).text();
  const auto a = opened(io::as_bytes(stored));
  CHECK(a.read(a.entries()[0]).message().find("'a': checksum differs") != std::string::npos);
  CHECK(a.view(a.entries()[0]).code() == Errc::corrupt);
  const std::string block("\x01\x05\x00\xfa\xffhello", 10);  // a stored block of deflate
  const std::uint32_t crc = io::crc32(io::as_bytes("hello"));
  const std::string right = ZipBuilder().add_packed("a", block, 5, 8, crc).text();
  const auto b = opened(io::as_bytes(right));
  CHECK(io::as_text(*b.read(b.entries()[0])) == "hello");
  for (const std::uint32_t size : {4u, 6u}) {
    const std::string wrong = ZipBuilder().add_packed("a", block, size, 8, crc).text();
    const auto archive = opened(io::as_bytes(wrong));
    CHECK(archive.read(archive.entries()[0]).code() == Errc::corrupt);
  }
}

TEST_CASE("damaged archives give an error or entries inside the file") {
  Random random(22);
  for (const char* name : {"io/wheel.whl", "io/zip64.zip"}) {
    const auto original = test::data_bytes(name);
    int readable = 0;
    for (int i = 0; i < 2500; ++i) {
      const auto bytes = test::damaged(original, random);
      const auto archive = io::ZipArchive::open(bytes, "damaged");
      if (!archive.ok()) continue;
      for (const io::ZipEntry& entry : archive->entries()) {
        const auto content = archive->read(entry);
        if (content.ok()) {
          ++readable;
          REQUIRE(static_cast<std::int64_t>(content->size()) == entry.size);
        }
      }
    }
    CHECK(readable > 10);
  }
}
