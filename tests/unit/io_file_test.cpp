#include <norma/io/file.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include <doctest/doctest.h>

#include "tests/support/io_files.hpp"
#include "tests/support/shared_fixtures.hpp"

namespace fs = std::filesystem;
using namespace norma;

namespace {

void put(const fs::path& path, std::string_view text) { std::ofstream(path, std::ios::binary) << text; }

std::string get(const fs::path& path) {
  auto text = io::read_text_file(path.string());
  REQUIRE_MESSAGE(text.ok(), text.message());
  return *text;
}

std::ptrdiff_t entries(const fs::path& folder) { return std::distance(fs::directory_iterator(folder), fs::directory_iterator()); }

}  // namespace

TEST_CASE("read_file gives every byte, for sizes around its buffers") {
  const test::TemporaryFolder folder;
  for (const std::size_t size : {0u, 1u, 7u, 4096u, 65535u, 65536u, 65537u, 200000u}) {
    std::string text(size, '\0');
    for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 31 + i / 256);
    const fs::path path = folder.path() / std::to_string(size);
    put(path, text);
    CHECK(get(path) == text);
    const auto mapped = io::MappedFile::open(path.string());
    REQUIRE(mapped.ok());
    CHECK(io::as_text(mapped->bytes()) == text);
    CHECK(io::read_file(path.string(), static_cast<std::int64_t>(size)).ok());
    if (size > 0) {
      const auto limited = io::read_file(path.string(), static_cast<std::int64_t>(size) - 1);
      REQUIRE_FALSE(limited.ok());
      CHECK(limited.code() == Errc::unsupported);
      CHECK(limited.message().find(path.string()) != std::string::npos);
      CHECK_FALSE(io::MappedFile::open(path.string(), static_cast<std::int64_t>(size) - 1).ok());
    }
  }
}

TEST_CASE("errors of reading name the path and the reason") {
  const test::TemporaryFolder folder;
  put(folder.path() / "file", "x");
  struct Case {
    std::string path;
    Errc code;
    std::string reason;
  };
  const Case cases[] = {{(folder.path() / "absent").string(), Errc::not_found, "no such file"},
                        {folder.path().string(), Errc::invalid_argument, "is a folder"},
                        {(folder.path() / "file" / "below").string(), Errc::not_found, "not a folder"},
                        {(folder.path() / std::string(300, 'n')).string(), Errc::invalid_argument, "name too long"}};
  for (const Case& c : cases) {
    CAPTURE(c.path);
    for (const Status& status : {io::read_file(c.path, 100).status(), io::MappedFile::open(c.path).status()}) {
      CHECK(status.code() == c.code);
      CHECK(status.message().find(c.path) != std::string::npos);
      CHECK(status.message().find(c.reason) != std::string::npos);
    }
  }
  CHECK(io::read_file("", 1).code() == Errc::invalid_argument);
  CHECK(io::read_file(std::string("a\0b", 3), 1).code() == Errc::invalid_argument);
}

TEST_CASE("a file or folder without the right to use it says so") {
  const test::TemporaryFolder folder;
  const fs::path path = folder.path() / "closed";
  put(path, "x");
  REQUIRE(::chmod(path.c_str(), 0) == 0);
  REQUIRE(::chmod(folder.path().c_str(), 0555) == 0);
  const bool superuser = ::geteuid() == 0;  // may do anything, so the calls are made as nobody
  if (superuser) REQUIRE(::seteuid(65534) == 0);
  const Status read = io::read_file(path.string(), 10).status();
  const Status mapped = io::MappedFile::open(path.string()).status();
  const Status replaced = io::write_file_atomically(path.string(), "y");
  const Status created = io::write_file_atomically((folder.path() / "new").string(), "y");
  if (superuser) REQUIRE(::seteuid(0) == 0);
  REQUIRE(::chmod(folder.path().c_str(), 0755) == 0);
  for (const Status& status : {read, mapped, replaced, created}) {
    CHECK(status.code() == Errc::io_error);
    CHECK(status.message().find("permission denied") != std::string::npos);
    CHECK(status.message().find(folder.path().string()) != std::string::npos);
  }
  CHECK(entries(folder.path()) == 1);
}

TEST_CASE("a device without a size is read to its end or to the limit") {
  CHECK(io::read_file("/dev/null", 10).ok());
  CHECK(io::read_file("/dev/zero", 100000).code() == Errc::unsupported);
}

TEST_CASE("a pipe is read to its end") {
  const test::TemporaryFolder folder;
  const fs::path path = folder.path() / "pipe";
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::FILE* out = std::fopen(path.c_str(), "wb");
    for (int i = 0; i < 150000 && out != nullptr; ++i) std::fputc(i % 251, out);
    if (out != nullptr) std::fclose(out);
    ::_exit(0);
  }
  REQUIRE(child > 0);
  const auto bytes = io::read_file(path.string(), 1 << 20);
  REQUIRE_MESSAGE(bytes.ok(), bytes.message());
  REQUIRE(bytes->size() == 150000);
  for (std::size_t i = 0; i < bytes->size(); i += 997) CHECK(std::to_integer<std::size_t>((*bytes)[i]) == i % 251);
}

TEST_CASE("an atomic write creates, replaces, and leaves nothing else") {
  const test::TemporaryFolder folder;
  const fs::path path = folder.path() / "out";
  REQUIRE(io::write_file_atomically(path.string(), "first").ok());
  CHECK(get(path) == "first");
  fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
  REQUIRE(io::write_file_atomically(path.string(), "second, longer").ok());
  CHECK(get(path) == "second, longer");
  CHECK((fs::status(path).permissions() & fs::perms::all) == (fs::perms::owner_read | fs::perms::owner_write));
  REQUIRE(io::write_file_atomically(path.string(), "").ok());
  CHECK(get(path).empty());
  CHECK(entries(folder.path()) == 1);
}

TEST_CASE("a write that is not committed leaves the old file and no temporary one") {
  const test::TemporaryFolder folder;
  const fs::path path = folder.path() / "out";
  put(path, "old");
  {
    auto file = io::AtomicFile::create(path.string());
    REQUIRE(file.ok());
    REQUIRE(file->write("half").ok());
    CHECK(get(path) == "old");
    CHECK(entries(folder.path()) == 2);
    auto moved = *std::move(file);
    CHECK(entries(folder.path()) == 2);
  }
  CHECK(get(path) == "old");
  CHECK(entries(folder.path()) == 1);
}

TEST_CASE("two writers of one file do not disturb each other") {
  const test::TemporaryFolder folder;
  const std::string path = (folder.path() / "out").string();
  auto a = io::AtomicFile::create(path);
  auto b = io::AtomicFile::create(path);
  REQUIRE(a.ok());
  REQUIRE(b.ok());
  REQUIRE(a->write("aaaa").ok());
  REQUIRE(b->write("bb").ok());
  REQUIRE(a->commit().ok());
  CHECK(get(path) == "aaaa");
  REQUIRE(b->commit().ok());
  CHECK(get(path) == "bb");
  CHECK(entries(folder.path()) == 1);
}

TEST_CASE("errors of writing name the path and the reason") {
  const test::TemporaryFolder folder;
  const auto missing = io::write_file_atomically((folder.path() / "no" / "out").string(), "x");
  CHECK(missing.code() == Errc::not_found);
  CHECK(missing.message().find("no such file or folder") != std::string::npos);
  CHECK(io::write_file_atomically(folder.path().string(), "x").code() == Errc::invalid_argument);
  CHECK(io::write_file_atomically((folder.path() / "new/").string(), "x").code() == Errc::not_found);
  CHECK(io::write_file_atomically("", "x").code() == Errc::invalid_argument);
  CHECK(entries(folder.path()) == 0);
  if (fs::exists("/dev/full")) {
    const auto full = io::write_file_atomically("/dev/full", "x");
    CHECK(full.code() == Errc::io_error);
    CHECK(full.message().find("no space left") != std::string::npos);
    CHECK(fs::is_character_file("/dev/full"));
  }
}

TEST_CASE("a symbolic link keeps pointing where it did; a device stays a device") {
  const test::TemporaryFolder folder;
  put(folder.path() / "real", "old");
  fs::create_symlink("real", folder.path() / "link");
  REQUIRE(io::write_file_atomically((folder.path() / "link").string(), "new").ok());
  CHECK(fs::is_symlink(folder.path() / "link"));
  CHECK(get(folder.path() / "real") == "new");
  REQUIRE(io::write_file_atomically("/dev/null", "x").ok());
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("a mapping survives the replacement of its file, and moves") {
  const test::TemporaryFolder folder;
  const std::string path = (folder.path() / "file").string();
  put(path, "before");
  auto opened = io::MappedFile::open(path);
  REQUIRE(opened.ok());
  io::MappedFile mapped = *std::move(opened);
  REQUIRE(io::write_file_atomically(path, "after").ok());
  CHECK(io::as_text(mapped.bytes()) == "before");
  io::MappedFile other;
  other = std::move(mapped);
  CHECK(io::as_text(other.bytes()) == "before");
  CHECK(other.size() == 6);
}
