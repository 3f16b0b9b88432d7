#include <norma/io/tiff.hpp>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/io/safetensors.hpp>

#include "tests/support/io_files.hpp"
#include "tests/support/shared_fixtures.hpp"

using namespace norma;

namespace {

/// A TIFF from tags, for faults of the test's choice. Little-endian; values of 32 bits; the pixel data comes first, at byte 8.
class TiffBuilder {
 public:
  std::map<std::uint16_t, std::vector<std::uint32_t>> tags;
  std::string data;

  static TiffBuilder image(std::uint32_t width, std::uint32_t height, std::uint32_t channels) {
    TiffBuilder b;
    const std::uint32_t bytes = width * height * channels * 4;
    b.data.assign(bytes, '\x11');
    b.tags = {{256, {width}},  {257, {height}}, {258, {32}},    {259, {1}}, {277, {channels}},
              {278, {height}}, {273, {8}},      {279, {bytes}}, {339, {3}}};
    return b;
  }
  [[nodiscard]] std::vector<std::byte> bytes() const {
    std::string out = "II*";
    out.push_back('\0');
    number(out, 8 + static_cast<std::uint32_t>(data.size()), 4);
    out += data;
    number(out, static_cast<std::uint32_t>(tags.size()), 2);
    auto beyond = static_cast<std::uint32_t>(out.size() + 12 * tags.size() + 4);
    for (const auto& [tag, values] : tags) {
      number(out, tag, 2);
      number(out, 4, 2);
      number(out, static_cast<std::uint32_t>(values.size()), 4);
      number(out, values.size() == 1 ? values[0] : beyond, 4);
      if (values.size() > 1) beyond += 4 * static_cast<std::uint32_t>(values.size());
    }
    number(out, 0, 4);
    for (const auto& [tag, values] : tags) {
      if (values.size() == 1) continue;
      for (const std::uint32_t value : values) number(out, value, 4);
    }
    return test::bytes_of(out);
  }

 private:
  static void number(std::string& to, std::uint32_t value, int size) {
    for (int i = 0; i < size; ++i) to.push_back(static_cast<char>(value >> (8 * i)));
  }
};

/// TIFF's LZW, written from its description: a table of strings, codes widened one early, cleared when 4094 are in use.
std::string pack_lzw(std::string_view text) {
  std::string out;
  std::uint64_t bits = 0;
  int count = 0;
  int width = 9;
  const auto emit = [&](std::uint32_t code) {
    bits = bits << width | code;
    count += width;
    while (count >= 8) {
      out.push_back(static_cast<char>(bits >> (count - 8)));
      count -= 8;
    }
  };
  std::map<std::string, std::uint32_t> table;
  std::uint32_t next = 258;
  emit(256);
  std::string current;
  const auto code_of = [&](const std::string& s) {
    return s.size() == 1 ? static_cast<std::uint32_t>(static_cast<unsigned char>(s[0])) : table.at(s);
  };
  for (const char c : text) {
    const std::string longer = current + c;
    if (longer.size() == 1 || table.contains(longer)) {
      current = longer;
      continue;
    }
    emit(code_of(current));
    table[longer] = next++;
    if (next == 4095) {
      emit(256);
      table.clear();
      next = 258;
      width = 9;
    } else if (next + 1 > (1u << width) - 1 + 1) {
      ++width;
    }
    current = std::string(1, c);
  }
  if (!current.empty()) emit(code_of(current));
  ++next;  // the decoder has added a string for the last code too
  if (next + 1 > (1u << width) - 1 + 1 && width < 12) ++width;
  emit(257);
  if (count > 0) out.push_back(static_cast<char>(bits << (8 - count)));
  return out;
}

Tensor<float> random_image(std::int64_t height, std::int64_t width, std::int64_t channels, std::uint64_t seed) {
  Random random(seed);
  Tensor<float> image(1, height, width, channels);
  for (std::int64_t i = 0; i < image.shape().count(); ++i) {
    const std::uint32_t bits = random.bits();  // any bits: infinities, subnormals, NaN with payload
    std::memcpy(image.data() + i, &bits, 4);
  }
  return image;
}

bool same_bits(const Tensor<float>& a, TensorView<const float> b) {
  return a.shape() == b.shape() && std::memcmp(a.data(), b.data, static_cast<std::size_t>(b.count()) * 4) == 0;
}

}  // namespace

TEST_CASE("files of libtiff in every variant read bit for bit") {
  const auto file = test::data_bytes("io/tiff_variants.safetensors");
  const auto variants = io::Weights::from_bytes(file);
  REQUIRE_MESSAGE(variants.ok(), variants.message());
  int checked = 0;
  for (const io::TensorInfo& variant : variants->tensors()) {
    if (variant.name.starts_with("expected.")) continue;
    CAPTURE(variant.name);
    const std::string which(variant.name.substr(0, variant.name.find('.')));
    const io::TensorInfo* expected = variants->find("expected." + which);
    REQUIRE(expected != nullptr);
    const auto image = io::read_tiff(variant.bytes, variant.name);
    REQUIRE_MESSAGE(image.ok(), image.message());
    CHECK(image->shape() == Shape{expected->shape[0], expected->shape[1], expected->shape[2]});
    CHECK(std::memcmp(image->data(), expected->bytes.data(), expected->bytes.size()) == 0);
    ++checked;
    // Cut anywhere, it is an error and no crash. The directory is last, so nothing less than the file is a file.
    for (std::size_t size = 0; size < variant.bytes.size(); size += size < 16 ? 1 : 23) {
      const auto cut = io::read_tiff(variant.bytes.first(size), "cut");
      REQUIRE_FALSE(cut.ok());
    }
  }
  CHECK(checked == 44);
}

TEST_CASE("what is written is read back bit for bit, for strips of one row, of several, and one strip") {
  const test::TemporaryFolder folder;
  const std::string path = (folder.path() / "a.tiff").string();
  for (const Shape shape : {Shape{1, 1, 1}, Shape{7, 5, 3}, Shape{33, 31, 2}, Shape{5, 17000, 1}, Shape{100, 200, 3}, Shape{64, 256, 4}}) {
    const Tensor<float> image = random_image(shape.height, shape.width, shape.channels, 41);
    const Status written = io::write_tiff(path, image.view());
    REQUIRE_MESSAGE(written.ok(), written.message());
    const auto read = io::read_tiff(path);
    REQUIRE_MESSAGE(read.ok(), read.message());
    CHECK(same_bits(*read, image.view()));
  }
  Map<float> map(3, 4);
  map(2, 3) = 0.5f;
  REQUIRE(io::write_tiff(path, std::as_const(map).view()).ok());
  const auto read = io::read_tiff(path);
  REQUIRE(read.ok());
  CHECK(read->shape() == Shape{3, 4, 1});
  CHECK(read->data()[11] == 0.5f);
  CHECK(io::tiff_bytes(TensorView<const float>()).code() == Errc::invalid_argument);
  const Tensor<float> two(2, 1, 1, 1);
  CHECK(io::tiff_bytes(two.view()).code() == Errc::invalid_argument);
  CHECK(io::write_tiff((folder.path() / "no" / "a.tiff").string(), std::as_const(map).view()).code() == Errc::not_found);
  CHECK(io::read_tiff((folder.path() / "absent.tiff").string()).code() == Errc::not_found);
}

TEST_CASE("written strips hold at most 64 KiB, or one row") {
  const Tensor<float> image = random_image(100, 200, 3, 42);
  const auto bytes = io::tiff_bytes(image.view());
  REQUIRE(bytes.ok());
  std::uint32_t directory = 0;
  std::memcpy(&directory, bytes->data() + 4, 4);
  std::uint16_t count = 0;
  std::memcpy(&count, bytes->data() + directory, 2);
  bool found = false;
  for (std::uint32_t i = 0; i < count; ++i) {
    std::uint16_t tag = 0;
    std::uint32_t rows = 0;
    std::memcpy(&tag, bytes->data() + directory + 2 + 12 * i, 2);
    std::memcpy(&rows, bytes->data() + directory + 2 + 12 * i + 8, 4);
    if (tag != 278) continue;
    found = true;
    CHECK(rows == 65536 / (200 * 3 * 4));
  }
  CHECK(found);
}

TEST_CASE("LZW through all code widths and several clears") {
  Random random(43);
  for (const std::size_t size : {1u, 2u, 255u, 256u, 300u, 3000u, 3838u, 3839u, 3840u, 60000u, 400000u}) {
    for (const int alphabet : {1, 2, 40, 256}) {
      std::string text(size, '\0');
      for (char& c : text) c = static_cast<char>(random.below(alphabet));
      const std::string packed = pack_lzw(text);
      std::vector<std::byte> out(size, std::byte{0xee});
      CAPTURE(size);
      CAPTURE(alphabet);
      CHECK(io::detail::unpack_lzw(io::as_bytes(packed), out) == static_cast<std::int64_t>(size));
      CHECK(io::as_text(out) == text);
      std::vector<std::byte> larger(size + 5);
      CHECK(io::detail::unpack_lzw(io::as_bytes(packed), larger) == static_cast<std::int64_t>(size));
    }
  }
}

TEST_CASE("everything else is an error that names the tag and its value") {
  REQUIRE(io::read_tiff(TiffBuilder::image(4, 3, 1).bytes(), "good").ok());
  struct Case {
    std::uint16_t tag;
    std::vector<std::uint32_t> values;  // none: the tag is removed
    Errc code;
    std::string says;
  };
  const Case cases[] = {{258, {16}, Errc::unsupported, "tag 258 is 16, expected 32"},
                        {258, {32, 64}, Errc::unsupported, "tag 258 is 64"},
                        {258, {}, Errc::corrupt, "tag 258 is missing"},
                        {256, {}, Errc::corrupt, "tag 256 is missing"},
                        {256, {0}, Errc::corrupt, "0 x 3"},
                        {257, {0}, Errc::corrupt, "4 x 0"},
                        {277, {0}, Errc::corrupt, "0 channels"},
                        {339, {}, Errc::unsupported, "tag 339"},
                        {339, {1}, Errc::unsupported, "tag 339 is 1"},
                        {339, {2}, Errc::unsupported, "tag 339 is 2"},
                        {259, {7}, Errc::unsupported, "tag 259 is 7"},
                        {259, {32773}, Errc::unsupported, "tag 259 is 32773"},
                        {317, {4}, Errc::unsupported, "tag 317 is 4"},
                        {284, {3}, Errc::unsupported, "tag 284 is 3"},
                        {266, {2}, Errc::unsupported, "tag 266 is 2"},
                        {273, {}, Errc::corrupt, "tag 273 is missing"},
                        {279, {}, Errc::corrupt, "tag 279 is missing"},
                        {273, {4000}, Errc::corrupt, "strip 0: bytes 4000 to"},
                        {273, {0xffffffff}, Errc::corrupt, "strip 0"},
                        {279, {0xffffffff}, Errc::corrupt, "strip 0"},
                        {279, {47}, Errc::corrupt, "47 bytes, expected 48"},
                        {278, {0}, Errc::corrupt, "strips of 0 rows"},
                        {278, {1}, Errc::corrupt, "tag 273 has 1 values, expected 3"},
                        {322, {16}, Errc::corrupt, "tag 323 (TileLength) is missing"},
                        {256, {0x7fffffff}, Errc::unsupported, "limit"},
                        {256, {0xffffffff}, Errc::corrupt, "4294967295"},
                        {257, {1 << 20}, Errc::corrupt, "tag 273 has 1 values, expected 349526"},
                        {277, {65535}, Errc::corrupt, "far larger than the file"}};
  for (const Case& c : cases) {
    TiffBuilder b = TiffBuilder::image(4, 3, 1);
    b.tags.erase(c.tag);
    if (!c.values.empty()) b.tags[c.tag] = c.values;
    const auto image = io::read_tiff(b.bytes(), "scan.tiff");
    CAPTURE(c.says);
    REQUIRE_FALSE(image.ok());
    CAPTURE(image.message());
    CHECK(image.code() == c.code);
    CHECK(image.message().find(c.says) != std::string::npos);
    CHECK(image.message().find("scan.tiff") != std::string::npos);
  }
  const auto error = [](std::string_view text) { return io::read_tiff(test::bytes_of(text), "x").status(); };
  CHECK(error("").code() == Errc::corrupt);
  CHECK(error("II*").code() == Errc::corrupt);
  CHECK(error("PNG, not a TIFF at all").message().find("neither II nor MM") != std::string::npos);
  CHECK(error(std::string_view("II\x2b\0\x08\0\0\0\x10\0\0\0\0\0\0\0", 16)).message().find("BigTIFF") != std::string::npos);
  CHECK(error(std::string_view("II\x2a\0\xff\xff\xff\xff", 8)).message().find("directory") != std::string::npos);
  // A tile that is far larger than the image.
  TiffBuilder b = TiffBuilder::image(4, 3, 1);
  b.tags[322] = {1 << 14};
  b.tags[323] = {1 << 14};
  b.tags[324] = {8};
  b.tags[325] = {48};
  CHECK(io::read_tiff(b.bytes(), "tiles").code() == Errc::corrupt);
  io::TiffLimits limits;
  limits.values = 11;
  CHECK(io::read_tiff(TiffBuilder::image(4, 3, 1).bytes(), "x", limits).code() == Errc::unsupported);
}

TEST_CASE("damaged files give an error or an image") {
  const auto file = test::data_bytes("io/tiff_variants.safetensors");
  const auto variants = io::Weights::from_bytes(file);
  REQUIRE(variants.ok());
  Random random(44);
  int readable = 0, total = 0;
  for (const io::TensorInfo& variant : variants->tensors()) {
    if (variant.name.starts_with("expected.")) continue;
    const std::vector<std::byte> original(variant.bytes.begin(), variant.bytes.end());
    for (int i = 0; i < 150; ++i) {
      const auto image = io::read_tiff(test::damaged(original, random), "damaged");
      ++total;
      if (image.ok()) {
        ++readable;
        REQUIRE(image->shape().count() <= std::int64_t{1} << 28);
      } else {
        REQUIRE_FALSE(image.message().empty());
      }
    }
  }
  CHECK(readable > total / 100);
  CHECK(readable < total);
}
