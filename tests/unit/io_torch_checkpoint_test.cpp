#include <norma/io/torch_checkpoint.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>

#include "tests/support/io_files.hpp"
#include "tests/support/zip_builder.hpp"

using namespace norma;
using io::TorchCheckpoint;

namespace {

// A pickle by hand.
std::string text(std::string_view value) {
  return std::string("X") + static_cast<char>(value.size()) + std::string(3, '\0') + std::string(value);
}
std::string global(const std::string& module, const std::string& name) { return "c" + module + "\n" + name + "\n"; }
std::string integer(std::int32_t value) {
  std::string out = "J";
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(static_cast<std::uint32_t>(value) >> (8 * i)));
  return out;
}
std::string tuple(const std::string& items) { return "(" + items + "t"; }
std::string storage(const std::string& type = "FloatStorage", const std::string& key = "0", std::int32_t count = 6,
                    const std::string& last = "") {
  return tuple(text("storage") + global("torch", type) + text(key) + text("cpu") + integer(count) + last) + "Q";
}
std::string sizes(std::initializer_list<std::int32_t> values) {
  std::string items;
  for (const std::int32_t value : values) items += integer(value);
  return tuple(items);
}
std::string tensor(const std::string& of, std::int32_t offset, const std::string& shape, const std::string& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") +
         tuple(of + integer(offset) + shape + strides + "\x89" + global("collections", "OrderedDict") + ")R") + "R";
}
std::string dict(const std::string& key, const std::string& value) { return "}" + text(key) + value + "s"; }

/// A checkpoint around a pickle's body: six floats 0 .. 5 as storage "0".
std::vector<std::byte> checkpoint(const std::string& body) {
  std::string data;
  for (int i = 0; i < 6; ++i) {
    const auto value = static_cast<float>(i);
    data.append(reinterpret_cast<const char*>(&value), 4);
  }
  return test::ZipBuilder().add("a/data.pkl", "\x80\x02" + body + ".").add("a/data/0", data).add("a/version", "3\n").bytes();
}
Result<TorchCheckpoint> read(std::vector<std::byte> bytes, const io::TorchReadOptions& options = {}) {
  return io::read_torch_checkpoint(std::move(bytes), "hand.pt", options);
}
std::vector<float> floats(const io::TorchTensor& tensor) {
  std::vector<float> out(tensor.bytes.size() / static_cast<std::size_t>(io::size_of(tensor.dtype)));
  REQUIRE(io::to_float(tensor.dtype, tensor.bytes, out).ok());
  return out;
}

void check_same(const TorchCheckpoint& found, const io::Weights& expected, std::string_view name) {
  CAPTURE(name);
  const io::TorchTensor* a = found.find(name);
  const io::TensorInfo* b = expected.find(name);
  REQUIRE(a != nullptr);
  REQUIRE(b != nullptr);
  CHECK(a->dtype == b->dtype);
  CHECK(std::equal(a->shape.begin(), a->shape.end(), b->shape.begin(), b->shape.end()));
  CHECK(std::equal(a->bytes.begin(), a->bytes.end(), b->bytes.begin(), b->bytes.end()));
}

}  // namespace

TEST_CASE("real checkpoints of both layouts give the tensors that torch gives") {
  const auto expected_bytes = test::data_bytes("io/torch_expected.safetensors");
  const auto expected = io::Weights::from_bytes(expected_bytes);
  REQUIRE(expected.ok());
  for (const char* file : {"io/torch_zip.pt", "io/torch_legacy.pt"}) {
    CAPTURE(file);
    const auto found = io::read_torch_checkpoint(test::data_path(file));
    REQUIRE_MESSAGE(found.ok(), found.message());
    CHECK(found->tensors().size() == 14);
    CHECK(found->tensors()[0].name == "conv.weight");  // the checkpoint's own order
    CHECK(found->ignored() == 0);
    CHECK(found->root().empty());
    CHECK(found->name() == test::data_path(file));
    CHECK(found->format() == (std::string(file).find("zip") != std::string::npos ? io::TorchFormat::zip : io::TorchFormat::legacy));
    for (const io::TorchTensor& t : found->tensors()) check_same(*found, *expected, t.name);
    // The trap: stored transposed. Element (o, i, y, x) is where its strides say, not where the bytes come next.
    const auto values = floats(*found->find("conv.weight"));
    CHECK(found->find("conv.weight")->shape == std::vector<std::int64_t>{2, 3, 4, 5});
    for (int o = 0; o < 2; ++o) {
      for (int i = 0; i < 3; ++i) {
        for (int y = 0; y < 4; ++y) {
          for (int x = 0; x < 5; ++x)
            CHECK(values[static_cast<std::size_t>(((o * 3 + i) * 4 + y) * 5 + x)] == static_cast<float>(((y * 5 + x) * 3 + i) * 2 + o));
        }
      }
    }
  }
}

TEST_CASE("a training checkpoint: the state is found, the rest is counted") {
  const auto expected_bytes = test::data_bytes("io/torch_expected.safetensors");
  const auto expected = io::Weights::from_bytes(expected_bytes);
  const auto found = io::read_torch_checkpoint(test::data_path("io/torch_nested.pt"));
  REQUIRE_MESSAGE(found.ok(), found.message());
  CHECK(found->root() == "state_dict");
  REQUIRE(found->tensors().size() == 2);
  CHECK(found->tensors()[0].name == "module.fc.weight");
  CHECK(floats(found->tensors()[0]) == std::vector<float>{1, 3, 2, 4});
  CHECK(floats(found->tensors()[1]) == std::vector<float>{9});
  CHECK(found->ignored() == 11);  // epoch, loss, arch, huge, two sizes, device; momentum, lr, two numbers

  io::TorchReadOptions options;
  options.root = "optimizer.state";
  const auto momentum = io::read_torch_checkpoint(test::data_path("io/torch_nested.pt"), options);
  REQUIRE_MESSAGE(momentum.ok(), momentum.message());
  REQUIRE(momentum->tensors().size() == 1);
  CHECK(momentum->tensors()[0].name == "0.momentum");
  options.root = "optimizer.absent";
  const auto absent = io::read_torch_checkpoint(test::data_path("io/torch_nested.pt"), options);
  CHECK(absent.code() == Errc::not_found);
  CHECK(absent.message().find("optimizer.absent") != std::string::npos);
}

TEST_CASE("names outside of the list are refused by name, or made opaque on request") {
  const auto refused = io::read_torch_checkpoint(test::data_path("io/torch_object.pt"));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.code() == Errc::unsupported);
  CHECK(refused.message().find("datetime.date") != std::string::npos);
  CHECK(refused.message().find("torch_object.pt") != std::string::npos);
  io::TorchReadOptions options;
  options.unknown_globals = io::UnknownGlobals::ignore;
  const auto opaque = io::read_torch_checkpoint(test::data_path("io/torch_object.pt"), options);
  REQUIRE_MESSAGE(opaque.ok(), opaque.message());
  CHECK(opaque->tensors().size() == 1);
  CHECK(opaque->ignored() == 1);
}

TEST_CASE("a tensor by hand: every kind of stride") {
  struct Case {
    std::int32_t offset;
    std::initializer_list<std::int32_t> shape, strides;
    std::vector<float> values;
  };
  const Case cases[] = {{0, {6}, {1}, {0, 1, 2, 3, 4, 5}},
                        {0, {2, 3}, {3, 1}, {0, 1, 2, 3, 4, 5}},
                        {0, {3, 2}, {1, 3}, {0, 3, 1, 4, 2, 5}},
                        {1, {2}, {2}, {1, 3}},
                        {5, {}, {}, {5}},
                        {2, {2, 2}, {0, 1}, {2, 3, 2, 3}},
                        {0, {1, 3}, {77, 2}, {0, 2, 4}},
                        {3, {1, 1}, {900, 900}, {3}},
                        {6, {0}, {1}, {}},
                        {0, {2, 0, 3}, {0, 3, 1}, {}},
                        {0, {2, 2, 2}, {1, 2, 1}, {0, 1, 2, 3, 1, 2, 3, 4}}};
  for (const Case& c : cases) {
    const auto found = read(checkpoint(dict("w", tensor(storage(), c.offset, sizes(c.shape), sizes(c.strides)))));
    REQUIRE_MESSAGE(found.ok(), found.message());
    REQUIRE(found->tensors().size() == 1);
    CHECK(floats(found->tensors()[0]) == c.values);
  }
}

TEST_CASE("other shapes of a checkpoint") {
  const std::string w = tensor(storage(), 0, sizes({6}), sizes({1}));
  // A tensor alone, a list, a parameter, a typed rebuild, an untyped storage, numbers as keys.
  auto found = read(checkpoint(w));
  REQUIRE_MESSAGE(found.ok(), found.message());
  CHECK(found->tensors()[0].name == "tensor");
  found = read(checkpoint("](" + w + w + "e"));
  REQUIRE(found.ok());
  CHECK(found->find("1") != nullptr);
  found = read(checkpoint(
      dict("p", global("torch._utils", "_rebuild_parameter") + tuple(w + "\x88" + global("collections", "OrderedDict") + ")R") + "R")));
  REQUIRE_MESSAGE(found.ok(), found.message());
  CHECK(found->find("p") != nullptr);
  const std::string arguments =
      tuple(storage() + integer(0) + sizes({6}) + sizes({1}) + "\x89" + global("collections", "OrderedDict") + ")R");
  found = read(checkpoint(dict(
      "t", global("torch._tensor", "_rebuild_from_type_v2") +
               tuple(global("torch._utils", "_rebuild_tensor_v2") + global("torch.nn.parameter", "Parameter") + arguments + "}") + "R")));
  REQUIRE_MESSAGE(found.ok(), found.message());
  CHECK(floats(found->tensors()[0]) == std::vector<float>{0, 1, 2, 3, 4, 5});
  const std::string untyped =
      tuple(text("storage") + global("torch.storage", "UntypedStorage") + text("0") + text("cpu") + integer(24)) + "Q";
  found = read(checkpoint(
      dict("u", global("torch._utils", "_rebuild_tensor_v3") +
                    tuple(untyped + integer(1) + sizes({2}) + sizes({2}) + "\x89" + "}" + global("torch", "float32") + "}") + "R")));
  REQUIRE_MESSAGE(found.ok(), found.message());
  CHECK(floats(found->tensors()[0]) == std::vector<float>{1, 3});
  found = read(checkpoint("}" + integer(-4) + w + "s"));
  REQUIRE(found.ok());
  CHECK(found->find("-4") != nullptr);
  // Set twice: the last value counts, once.
  found = read(checkpoint("}" + text("a") + integer(1) + "s" + text("a") + w + "s"));
  REQUIRE(found.ok());
  CHECK(found->tensors().size() == 1);
  CHECK(found->ignored() == 0);
  // An ordered dictionary from a list of pairs.
  found = read(checkpoint(global("collections", "OrderedDict") + tuple("](" + tuple(text("x") + w) + tuple(text("y") + w) + "e") + "R"));
  REQUIRE_MESSAGE(found.ok(), found.message());
  CHECK(found->find("y") != nullptr);
  // Legacy storages that are parts of another: six elements, of which two from the second on.
  found = read(checkpoint(
      dict("part", tensor(storage("FloatStorage", "0", 6, tuple(text("v") + integer(1) + integer(2))), 0, sizes({2}), sizes({1})))));
  REQUIRE_MESSAGE(found.ok(), found.message());
  CHECK(floats(found->tensors()[0]) == std::vector<float>{1, 2});
}

TEST_CASE("hostile pickles: each is an error that says what it is") {
  const std::string w = tensor(storage(), 0, sizes({6}), sizes({1}));
  const auto tensor_of = [](std::int32_t offset, std::initializer_list<std::int32_t> shape, std::initializer_list<std::int32_t> strides) {
    return dict("w", tensor(storage(), offset, sizes(shape), sizes(strides)));
  };
  struct Case {
    std::string body;
    Errc code;
    std::string says;
  };
  const Case cases[] = {
      {global("os", "system") + tuple(text("echo run")) + "R", Errc::unsupported, "'os.system'"},
      {global("posix", "system") + tuple(text("echo run")) + "R", Errc::unsupported, "'posix.system'"},
      {global("builtins", "eval") + tuple(text("1")) + "R", Errc::unsupported, "'builtins.eval'"},
      {global("torch", "load") + tuple(text("x")) + "R", Errc::unsupported, "'torch.load'"},
      {global("torch.hub", "load") + ")R", Errc::unsupported, "'torch.hub.load'"},
      {text("os") + text("system") + "\x93" + tuple(text("x")) + "R", Errc::unsupported, "'os.system'"},
      {global("torch", "FloatStorage") + ")R", Errc::corrupt, "no function that makes tensors"},
      {"(" + text("x") + "ios\nsystem\n", Errc::unsupported, "instruction 0x69"},                 // INST
      {"(" + global("collections", "OrderedDict") + "o", Errc::unsupported, "instruction 0x6f"},  // OBJ
      {"I1\n", Errc::unsupported, "instruction 0x49"},                                            // text of protocol 0
      {"\x82\x01", Errc::unsupported, "instruction 0x82"},                                        // EXT1
      {"Pos\n", Errc::unsupported, "instruction 0x50"},
      {"\x80\x06N", Errc::unsupported, "protocol 6"},
      {"", Errc::corrupt, "0 values on the stack"},
      {"NN", Errc::corrupt, "2 values on the stack"},
      {"(N", Errc::corrupt, "STOP with"},
      {"0", Errc::corrupt, "the stack is empty"},
      {"N00", Errc::corrupt, "the stack is empty"},
      {"2", Errc::corrupt, "the stack is empty"},
      {"R", Errc::corrupt, "fewer values"},
      {"NR", Errc::corrupt, "fewer values"},
      {"(R", Errc::corrupt, "fewer values"},
      {"N(R", Errc::corrupt, "fewer values"},  // a mark is a floor
      {"t", Errc::corrupt, "no mark"},
      {"u", Errc::corrupt, "no mark"},
      {"}Ns", Errc::corrupt, "the stack is empty"},
      {"}(Nu", Errc::corrupt, "a key without a value"},
      {"(Nd", Errc::corrupt, "a key without a value"},
      {"NNNs", Errc::corrupt, "not a dictionary"},
      {"NNa", Errc::corrupt, "not a list"},
      {"N(Ne", Errc::corrupt, "not a list"},
      {"h\x05", Errc::corrupt, "memo 5 was never set"},
      {"r", Errc::corrupt, "cut short"},
      {std::string("q\0", 2), Errc::corrupt, "the stack is empty"},
      {"N}R", Errc::corrupt, "not a function"},
      {text("f") + ")R", Errc::corrupt, "not a function"},
      {"N}b", Errc::corrupt, "no state"},
      {"NQ", Errc::corrupt, "not a tuple of at least 5"},
      {tuple(text("module") + "NNNN") + "Q", Errc::unsupported, "no storage"},
      {tuple(text("storage") + "NNNN") + "Q", Errc::corrupt, "not a class"},
      {storage("ComplexFloatStorage"), Errc::unsupported, "'torch.ComplexFloatStorage'"},
      {storage("float32"), Errc::unsupported, "storage type"},
      {storage("FloatStorage", "0", -1), Errc::corrupt, "size is not a whole number"},
      {"\x8b\xff\xff\xff\x7f", Errc::corrupt, "cut short"},  // LONG4 of two gigabytes
      {"\x8b\xff\xff\xff\xff", Errc::corrupt, "cut short"},
      {"\x8a\xff", Errc::corrupt, "cut short"},
      {"X\xff\xff\xff\xff", Errc::corrupt, "cut short"},
      {"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", Errc::corrupt, "cut short"},
      {"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", Errc::corrupt, "frame"},
      {"cos", Errc::corrupt, "cut short inside a name"},
      {dict("w", tensor(storage("FloatStorage", "9"), 0, sizes({6}), sizes({1}))), Errc::corrupt, "storage '9' is not in the file"},
      {dict("w", tensor(storage("FloatStorage", "../../etc"), 0, sizes({6}), sizes({1}))), Errc::corrupt, "is not in the file"},
      {dict("w", tensor(storage("FloatStorage", "0", 7), 0, sizes({6}), sizes({1}))), Errc::corrupt, "expected 7 elements"},
      {dict("w", tensor(storage("DoubleStorage", "0", 6), 0, sizes({3}), sizes({1}))), Errc::corrupt, "expected 6 elements"},
      {dict("w", tensor("N", 0, sizes({6}), sizes({1}))), Errc::corrupt, "no storage"},
      {dict("w", tensor(storage(), -1, sizes({6}), sizes({1}))), Errc::corrupt, "offset"},
      {tensor_of(1, {6}, {1}), Errc::corrupt, "reaches beyond its storage"},
      {tensor_of(6, {1}, {1}), Errc::corrupt, "reaches beyond its storage"},
      {tensor_of(2147483647, {1}, {1}), Errc::corrupt, "reaches beyond its storage"},
      {tensor_of(0, {2, 3}, {4, 1}), Errc::corrupt, "reaches beyond its storage"},
      {tensor_of(0, {2147483647, 2147483647}, {2147483647, 2147483647}), Errc::corrupt, "reaches beyond its storage"},
      {tensor_of(0, {2147483647, 2147483647, 2147483647}, {0, 0, 0}), Errc::corrupt, "more elements than can be counted"},
      {tensor_of(0, {2147483647}, {0}), Errc::unsupported, "unpacks to far more bytes"},
      {tensor_of(0, {-6}, {1}), Errc::corrupt, "negative size"},
      {tensor_of(5, {6}, {-1}), Errc::corrupt, "negative stride"},
      {tensor_of(0, {6}, {1, 1}), Errc::corrupt, "differ in number"},
      {dict("w", tensor(storage(), 0, integer(6), sizes({1}))), Errc::corrupt, "not a tuple"},
      {dict("w", tensor(storage(), 0, tuple(text("6")), sizes({1}))), Errc::corrupt, "not a whole number"},
      {global("torch._utils", "_rebuild_tensor_v2") + ")R", Errc::corrupt, "too few arguments"},
      {global("torch._utils", "_rebuild_parameter") + ")R", Errc::corrupt, "no tensor"},
      {global("torch._utils", "_rebuild_parameter") + tuple("N") + "R", Errc::corrupt, "not of a tensor"},
      {global("torch._tensor", "_rebuild_from_type_v2") + tuple("NN") + "R", Errc::corrupt, "four arguments"},
      {global("collections", "OrderedDict") + tuple("N") + "R", Errc::corrupt, "list of pairs"},
      {global("collections", "OrderedDict") + tuple("](Ne") + "R", Errc::corrupt, "list of pairs"},
      {global("collections", "OrderedDict") + "}R", Errc::corrupt, "not a tuple"},
      {global("torch", "Size") + tuple("N") + "R", Errc::corrupt, "expected one tuple"},
      {std::string("]q\0h\0a", 6), Errc::corrupt, "containing themselves"},  // a list that contains itself
      {std::string("}q\0", 3) + text("a") + std::string("h\0s", 3), Errc::corrupt, "containing themselves"},
      {"}" + text("a.b") + w + "s" + text("a") + dict("b", w) + "s", Errc::corrupt, "two tensors are named 'a.b'"},
      {dict("\xff", w), Errc::corrupt, "not UTF-8"}};
  for (const Case& c : cases) {
    CAPTURE(c.says);
    const auto found = read(checkpoint(c.body));
    REQUIRE_FALSE(found.ok());
    CAPTURE(found.message());
    CHECK(found.code() == c.code);
    CHECK(found.message().find(c.says) != std::string::npos);
    CHECK(found.message().find("hand.pt") != std::string::npos);
  }
}

TEST_CASE("pickles that would take for ever or all memory are stopped") {
  // Each list holds the one before twice: 2^40 visits.
  std::string laughs = "](";
  laughs += tensor(storage(), 0, sizes({6}), sizes({1})) + "e";
  for (int i = 0; i < 40; ++i)
    laughs += std::string("q") + static_cast<char>(i) + "0](" + std::string("h") + static_cast<char>(i) + "h" + static_cast<char>(i) + "e";
  auto found = read(checkpoint(laughs));
  REQUIRE_FALSE(found.ok());
  CHECK(found.code() == Errc::unsupported);
  // Repeats of a tensor that is larger than its storage.
  std::string many = "](";
  for (int i = 0; i < 100; ++i) many += tensor(storage(), 0, sizes({1000000}), sizes({0}));
  CHECK(read(checkpoint(many + "e")).code() == Errc::unsupported);
  // Dictionaries copied from one another.
  std::string copies = global("collections", "OrderedDict") + std::string("q\1}(", 4);
  for (int i = 0; i < 1000; ++i) copies += integer(i) + "N";
  copies += std::string("uq\2", 3);
  for (int i = 0; i < 2000; ++i) copies += std::string("h\1h\2\x85R0", 7);
  CHECK(read(checkpoint(copies + "0")).code() == Errc::unsupported);
  io::TorchReadOptions options;
  options.max_steps = 10;
  CHECK(read(checkpoint(std::string(20, '(')), options).message().find("more than 10 instructions") != std::string::npos);
  options = {};
  options.max_values = 10;
  CHECK(read(checkpoint(std::string(20, 'N')), options).message().find("more than 10 values") != std::string::npos);
  options = {};
  options.max_pickle_bytes = 10;
  CHECK(read(checkpoint(std::string(20, 'N')), options).code() == Errc::unsupported);
  options = {};
  options.max_depth = 2;
  CHECK(read(checkpoint("](](](](NeNeNeNe"), options).ok() == false);
}

TEST_CASE("files that are something else say so") {
  const auto status = [](const std::vector<std::byte>& bytes) { return io::read_torch_checkpoint_view(bytes, "x.pth").status(); };
  struct Case {
    std::vector<std::byte> bytes;
    Errc code;
    std::string says;
  };
  const std::string stop = std::string("\x80\x02N.", 4);
  const Case cases[] = {
      {{}, Errc::unsupported, "neither a zip archive nor a pickle"},
      {test::bytes_of("hello, this is text"), Errc::unsupported, "neither"},
      {test::ZipBuilder().add("a.txt", "x").bytes(), Errc::unsupported, "without data.pkl"},
      {test::ZipBuilder().add("a/data.pkl", stop).add("a/constants.pkl", stop).bytes(), Errc::unsupported, "TorchScript"},
      {test::ZipBuilder().add("a/data.pkl", stop).add("a/byteorder", "big").bytes(), Errc::unsupported, "byte order 'big'"},
      {test::bytes_of(std::string("\x80\x02].", 4)), Errc::unsupported, "no torch checkpoint"},
      {test::bytes_of(std::string("\x80\x02", 2)), Errc::corrupt, "without a STOP"}};
  for (const Case& c : cases) {
    const Status s = status(c.bytes);
    REQUIRE_FALSE(s.ok());
    CAPTURE(s.message());
    CHECK(s.code() == c.code);
    CHECK(s.message().find(c.says) != std::string::npos);
    CHECK(s.message().find("x.pth") != std::string::npos);
  }
  CHECK(io::read_torch_checkpoint(test::data_path("io/absent.pt")).code() == Errc::not_found);
}

TEST_CASE("every shortened checkpoint is refused") {
  for (const char* file : {"io/torch_zip.pt", "io/torch_legacy.pt"}) {
    const auto bytes = test::data_bytes(file);
    for (std::size_t size = 0; size < bytes.size(); size += size < 100 ? 1 : 7) {
      CAPTURE(size);
      REQUIRE_FALSE(io::read_torch_checkpoint_view(std::span(bytes).first(size), "cut").ok());
    }
  }
  auto longer = test::data_bytes("io/torch_legacy.pt");
  longer.push_back(std::byte{0});
  CHECK(io::read_torch_checkpoint_view(longer, "long").message().find("1 bytes after the last storage") != std::string::npos);
}

TEST_CASE("damaged checkpoints give an error or tensors of the right size") {
  Random random(31);
  for (const char* file : {"io/torch_zip.pt", "io/torch_legacy.pt", "io/torch_nested.pt"}) {
    CAPTURE(file);
    const auto original = test::data_bytes(file);
    int readable = 0;
    for (int i = 0; i < 2500; ++i) {
      const auto bytes = test::damaged(original, random);
      const auto found = io::read_torch_checkpoint_view(bytes, "damaged");
      if (!found.ok()) {
        REQUIRE_FALSE(found.message().empty());
        continue;
      }
      ++readable;
      for (const io::TorchTensor& t : found->tensors()) {
        std::int64_t count = 1;
        for (const std::int64_t size : t.shape) count *= size;
        REQUIRE(static_cast<std::int64_t>(t.bytes.size()) == count * io::size_of(t.dtype));
      }
    }
    CHECK(readable > 10);
  }
  // The zip's checksums catch most damage before the pickle is run: damage the pickle alone.
  const auto zip = test::data_bytes("io/torch_nested.pt");
  const auto archive = io::ZipArchive::open(zip, "nested");
  REQUIRE(archive.ok());
  std::vector<std::pair<std::string, std::vector<std::byte>>> parts;
  for (const io::ZipEntry& entry : archive->entries()) parts.emplace_back(entry.name, *archive->read(entry));
  int readable = 0;
  for (int i = 0; i < 6000; ++i) {
    test::ZipBuilder builder;
    for (const auto& [name, content] : parts)
      builder.add(name, io::as_text(name.ends_with("data.pkl") ? test::damaged(content, random) : content));
    const auto bytes = builder.bytes();
    const auto found = io::read_torch_checkpoint_view(bytes, "damaged");
    if (found.ok()) ++readable;
  }
  CHECK(readable > 10);
}
