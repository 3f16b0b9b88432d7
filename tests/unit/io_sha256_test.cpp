#include <norma/io/sha256.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>

#include "tests/support/io_files.hpp"

using namespace norma;

TEST_CASE("SHA-256 of the standard's examples") {
  struct Case {
    std::string text;
    const char* digest;
  };
  // FIPS 180-4 examples; the last is a million times "a".
  const Case cases[] = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
      {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
       "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
      {std::string(1000000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"}};
  for (const Case& c : cases) CHECK(io::sha256_hex(io::as_bytes(c.text)) == c.digest);
}

TEST_CASE("feeding in pieces gives the same digest as at once") {
  Random random(7);
  std::vector<std::byte> data(1000);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random.below(256));
  for (std::size_t size = 0; size <= 200; ++size) {  // every position of the padding within a block
    const std::span<const std::byte> part(data.data(), size);
    const std::string whole = io::sha256_hex(part);
    io::Sha256 one_by_one, two;
    for (const std::byte& byte : part) one_by_one.update({&byte, 1});
    two.update(part.first(size / 3));
    CHECK(two.hex() == io::sha256_hex(part.first(size / 3)));  // asking does not disturb
    two.update(part.subspan(size / 3));
    CHECK(one_by_one.hex() == whole);
    CHECK(two.hex() == whole);
  }
}

TEST_CASE("the processor's instructions agree with the generic rounds") {
#if NORMA_X86_DISPATCH
  if (!io::detail::has_sha_instructions()) {
    MESSAGE("skipped: this processor has no SHA instructions");
    return;
  }
  Random random(8);
  std::vector<std::byte> data(64 * 33 + 1);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random.below(256));
  for (const std::size_t blocks : {0u, 1u, 2u, 3u, 31u, 32u, 33u}) {
    std::array<std::uint32_t, 8> a{}, b{};
    for (std::size_t i = 0; i < 8; ++i) a[i] = b[i] = random.bits();
    io::detail::sha256_blocks_generic(a.data(), data.data() + 1, blocks);  // unaligned
    io::detail::sha256_blocks_sha(b.data(), data.data() + 1, blocks);
    CHECK(a == b);
  }
#else
  MESSAGE("skipped: generic rounds only");
#endif
}
