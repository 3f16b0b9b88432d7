// Image files: every format against what Pillow reads, and files that are cut, changed, hostile or no images at all.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/image/decode.hpp>
#include <norma/image/detail/deflate.hpp>

#include "support/image_files.hpp"
#include "support/shared_fixtures.hpp"

// A program's own copy of the library beside norma's, in the same file: must neither collide nor find norma's settings.
#ifdef STBI_NO_STDIO
#error "a macro of the private stb_image is left behind"
#endif
#define STBI_FAILURE_USERMSG
#include <stb/stb_image.h>

using namespace norma;
using test::image_path;
using test::largest_difference;
using test::read_image;

namespace {

std::vector<std::byte> file_bytes(const std::string& name) {
  auto bytes = io::read_file(image_path(name));
  REQUIRE_MESSAGE(bytes.ok(), bytes.message());
  return *std::move(bytes);
}

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto view = io::as_bytes(text);
  return {view.begin(), view.end()};
}

void put_32(std::vector<std::byte>& out, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::byte>(value >> shift & 0xFFu));
}

void put_chunk(std::vector<std::byte>& out, std::string_view type, const std::vector<std::byte>& body) {
  put_32(out, static_cast<std::uint32_t>(body.size()));
  std::vector<std::byte> typed = bytes_of(type);
  typed.insert(typed.end(), body.begin(), body.end());
  out.insert(out.end(), typed.begin(), typed.end());
  put_32(out, io::crc32(typed));
}

// A gray 8-bit PNG with right checksums around whatever stream it is given.
std::vector<std::byte> png_with(std::uint32_t width, std::uint32_t height, const std::vector<std::byte>& stream) {
  std::vector<std::byte> out = bytes_of("\x89PNG\r\n\x1a\n");
  std::vector<std::byte> header;
  put_32(header, width);
  put_32(header, height);
  for (const int value : {8, 0, 0, 0, 0}) header.push_back(static_cast<std::byte>(value));
  put_chunk(out, "IHDR", header);
  put_chunk(out, "IDAT", stream);
  put_chunk(out, "IEND", {});
  return out;
}

// A zlib stream of 1 + 258 * copies zeros: a literal, then copies of the byte before, 13 bits each.
std::vector<std::byte> zeros_stream(std::int64_t copies) {
  std::vector<std::byte> out{std::byte{0x78}, std::byte{0x01}};
  unsigned buffer = 0;
  int filled = 0;
  const auto put = [&](unsigned bit) {
    buffer |= bit << filled;
    if (++filled == 8) out.push_back(static_cast<std::byte>(buffer)), buffer = 0, filled = 0;
  };
  const auto put_code = [&](unsigned code, int bits) {
    for (int b = bits - 1; b >= 0; --b) put(code >> b & 1u);
  };
  put(1), put(1), put(0);  // the last block, fixed codes
  put_code(0x30, 8);       // literal 0
  for (std::int64_t i = 0; i < copies; ++i) {
    put_code(0xC5, 8);  // length 258
    put_code(0, 5);     // distance 1
  }
  put_code(0, 7);  // end of block
  while (filled != 0) put(0);
  put_32(out, static_cast<std::uint32_t>((1 + 258 * copies) % 65521) << 16 | 1u);  // Adler-32 of that many zeros
  return out;
}

bool is_refusal(Errc code) { return code == Errc::corrupt || code == Errc::unsupported; }

}  // namespace

TEST_CASE("dropping alpha: every length, nothing behind the end") {
  for (std::int64_t pixels = 0; pixels < 40; ++pixels) {
    CAPTURE(pixels);
    std::vector<std::uint8_t> four(static_cast<std::size_t>(4 * pixels));
    for (std::size_t i = 0; i < four.size(); ++i) four[i] = static_cast<std::uint8_t>(i * 7 + 1);
    for (auto* drop : {&image::detail::drop_alpha_generic, &image::detail::drop_alpha}) {
      std::vector<std::uint8_t> three(static_cast<std::size_t>(3 * pixels + 1), 200);
      drop(four.data(), pixels, three.data());
      for (std::int64_t i = 0; i < 3 * pixels; ++i) CHECK(three[static_cast<std::size_t>(i)] == four[static_cast<std::size_t>(i / 3 * 4 + i % 3)]);
      CHECK(three.back() == 200);
    }
  }
}

TEST_CASE("a colour JPEG is decoded with four bytes a pixel into what three bytes give") {
  namespace stb = image::detail::stb;
  for (const char* name : {"rgb.jpg", "rgb_progressive.jpg"}) {
    CAPTURE(name);
    const auto bytes = file_bytes(name);
    const Image found = read_image(name);
    stb::largest_block = std::size_t{1} << 26;
    int width = 0, height = 0, components = 0;
    const std::unique_ptr<stb::stbi_uc, decltype(&std::free)> three(
        stb::stbi_load_from_memory(reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()), &width, &height, &components, 3), &std::free);
    REQUIRE(three);
    REQUIRE(found.size_bytes() == std::int64_t{width} * height * 3);
    CHECK(std::equal(found.data(), found.data() + found.size_bytes(), three.get()));
  }
}

TEST_CASE("reading tells how long the file and how long its pixels took") {
  StageTimes times;
  REQUIRE(image::read(image_path("rgb.png"), {}, &times).ok());
  CHECK(times[Stage::read] > 0.0);
  CHECK(times[Stage::decode] > 0.0);
  CHECK(times.total() == times[Stage::read] + times[Stage::decode]);
}

TEST_CASE("formats that keep every value") {
  const Image rgb = read_image("rgb.png");
  const Image gray = read_image("gray.png");
  REQUIRE(rgb.channels() == 3);
  REQUIRE(gray.channels() == 1);
  REQUIRE(rgb.height() == 23);
  REQUIRE(rgb.width() == 37);
  CHECK(largest_difference(read_image("rgba.png"), rgb) == 0);  // alpha is dropped, not blended
  CHECK(largest_difference(read_image("gray_alpha.png"), gray) == 0);
  CHECK(largest_difference(read_image("rgb.bmp"), rgb) == 0);
  CHECK(largest_difference(read_image("rgb.ppm"), rgb) == 0);
  CHECK(largest_difference(read_image("gray.pgm"), gray) == 0);
  CHECK(largest_difference(read_image("palette.png"), read_image("palette_as_read.png")) == 0);
  CHECK(largest_difference(read_image("one_bit.png"), read_image("one_bit_as_read.png")) == 0);
  const Image gray_bmp = read_image("gray.bmp");  // a BMP has no gray, only a palette of it
  REQUIRE(gray_bmp.channels() == 3);
  for (std::int64_t i = 0; i < gray.size_bytes(); ++i) REQUIRE(gray_bmp.data()[3 * i + 1] == gray.data()[i]);
}

TEST_CASE("16 bits are divided by 257 with rounding") {
  CHECK(largest_difference(read_image("gray_16.png"), read_image("gray_16_as_read.png")) == 0);
  CHECK(largest_difference(read_image("rgb_16.png"), read_image("rgb_16_as_read.png")) == 0);
}

TEST_CASE("PNG: every colour type, depth and filter, interlaced or not") {
  const std::pair<const char*, std::vector<int>> kinds[] = {
      {"gray", {1, 2, 4, 8, 16}}, {"rgb", {8, 16}}, {"palette", {1, 2, 4, 8}}, {"gray_alpha", {8, 16}}, {"rgb_alpha", {8, 16}}};
  for (const auto& kind : kinds) {
    for (const int depth : kind.second) {
      const std::string stem = std::string("png_") + kind.first + "_" + std::to_string(depth);
      CAPTURE(stem);
      const Image want = read_image(stem + "_as_read.png");
      CHECK(largest_difference(read_image(stem + ".png"), want) == 0);
      CHECK(largest_difference(read_image(stem + "_interlaced.png"), want) == 0);
    }
  }
  // Sizes at which some of the seven passes are empty.
  for (const char* size : {"1x1", "1x5", "5x1", "3x2", "8x8"}) {
    CAPTURE(std::string(size));
    CHECK(largest_difference(read_image(std::string("png_small_") + size + ".png"),
                             read_image(std::string("png_small_") + size + "_as_read.png")) == 0);
  }
}

TEST_CASE("PNG: chunks that contradict each other") {
  const auto made = [](std::initializer_list<std::pair<const char*, std::vector<std::byte>>> chunks) {
    std::vector<std::byte> out = bytes_of("\x89PNG\r\n\x1a\n");
    for (const auto& chunk : chunks) put_chunk(out, chunk.first, chunk.second);
    return image::decode(out, "made.png");
  };
  const auto header = [](std::uint32_t width, std::uint32_t height, int depth, int type, int interlace = 0) {
    std::vector<std::byte> body;
    put_32(body, width);
    put_32(body, height);
    for (const int value : {depth, type, 0, 0, interlace}) body.push_back(static_cast<std::byte>(value));
    return body;
  };
  // 775 bytes: 31 rows of a filter byte and 24 pixels.
  const auto pixels = zeros_stream(3);
  CHECK(made({{"IHDR", header(24, 31, 8, 0)}, {"IDAT", pixels}, {"IEND", {}}}).ok());
  CHECK(made({{"IHDR", header(24, 31, 8, 0)}, {"tEXt", bytes_of("a\0b")}, {"IDAT", pixels}, {"IEND", {}}}).ok());
  const std::vector<std::byte> half(pixels.begin(), pixels.begin() + 5), rest(pixels.begin() + 5, pixels.end());
  CHECK(made({{"IHDR", header(24, 31, 8, 0)}, {"IDAT", half}, {"IDAT", {}}, {"IDAT", rest}, {"IEND", {}}}).ok());
  CHECK(made({{"IHDR", header(24, 31, 8, 3)}, {"PLTE", bytes_of("abc")}, {"IDAT", pixels}, {"IEND", {}}}).ok());

  CHECK(made({{"IHDR", header(24, 31, 8, 0)}, {"IDAT", half}, {"IEND", {}}}).code() == Errc::corrupt);
  CHECK(made({{"IHDR", header(24, 32, 8, 0)}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);  // too few pixels
  CHECK(made({{"IHDR", header(24, 31, 8, 0)}, {"IEND", {}}}).code() == Errc::corrupt);                    // none
  CHECK(made({{"IDAT", pixels}, {"IHDR", header(24, 31, 8, 0)}, {"IEND", {}}}).code() == Errc::corrupt);  // header not first
  CHECK(made({{"IHDR", header(24, 31, 8, 0)}, {"IHDR", header(24, 31, 8, 0)}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);
  CHECK(made({{"IHDR", header(24, 31, 8, 3)}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);  // no palette
  CHECK(made({{"IHDR", header(24, 31, 8, 3)}, {"PLTE", bytes_of("abcd")}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);
  CHECK(made({{"IHDR", header(24, 31, 8, 3)}, {"PLTE", {}}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);
  CHECK(made({{"IHDR", header(24, 31, 3, 0)}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);  // no such depth
  CHECK(made({{"IHDR", header(24, 31, 4, 2)}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);
  CHECK(made({{"IHDR", header(24, 31, 8, 5)}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);
  CHECK(made({{"IHDR", header(24, 31, 8, 0, 2)}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::unsupported);
  CHECK(made({{"IHDR", header(24, 31, 8, 0)}, {"ABCD", {}}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::unsupported);
  CHECK(made({{"IHDR", bytes_of("short")}, {"IDAT", pixels}, {"IEND", {}}}).code() == Errc::corrupt);
}

TEST_CASE("PNG: random headers over random pixels never crash") {
  Random random(2024);
  int read = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    const std::pair<int, int> kinds[] = {{0, 1}, {0, 2}, {0, 4}, {0, 8}, {0, 16}, {2, 8}, {2, 16}, {3, 1},
                                         {3, 2}, {3, 4}, {3, 8}, {4, 8}, {4, 16}, {6, 8}, {6, 16}};
    const auto kind = kinds[random.below(15)];
    std::vector<std::byte> header, raw(static_cast<std::size_t>(random.below(3000))), stream, out = bytes_of("\x89PNG\r\n\x1a\n");
    put_32(header, static_cast<std::uint32_t>(1 + random.below(12)));
    put_32(header, static_cast<std::uint32_t>(1 + random.below(12)));
    for (const int value : {kind.second, kind.first, 0, 0, static_cast<int>(random.below(2))})
      header.push_back(static_cast<std::byte>(value));
    // Mostly small numbers, so that filters are often known ones and palette indices often inside.
    for (auto& byte : raw) byte = static_cast<std::byte>(random.below(random.below(8) == 0 ? 256 : 5));
    image::detail::deflate_zlib(raw, stream);
    put_chunk(out, "IHDR", header);
    if (random.below(4) > 0)
      put_chunk(out, "PLTE", std::vector<std::byte>(static_cast<std::size_t>(3 * (1 + random.below(20))), std::byte{7}));
    put_chunk(out, "IDAT", stream);
    put_chunk(out, "IEND", {});
    const auto result = image::decode(out, "random");
    if (result.ok())
      ++read;
    else
      REQUIRE(result.code() == Errc::corrupt);
  }
  CHECK(read > 100);
}

TEST_CASE("JPEG, gray, colour and progressive, as Pillow reads it but for the inverse transform") {
  CHECK(largest_difference(read_image("rgb.jpg"), read_image("rgb_jpg_as_read.png")) <= 3);
  CHECK(largest_difference(read_image("rgb_progressive.jpg"), read_image("rgb_jpg_as_read.png")) <= 3);
  CHECK(largest_difference(read_image("gray.jpg"), read_image("gray_jpg_as_read.png")) <= 3);
  CHECK(read_image("gray.jpg").channels() == 1);
}

TEST_CASE("PNM: comments, small ranges, 16 bits, nonsense") {
  const auto gray = image::decode(bytes_of("P5 # made by hand\n2 2\n#more\n 3\n" + std::string("\0\1\2\3", 4)), "a.pgm");
  REQUIRE(gray.ok());
  CHECK(gray->data()[1] == 85);
  CHECK(gray->data()[3] == 255);
  const auto wide = image::decode(bytes_of("P6\n1 1 65535\n" + std::string("\x80\x00\xFF\xFF\x01\x01", 6)), "a.ppm");
  REQUIRE(wide.ok());
  CHECK((*wide)(0, 0, 0) == 128);
  CHECK((*wide)(0, 0, 1) == 255);
  CHECK((*wide)(0, 0, 2) == 1);
  for (const char* text :
       {"P5", "P5 2", "P5 2 2", "P5 2 2 255", "P5 2 2 255\nabc", "P5 x 2 255\nabcd", "P5 2 2 0\nabcd", "P5 2 2 70000\nabcdefgh",
        "P5 99999999999999999999 2 255\nabcd", "P5 0 2 255\nabcd", "P5 -2 2 255\nabcd", "P5 2 2 255x", "P5#", "P6 1 1 255\nab"}) {
    CAPTURE(text);
    CHECK(image::decode(bytes_of(text), "a.pgm").code() == Errc::corrupt);
  }
}

TEST_CASE("errors name the file and say what is wrong") {
  const test::TemporaryFolder folder;
  const auto missing = image::read((folder.path() / "missing.png").string());
  CHECK(missing.code() == Errc::not_found);
  CHECK(missing.message().find("missing.png") != std::string::npos);
  CHECK_FALSE(image::read(folder.path().string()).ok());

  const auto with = [&](const char* name, std::string_view content) {
    const std::string path = (folder.path() / name).string();
    std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
    auto result = image::read(path);
    CHECK(result.message().find(name) != std::string::npos);
    return result;
  };
  CHECK(with("empty.png", "").code() == Errc::corrupt);
  CHECK(with("text.png", "this is a text file").code() == Errc::unsupported);
  const auto gif = with("a.gif", "GIF89a.................");
  CHECK(gif.code() == Errc::unsupported);
  CHECK(gif.message().find("a GIF") != std::string::npos);
  CHECK(with("a.tif", std::string_view("MM\0*....", 8)).message().find("a TIFF") != std::string::npos);
}

TEST_CASE("a file cut anywhere is an error") {
  for (const char* name : {"rgb.png", "gray_16.png", "palette.png", "png_rgb_8_interlaced.png", "rgb.jpg", "gray.jpg",
                           "rgb_progressive.jpg", "rgb.bmp", "gray.bmp", "rgb.ppm", "gray.pgm"}) {
    CAPTURE(std::string(name));
    const auto whole = file_bytes(name);
    const auto complete = image::decode(whole, name);
    REQUIRE(complete.ok());
    for (std::size_t length = 0; length < whole.size(); ++length) {
      // An exact copy, so that a read past the end is seen by a sanitizer.
      const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
      const auto result = image::decode(cut, name);
      CAPTURE(length);
      if (result.ok()) {  // only the last row's padding is missing
        REQUIRE(std::string_view(name).ends_with(".bmp"));
        REQUIRE(length + 3 >= whole.size());
        REQUIRE(largest_difference(*result, *complete) == 0);
        continue;
      }
      REQUIRE(is_refusal(result.code()));
      if (length >= 8) REQUIRE(result.code() == Errc::corrupt);
    }
  }
}

TEST_CASE("changed bytes never crash, and a PNG's checksums find them all") {
  for (const char* name : {"rgb.png", "palette.png", "rgb.jpg", "rgb_progressive.jpg", "gray.bmp", "rgb.ppm"}) {
    CAPTURE(std::string(name));
    const auto whole = file_bytes(name);
    Random random(99);
    for (int trial = 0; trial < 1500; ++trial) {
      auto changed = whole;
      const auto at = static_cast<std::size_t>(random.below(static_cast<std::int64_t>(changed.size())));
      changed[at] ^= static_cast<std::byte>(1 + random.below(255));
      const auto result = image::decode(changed, name, {.max_pixels = 1 << 20});
      if (std::string_view(name).ends_with(".png")) REQUIRE_FALSE(result.ok());
      if (!result.ok()) REQUIRE(is_refusal(result.code()));
    }
  }
}

TEST_CASE("something after the end of a JPEG or PNG is not looked at; a thumbnail's end is not the image's") {
  auto jpeg = file_bytes("rgb.jpg");
  const std::size_t length = jpeg.size();
  jpeg.insert(jpeg.end(), 100, std::byte{0});
  CHECK(image::decode(jpeg, "a.jpg").ok());
  auto png = file_bytes("rgb.png");
  png.insert(png.end(), 100, std::byte{7});
  CHECK(image::decode(png, "a.png").ok());

  // An APP1 segment that holds an end-of-image marker, then the picture without its own.
  std::vector<std::byte> tricked(jpeg.begin(), jpeg.begin() + 2);
  for (const int value : {0xFF, 0xE1, 0x00, 0x06, 0xFF, 0xD9, 0xFF, 0xD9}) tricked.push_back(static_cast<std::byte>(value));
  tricked.insert(tricked.end(), jpeg.begin() + 2, jpeg.begin() + static_cast<std::ptrdiff_t>(length) - 2);
  CHECK(image::decode(tricked, "a.jpg").code() == Errc::corrupt);
  tricked.push_back(std::byte{0xFF});
  tricked.push_back(std::byte{0xD9});
  CHECK(image::decode(tricked, "a.jpg").ok());
}

TEST_CASE("headers that ask for too much are refused before anything is allocated") {
  const auto huge = image::decode(png_with(2000000000, 2000000000, zeros_stream(1)), "huge.png");
  CHECK(is_refusal(huge.code()));
  const auto wide = image::decode(png_with(40000, 2, zeros_stream(400)), "wide.png");
  CHECK(wide.code() == Errc::unsupported);
  CHECK(wide.message().find("40000 x 2") != std::string::npos);
  CHECK(image::decode(png_with(32000, 32000, zeros_stream(1)), "many.png").code() == Errc::unsupported);
  CHECK(image::decode(png_with(0, 5, zeros_stream(1)), "none.png").code() == Errc::corrupt);
  CHECK(image::decode(bytes_of("P6 32000 32000 255\n"), "many.ppm").code() == Errc::unsupported);
  const auto bytes = file_bytes("rgb.png");
  CHECK(image::decode(bytes, "a", {.max_side = 36}).code() == Errc::unsupported);
  CHECK(image::decode(bytes, "a", {.max_pixels = 23 * 37 - 1}).code() == Errc::unsupported);
  CHECK(image::decode(bytes, "a", {.max_side = 37, .max_pixels = 23 * 37}).ok());
  CHECK(image::decode(bytes, "a", {.max_bytes = static_cast<std::int64_t>(bytes.size()) - 1}).code() == Errc::unsupported);
  CHECK(image::read(image_path("rgb.png"), {.max_bytes = 100}).code() == Errc::unsupported);
}

TEST_CASE("a stream that inflates without end stops at what the header explains") {
  // 1 + 258 * 3 = 775 bytes = 25 rows of a filter byte and 30 pixels: an honest file of the same making.
  const auto honest = image::decode(png_with(30, 25, zeros_stream(3)), "honest.png");
  REQUIRE_MESSAGE(honest.ok(), honest.message());
  CHECK(honest->height() == 25);
  // 400 MB of zeros from 2.5 MB, for a picture of 25 x 30: what is too much is not unpacked.
  const auto more = image::decode(png_with(30, 25, zeros_stream(1550000)), "bomb.png");
  REQUIRE_MESSAGE(more.ok(), more.message());
  CHECK(more->size_bytes() == 750);
}

TEST_CASE("a JPEG whose code table says that it is longer than a table can be") {
  auto jpeg = file_bytes("rgb.jpg");
  std::vector<std::byte> table;
  for (const int value : {0xFF, 0xC4, 0x10, 0x03, 0x00}) table.push_back(static_cast<std::byte>(value));  // 2 + 17 + 16 * 255 bytes
  table.insert(table.end(), 16, std::byte{255});
  table.insert(table.end(), 16 * 255, std::byte{1});
  jpeg.insert(jpeg.begin() + 2, table.begin(), table.end());
  const auto long_table = image::decode(jpeg, "a.jpg");
  CHECK(long_table.code() == Errc::corrupt);
  CHECK(long_table.message().find("code table") != std::string::npos);

  const auto whole = file_bytes("rgb.jpg");  // its frame header a second time
  for (std::size_t i = 2; i + 1 < whole.size(); ++i) {
    if (whole[i] != std::byte{0xFF} || whole[i + 1] != std::byte{0xC0}) continue;
    const auto length = std::to_integer<std::ptrdiff_t>(whole[i + 2]) * 256 + std::to_integer<std::ptrdiff_t>(whole[i + 3]) + 2;
    auto twice = whole;
    const auto from = whole.begin() + static_cast<std::ptrdiff_t>(i);
    twice.insert(twice.begin() + static_cast<std::ptrdiff_t>(i), from, from + length);
    CHECK(image::decode(twice, "a.jpg").code() == Errc::corrupt);
    return;
  }
  FAIL("no frame header found");
}
