/// \file
/// Reads the tensors of PyTorch checkpoints (.pt, .pth, .bin) without running anything that is in them.
/// A checkpoint is a pickle: a program for a small stack machine that may name any Python function. This reader knows the few instructions
/// and names that tensors need (docs/formats/torch_checkpoints.md lists them), builds plain values from them, and refuses the rest by name.
/// Both layouts are read: the zip archive of torch >= 1.6, and the five pickles followed by raw data of earlier versions.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/io/dtype.hpp>
#include <norma/io/file.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/io/zip.hpp>

namespace norma::io {

/// What to do with a name that a checkpoint refers to and that is not on the list. Neither choice runs anything.
enum class UnknownGlobals : std::uint8_t {
  refuse,  ///< an error that says the name
  ignore,  ///< the object becomes an opaque value: it and what it holds are left out
};

struct TorchReadOptions {
  /// The dictionary to read, such as "state_dict" or "model.teacher"; empty: the whole object if tensors are directly in it, else the
  /// first of "state_dict", "model_state_dict", "model", "net", "network" that holds any, else the whole object.
  std::string root;
  UnknownGlobals unknown_globals = UnknownGlobals::refuse;
  std::int64_t max_file_bytes = std::int64_t{1} << 36;
  std::int64_t max_pickle_bytes = std::int64_t{1} << 26;
  std::int64_t max_steps = std::int64_t{1} << 23;   ///< instructions
  std::int64_t max_values = std::int64_t{1} << 21;  ///< made, and again visited
  std::int64_t max_tensors = std::int64_t{1} << 17;
  std::int64_t max_name_bytes = 1024;  ///< of one tensor
  int max_depth = 64;
};

/// One tensor, strides resolved: dense, row-major.
struct TorchTensor {
  std::string name;  ///< keys on the way to it, joined by '.'
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

enum class TorchFormat : std::uint8_t { zip, legacy };

/// The tensors of a checkpoint. Copies share the bytes.
class TorchCheckpoint {
 public:
  [[nodiscard]] std::span<const TorchTensor> tensors() const noexcept { return state_->tensors; }
  [[nodiscard]] const TorchTensor* find(std::string_view name) const noexcept {
    for (const TorchTensor& tensor : state_->tensors) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  /// Values that are not tensors, and tensors outside of `root`.
  [[nodiscard]] std::int64_t ignored() const noexcept { return state_->ignored; }
  /// The dictionary that was read; empty for the whole object.
  [[nodiscard]] const std::string& root() const noexcept { return state_->root; }
  [[nodiscard]] TorchFormat format() const noexcept { return state_->format; }
  /// The path, or the name given with the bytes.
  [[nodiscard]] const std::string& name() const noexcept { return state_->name; }
  /// The whole checkpoint file.
  [[nodiscard]] std::span<const std::byte> file_bytes() const noexcept { return state_->bytes; }

  struct State {
    MappedFile file;
    std::vector<std::byte> owned;
    std::span<const std::byte> bytes;
    std::deque<std::vector<std::byte>> unpacked;  // compressed or transposed data; a deque keeps earlier ones in place
    std::vector<TorchTensor> tensors;
    std::int64_t ignored = 0;
    std::string root;
    std::string name;
    TorchFormat format = TorchFormat::zip;
  };
  explicit TorchCheckpoint(std::shared_ptr<const State> state) noexcept : state_(std::move(state)) {}

 private:
  std::shared_ptr<const State> state_;
};

namespace detail {

/// A value that a pickle made. Values refer to each other by index, so a list that contains itself is harmless until it is walked.
struct PickleValue {
  enum class Kind : std::uint8_t {
    none,
    boolean,
    integer,
    big_integer,
    real,
    text,
    bytes,
    tuple,
    list,
    dict,
    global,
    storage,
    tensor,
    opaque
  };
  Kind kind = Kind::none;
  DType dtype = DType::f32;  // storage, tensor (of an untyped storage)
  std::int64_t integer = 0;  // boolean, integer; storage: elements; tensor: offset in elements
  double real = 0.0;
  std::string_view text;                // text, bytes, big_integer; global: module; storage: key. Points into the file.
  std::string_view attribute;           // global: name; storage: key of the storage that it is a part of
  std::vector<std::uint32_t> children;  // tuple, list; dict: key, value, ...; tensor: storage, sizes (tuple), strides (tuple)
};

/// Element type of torch's typed storage classes and of its dtype objects.
[[nodiscard]] inline std::optional<DType> torch_dtype(std::string_view name) noexcept {
  struct Pair {
    std::string_view storage, dtype;
    DType type;
  };
  static constexpr std::array<Pair, 10> kPairs = {{{"DoubleStorage", "float64", DType::f64},
                                                   {"FloatStorage", "float32", DType::f32},
                                                   {"HalfStorage", "float16", DType::f16},
                                                   {"BFloat16Storage", "bfloat16", DType::bf16},
                                                   {"LongStorage", "int64", DType::i64},
                                                   {"IntStorage", "int32", DType::i32},
                                                   {"ShortStorage", "int16", DType::i16},
                                                   {"CharStorage", "int8", DType::i8},
                                                   {"ByteStorage", "uint8", DType::u8},
                                                   {"BoolStorage", "bool", DType::boolean}}};
  for (const Pair& pair : kPairs) {
    if (name == pair.storage || name == pair.dtype) return pair.type;
  }
  return std::nullopt;
}

/// Runs one pickle (protocols 2 to 5) and gives the index of its value. Several may be run one after the other.
class PickleMachine {
 public:
  using Kind = PickleValue::Kind;

  PickleMachine(const std::string& file, const TorchReadOptions& options) : file_(file), options_(options) {}

  /// `at` moves behind the pickle's STOP.
  Result<std::uint32_t> run(std::string_view text, std::size_t& at) {
    text_ = text;
    at_ = at;
    stack_.clear();
    marks_.clear();
    memo_.clear();
    Status failure;
    for (;;) {
      instruction_ = at_;
      if (at_ >= text_.size()) return corrupt("the pickle ends without a STOP");
      if (++steps_ > options_.max_steps)
        return error(Errc::unsupported, "more than " + std::to_string(options_.max_steps) + " instructions");
      const auto code = static_cast<unsigned char>(text_[at_++]);
      if (code == '.') break;
      NORMA_CHECK(execute(code));
      if (static_cast<std::int64_t>(values_.size()) > options_.max_values) {
        return error(Errc::unsupported, "more than " + std::to_string(options_.max_values) + " values");
      }
    }
    if (stack_.size() != 1 || !marks_.empty())
      return corrupt("STOP with " + std::to_string(stack_.size()) + " values on the stack, expected 1");
    at = at_;
    return stack_.back();
  }

  [[nodiscard]] const PickleValue& value(std::uint32_t index) const noexcept { return values_[index]; }
  [[nodiscard]] std::span<const std::uint32_t> storages() const noexcept { return storages_; }

 private:
  Status error(Errc code, const std::string& what) const {
    return {code, "read_torch_checkpoint: '" + file_ + "': pickle byte " + std::to_string(instruction_) + ": " + what};
  }
  Status corrupt(const std::string& what) const { return error(Errc::corrupt, what); }

  std::uint32_t make(PickleValue value) {
    values_.push_back(std::move(value));
    return static_cast<std::uint32_t>(values_.size() - 1);
  }
  Status push(PickleValue value) {
    stack_.push_back(make(std::move(value)));
    return {};
  }
  static PickleValue of(Kind kind, std::int64_t integer = 0, std::string_view text = {}) {
    PickleValue value;
    value.kind = kind;
    value.integer = integer;
    value.text = text;
    return value;
  }
  static PickleValue sequence(Kind kind, std::vector<std::uint32_t> children) {
    PickleValue value;
    value.kind = kind;
    value.children = std::move(children);
    return value;
  }

  /// Values above the last mark, or all of them.
  [[nodiscard]] std::size_t available() const noexcept { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }
  Result<std::uint32_t> pop() {
    if (available() == 0) return corrupt("the stack is empty");
    const std::uint32_t index = stack_.back();
    stack_.pop_back();
    return index;
  }
  Result<std::vector<std::uint32_t>> pop_to_mark() {
    if (marks_.empty()) return corrupt("no mark on the stack");
    std::vector<std::uint32_t> items(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }
  Result<std::vector<std::uint32_t>> pop_some(std::size_t count) {
    if (available() < count) return corrupt("the stack holds fewer values than the instruction takes");
    std::vector<std::uint32_t> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }
  Result<PickleValue*> top(Kind kind, std::string_view what) {
    if (available() == 0) return corrupt("the stack is empty");
    PickleValue& value = values_[stack_.back()];
    // What is put into an opaque object is as opaque as the object.
    if (value.kind != kind && value.kind != Kind::opaque) return corrupt("the value on the stack is not " + std::string(what));
    return &value;
  }

  Result<std::string_view> take(std::uint64_t count) {
    if (count > text_.size() - at_)
      return corrupt("cut short: " + std::to_string(count) + " bytes expected, " + std::to_string(text_.size() - at_) + " found");
    const std::string_view part = text_.substr(at_, static_cast<std::size_t>(count));
    at_ += part.size();
    return part;
  }
  Result<std::uint64_t> unsigned_integer(std::size_t bytes) {
    NORMA_TRY(const std::string_view part, take(bytes));
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) value |= std::uint64_t{static_cast<unsigned char>(part[i])} << (8 * i);
    return value;
  }
  Status push_sized(Kind kind, std::size_t length_bytes) {
    NORMA_TRY(const std::uint64_t length, unsigned_integer(length_bytes));
    NORMA_TRY(const std::string_view content, take(length));
    return push(of(kind, 0, content));
  }
  Result<std::string_view> line() {
    const std::size_t end = text_.find('\n', at_);
    if (end == std::string_view::npos) return corrupt("cut short inside a name");
    const std::string_view part = text_.substr(at_, end - at_);
    at_ = end + 1;
    return part;
  }

  /// Two's complement, little-endian; more than 8 bytes stay bytes.
  Status push_long(std::uint64_t length) {
    NORMA_TRY(const std::string_view part, take(length));
    if (length > 8) return push(of(Kind::big_integer, 0, part));
    std::uint64_t value = length > 0 && (static_cast<unsigned char>(part.back()) & 0x80u) != 0 ? ~std::uint64_t{0} : 0;
    for (std::size_t i = 0; i < length; ++i) {
      value &= ~(std::uint64_t{0xff} << (8 * i));
      value |= std::uint64_t{static_cast<unsigned char>(part[i])} << (8 * i);
    }
    return push(of(Kind::integer, static_cast<std::int64_t>(value)));
  }

  Status remember(std::uint64_t slot) {
    if (available() == 0) return corrupt("the stack is empty");
    memo_[slot] = stack_.back();
    return {};
  }
  Status recall(std::uint64_t slot) {
    const auto at = memo_.find(slot);
    if (at == memo_.end()) return corrupt("memo " + std::to_string(slot) + " was never set");
    stack_.push_back(at->second);
    return {};
  }

  static bool is(const PickleValue& global, std::string_view module, std::string_view name) {
    return global.kind == Kind::global && global.text == module && global.attribute == name;
  }
  static std::string full_name(const PickleValue& global) { return std::string(global.text) + "." + std::string(global.attribute); }

  Status push_global(std::string_view module, std::string_view name) {
    PickleValue value = of(Kind::global, 0, module);
    value.attribute = name;
    const bool torch = module == "torch" || module == "torch.storage";
    const bool known =
        (torch && (torch_dtype(name).has_value() || name == "UntypedStorage" || name == "Size" || name == "device" ||
                   name == "per_tensor_affine" || name == "strided")) ||
        (module == "collections" && name == "OrderedDict") ||
        (module == "torch._utils" && (name == "_rebuild_tensor" || name == "_rebuild_tensor_v2" || name == "_rebuild_tensor_v3" ||
                                      name == "_rebuild_parameter" || name == "_rebuild_parameter_with_state")) ||
        (module == "torch._tensor" && name == "_rebuild_from_type_v2") || (module == "torch" && name == "Tensor") ||
        (module == "torch.nn.parameter" && (name == "Parameter" || name == "Buffer")) ||
        ((module == "builtins" || module == "__builtin__") && name == "set");
    if (known) return push(std::move(value));
    if (options_.unknown_globals == UnknownGlobals::ignore) return push(of(Kind::opaque));
    return error(Errc::unsupported, "refers to " + detail::quoted(full_name(value)) +
                                        ", which tensors do not need; nothing was run. Save the model's state_dict alone");
  }

  Status persistent_id(const PickleValue& id);
  Result<std::uint32_t> rebuild(const PickleValue& function, const PickleValue& arguments, int depth);
  Result<std::uint32_t> rebuild_tensor(const PickleValue& function, const PickleValue& arguments);
  Status set_items(PickleValue& dict, std::span<const std::uint32_t> items) {
    if (items.size() % 2 != 0) return corrupt("a key without a value");
    if (dict.kind == Kind::dict) dict.children.insert(dict.children.end(), items.begin(), items.end());
    return {};
  }

  Status execute(unsigned char code);

  const std::string& file_;
  const TorchReadOptions& options_;
  std::string_view text_;
  std::size_t at_ = 0;
  std::size_t instruction_ = 0;
  std::int64_t steps_ = 0;
  std::int64_t copied_ = 0;
  std::deque<PickleValue> values_;  // stays in place while it grows
  std::vector<std::uint32_t> stack_;
  std::vector<std::size_t> marks_;  // sizes of the stack
  std::unordered_map<std::uint64_t, std::uint32_t> memo_;
  std::vector<std::uint32_t> storages_;
};

inline Status PickleMachine::execute(unsigned char code) {
  switch (code) {
    case 0x80: {  // PROTO
      NORMA_TRY(const std::uint64_t version, unsigned_integer(1));
      if (version < 2 || version > 5) return error(Errc::unsupported, "pickle protocol " + std::to_string(version) + ", expected 2 to 5");
      return {};
    }
    case 0x95: {  // FRAME: the length of what follows, of use to streams only
      NORMA_TRY(const std::uint64_t length, unsigned_integer(8));
      if (length > text_.size() - at_) return corrupt("a frame longer than the pickle");
      return {};
    }
    case '(': marks_.push_back(stack_.size()); return {};
    case '0': {
      NORMA_TRY([[maybe_unused]] const auto dropped, pop());
      return {};
    }
    case '1': {
      NORMA_TRY([[maybe_unused]] const auto dropped, pop_to_mark());
      return {};
    }
    case '2': {
      if (available() == 0) return corrupt("the stack is empty");
      stack_.push_back(stack_.back());
      return {};
    }
    case 'N': return push(of(Kind::none));
    case 0x88: return push(of(Kind::boolean, 1));
    case 0x89: return push(of(Kind::boolean, 0));
    case 'J': {
      NORMA_TRY(const std::uint64_t value, unsigned_integer(4));
      return push(of(Kind::integer, static_cast<std::int32_t>(static_cast<std::uint32_t>(value))));
    }
    case 'K': {
      NORMA_TRY(const std::uint64_t value, unsigned_integer(1));
      return push(of(Kind::integer, static_cast<std::int64_t>(value)));
    }
    case 'M': {
      NORMA_TRY(const std::uint64_t value, unsigned_integer(2));
      return push(of(Kind::integer, static_cast<std::int64_t>(value)));
    }
    case 0x8a: {
      NORMA_TRY(const std::uint64_t length, unsigned_integer(1));
      return push_long(length);
    }
    case 0x8b: {
      NORMA_TRY(const std::uint64_t length, unsigned_integer(4));
      return push_long(length);
    }
    case 'G': {
      NORMA_TRY(const std::uint64_t little, unsigned_integer(8));
      std::uint64_t bits = 0;  // stored with the high byte first
      for (int i = 0; i < 8; ++i) bits |= (little >> (8 * i) & 0xff) << (56 - 8 * i);
      PickleValue value = of(Kind::real);
      value.real = std::bit_cast<double>(bits);
      return push(std::move(value));
    }
    case 'T': return push_sized(Kind::text, 4);  // text of Python 2
    case 'U': return push_sized(Kind::text, 1);
    case 'X': return push_sized(Kind::text, 4);
    case 0x8c: return push_sized(Kind::text, 1);
    case 0x8d: return push_sized(Kind::text, 8);
    case 'B': return push_sized(Kind::bytes, 4);
    case 'C': return push_sized(Kind::bytes, 1);
    case 0x8e: return push_sized(Kind::bytes, 8);
    case 0x96: return push_sized(Kind::bytes, 8);
    case ')': return push(of(Kind::tuple));
    case ']': return push(of(Kind::list));
    case '}': return push(of(Kind::dict));
    case 0x8f: return push(of(Kind::opaque));  // a set: nothing of use can be in it
    case 't':
    case 'l': {
      NORMA_TRY(auto items, pop_to_mark());
      return push(sequence(code == 't' ? Kind::tuple : Kind::list, std::move(items)));
    }
    case 0x85:
    case 0x86:
    case 0x87: {
      NORMA_TRY(auto items, pop_some(code - 0x84u));
      return push(sequence(Kind::tuple, std::move(items)));
    }
    case 'd': {
      NORMA_TRY(const auto items, pop_to_mark());
      PickleValue dict = of(Kind::dict);
      NORMA_CHECK(set_items(dict, items));
      return push(std::move(dict));
    }
    case 0x91: {
      NORMA_TRY([[maybe_unused]] const auto items, pop_to_mark());
      return push(of(Kind::opaque));
    }
    case 'a': {
      NORMA_TRY(const std::uint32_t item, pop());
      NORMA_TRY(PickleValue * list, top(Kind::list, "a list"));
      if (list->kind == Kind::list) list->children.push_back(item);
      return {};
    }
    case 'e': {
      NORMA_TRY(const auto items, pop_to_mark());
      NORMA_TRY(PickleValue * list, top(Kind::list, "a list"));
      if (list->kind == Kind::list) list->children.insert(list->children.end(), items.begin(), items.end());
      return {};
    }
    case 0x90: {
      NORMA_TRY([[maybe_unused]] const auto items, pop_to_mark());
      NORMA_TRY([[maybe_unused]] const auto* set, top(Kind::opaque, "a set"));
      return {};
    }
    case 's': {
      NORMA_TRY(const auto items, pop_some(2));
      NORMA_TRY(PickleValue * dict, top(Kind::dict, "a dictionary"));
      return set_items(*dict, items);
    }
    case 'u': {
      NORMA_TRY(const auto items, pop_to_mark());
      NORMA_TRY(PickleValue * dict, top(Kind::dict, "a dictionary"));
      return set_items(*dict, items);
    }
    case 'h':
    case 'j': {
      NORMA_TRY(const std::uint64_t slot, unsigned_integer(code == 'h' ? 1 : 4));
      return recall(slot);
    }
    case 'q':
    case 'r': {
      NORMA_TRY(const std::uint64_t slot, unsigned_integer(code == 'q' ? 1 : 4));
      return remember(slot);
    }
    case 0x94: return remember(memo_.size());
    case 'c': {
      NORMA_TRY(const std::string_view module, line());
      NORMA_TRY(const std::string_view name, line());
      return push_global(module, name);
    }
    case 0x93: {
      NORMA_TRY(const auto names, pop_some(2));
      const PickleValue& module = values_[names[0]];
      const PickleValue& name = values_[names[1]];
      if (module.kind != Kind::text || name.kind != Kind::text) return corrupt("a global whose name is not text");
      return push_global(module.text, name.text);
    }
    case 'R':
    case 0x81: {  // call, and construction: the same for everything on the list
      NORMA_TRY(const auto parts, pop_some(2));
      NORMA_TRY(const std::uint32_t made, rebuild(values_[parts[0]], values_[parts[1]], 0));
      stack_.push_back(made);
      return {};
    }
    case 'b': {  // state of an object: nothing of use can be in it
      NORMA_TRY([[maybe_unused]] const std::uint32_t state, pop());
      if (available() == 0) return corrupt("the stack is empty");
      const Kind kind = values_[stack_.back()].kind;
      if (kind != Kind::dict && kind != Kind::tensor && kind != Kind::opaque) return corrupt("BUILD of a value that has no state");
      return {};
    }
    case 'Q': {
      NORMA_TRY(const std::uint32_t id, pop());
      return persistent_id(values_[id]);
    }
    default: break;
  }
  constexpr std::string_view kDigits = "0123456789abcdef";
  return error(Errc::unsupported, std::string("instruction 0x") + kDigits[code >> 4] + kDigits[code & 15] + ", which tensors do not need");
}

inline Result<std::uint32_t> PickleMachine::rebuild(const PickleValue& function, const PickleValue& arguments, int depth) {
  if (function.kind == Kind::opaque) return make(of(Kind::opaque));
  if (function.kind != Kind::global) return corrupt("calls a value that is not a function");
  const auto refuse = [&](std::string_view what) { return corrupt("call of " + full_name(function) + ": " + std::string(what)); };
  if (arguments.kind != Kind::tuple) return refuse("arguments are not a tuple");
  const auto& items = arguments.children;
  if (is(function, "collections", "OrderedDict")) {
    PickleValue dict = of(Kind::dict);
    if (items.size() > 1) return refuse("expected at most one argument");
    if (items.size() == 1) {
      const PickleValue& pairs = values_[items[0]];
      copied_ += static_cast<std::int64_t>(pairs.children.size());  // the only instruction that makes more than it takes
      if (copied_ > options_.max_values) return error(Errc::unsupported, "more than " + std::to_string(options_.max_values) + " values");
      if (pairs.kind == Kind::dict) {
        dict.children = pairs.children;
      } else {
        if (pairs.kind != Kind::list && pairs.kind != Kind::tuple) return refuse("expected a list of pairs");
        for (const std::uint32_t pair : pairs.children) {
          if (values_[pair].children.size() != 2) return refuse("expected a list of pairs");
          dict.children.insert(dict.children.end(), values_[pair].children.begin(), values_[pair].children.end());
        }
      }
    }
    return make(std::move(dict));
  }
  if (function.text == "torch._utils") {
    if (!function.attribute.starts_with("_rebuild_parameter")) return rebuild_tensor(function, arguments);
    if (items.empty()) return refuse("no tensor");
    const Kind kind = values_[items[0]].kind;
    if (kind != Kind::tensor && kind != Kind::opaque) return refuse("not of a tensor");
    return items[0];
  }
  if (is(function, "torch._tensor", "_rebuild_from_type_v2")) {  // (function, type, arguments, state)
    if (items.size() != 4 || depth > 0) return refuse("expected four arguments");
    return rebuild(values_[items[0]], values_[items[2]], depth + 1);
  }
  if (function.attribute == "Size") {  // ((2, 3),)
    if (items.size() != 1 || values_[items[0]].kind != Kind::tuple) return refuse("expected one tuple");
    return items[0];
  }
  if (function.attribute == "device" || function.attribute == "set") return make(of(Kind::opaque));
  return refuse("it is no function that makes tensors");
}

inline Result<std::uint32_t> PickleMachine::rebuild_tensor(const PickleValue& function, const PickleValue& arguments) {
  // (storage, offset, sizes, strides), then what matters to training only; v3 adds the element type after requires_grad and hooks.
  const auto& items = arguments.children;
  const auto refuse = [&](std::string_view what) { return corrupt("call of " + full_name(function) + ": " + std::string(what)); };
  const bool untyped = function.attribute == "_rebuild_tensor_v3";
  if (items.size() < 4 || (untyped && items.size() < 7)) return refuse("too few arguments");
  const PickleValue& storage = values_[items[0]];
  const PickleValue& offset = values_[items[1]];
  if (storage.kind == Kind::opaque) return make(of(Kind::opaque));
  if (storage.kind != Kind::storage) return refuse("the first argument is no storage");
  if (offset.kind != Kind::integer || offset.integer < 0) return refuse("the offset is not a whole number from 0 up");
  PickleValue tensor = of(Kind::tensor, offset.integer);
  tensor.dtype = storage.dtype;
  if (untyped) {
    const PickleValue& type = values_[items[6]];
    const auto dtype = type.kind == Kind::global ? torch_dtype(type.attribute) : std::nullopt;
    if (!dtype) return refuse("the element type is unknown");
    tensor.dtype = *dtype;
  }
  for (const std::size_t i : {std::size_t{2}, std::size_t{3}}) {
    const PickleValue& tuple = values_[items[i]];
    if (tuple.kind != Kind::tuple || tuple.children.size() > 32) return refuse("sizes or strides are not a tuple of at most 32");
    for (const std::uint32_t child : tuple.children) {
      if (values_[child].kind != Kind::integer) return refuse("a size or stride is not a whole number");
      if (values_[child].integer < 0)
        return refuse((i == 2 ? "negative size " : "negative stride ") + std::to_string(values_[child].integer));
    }
  }
  if (values_[items[2]].children.size() != values_[items[3]].children.size()) return refuse("sizes and strides differ in number");
  tensor.children = {items[0], items[2], items[3]};
  return make(std::move(tensor));
}

/// ("storage", type, key, location, elements[, part]) where part is None or (key, offset, elements).
inline Status PickleMachine::persistent_id(const PickleValue& id) {
  const auto refuse = [&](std::string_view what) { return corrupt("storage: " + std::string(what)); };
  if (id.kind != Kind::tuple || id.children.size() < 5) return refuse("its description is not a tuple of at least 5");
  const auto item = [&](std::size_t i) -> const PickleValue& { return values_[id.children[i]]; };
  if (item(0).kind != Kind::text || item(0).text != "storage") return error(Errc::unsupported, "a persistent object that is no storage");
  if (item(1).kind != Kind::global) return refuse("its type is not a class");
  PickleValue storage = of(Kind::storage);
  if (item(1).attribute == "UntypedStorage") {
    storage.dtype = DType::u8;
  } else if (const auto dtype = torch_dtype(item(1).attribute); dtype && item(1).attribute.ends_with("Storage")) {
    storage.dtype = *dtype;
  } else {
    return error(Errc::unsupported, "storage type " + detail::quoted(full_name(item(1))));
  }
  if (item(2).kind != Kind::text) return refuse("its key is not text");
  if (item(4).kind != Kind::integer || item(4).integer < 0) return refuse("its size is not a whole number from 0 up");
  storage.text = item(2).text;
  storage.integer = item(4).integer;
  if (id.children.size() > 5 && item(5).kind == Kind::tuple) {
    const auto& part = item(5).children;
    if (part.size() != 3 || values_[part[0]].kind != Kind::text || values_[part[1]].kind != Kind::integer ||
        values_[part[2]].kind != Kind::integer || values_[part[1]].integer < 0 || values_[part[2]].integer < 0) {
      return refuse("the part that it is of another is not described by key, offset and size");
    }
    storage.attribute = values_[part[0]].text;
    storage.children = {part[1], part[2]};
  }
  NORMA_CHECK(push(std::move(storage)));
  storages_.push_back(stack_.back());
  return {};
}

/// From the values of a pickle to named, dense tensors.
class TorchTensorCollector {
 public:
  using Kind = PickleValue::Kind;
  using Storages = std::map<std::string, std::span<const std::byte>, std::less<>>;

  TorchTensorCollector(const PickleMachine& machine, const Storages& storages, const TorchReadOptions& options, TorchCheckpoint::State& out)
      : machine_(machine),
        storages_(storages),
        options_(options),
        out_(out),
        allowance_((std::uint64_t{1} << 26) + 4 * std::uint64_t{out.bytes.size()}) {}

  Status collect(std::uint32_t root) {
    NORMA_TRY(const std::uint32_t chosen, choose(root));
    if (chosen != root) {
      NORMA_TRY(const std::int64_t all, count_leaves(root, 0));
      NORMA_TRY(const std::int64_t inside, count_leaves(chosen, 0));
      out_.ignored += all - inside;
    }
    NORMA_CHECK(walk(chosen, {}, 0));
    std::vector<std::string_view> names;
    for (const TorchTensor& tensor : out_.tensors) names.push_back(tensor.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) return error(Errc::corrupt, "two tensors are named " + detail::quoted(*twice));
    return {};
  }

 private:
  Status error(Errc code, const std::string& what) const { return {code, "read_torch_checkpoint: '" + out_.name + "': " + what}; }

  [[nodiscard]] std::optional<std::uint32_t> child(std::uint32_t dict, std::string_view key) const {
    const PickleValue& value = machine_.value(dict);
    if (value.kind != Kind::dict) return std::nullopt;
    std::optional<std::uint32_t> found;  // the last one wins, as in Python
    for (std::size_t i = 0; i + 1 < value.children.size(); i += 2) {
      const PickleValue& name = machine_.value(value.children[i]);
      if (name.kind == Kind::text && name.text == key) found = value.children[i + 1];
    }
    return found;
  }
  [[nodiscard]] bool holds_tensors(std::uint32_t dict) const {
    const PickleValue& value = machine_.value(dict);
    for (std::size_t i = 1; value.kind == Kind::dict && i < value.children.size(); i += 2) {
      if (machine_.value(value.children[i]).kind == Kind::tensor) return true;
    }
    return false;
  }

  Result<std::uint32_t> choose(std::uint32_t root) {
    if (!options_.root.empty()) {
      std::uint32_t at = root;
      for (std::string_view rest = options_.root; !rest.empty();) {
        // A key may itself contain dots: the longest that exists is taken.
        std::size_t length = rest.size();
        std::optional<std::uint32_t> next = child(at, rest);
        while (!next) {
          length = length == 0 ? std::string_view::npos : rest.rfind('.', length - 1);
          if (length == std::string_view::npos) return error(Errc::not_found, "no dictionary " + detail::quoted(options_.root));
          next = child(at, rest.substr(0, length));
        }
        at = *next;
        rest.remove_prefix(std::min(length + 1, rest.size()));
      }
      out_.root = options_.root;
      return at;
    }
    if (!holds_tensors(root)) {
      for (const std::string_view key : {"state_dict", "model_state_dict", "model", "net", "network"}) {
        if (const auto found = child(root, key); found && holds_tensors(*found)) {
          out_.root = key;
          return *found;
        }
      }
    }
    return root;
  }

  Status enter(int depth) {
    if (depth > options_.max_depth)
      return error(Errc::corrupt, "values nested deeper than " + std::to_string(options_.max_depth) + ", or containing themselves");
    if (++visits_ > 2 * options_.max_values)
      return error(Errc::unsupported, "more than " + std::to_string(2 * options_.max_values) + " values to visit");
    return {};
  }

  Result<std::int64_t> count_leaves(std::uint32_t index, int depth) {
    NORMA_CHECK(enter(depth));
    const PickleValue& value = machine_.value(index);
    if (value.kind != Kind::dict && value.kind != Kind::list && value.kind != Kind::tuple) return std::int64_t{1};
    std::int64_t leaves = 0;
    const std::size_t step = value.kind == Kind::dict ? 2 : 1;
    for (std::size_t i = step - 1; i < value.children.size(); i += step) {
      NORMA_TRY(const std::int64_t inside, count_leaves(value.children[i], depth + 1));
      leaves += inside;
    }
    return leaves;
  }

  Status walk(std::uint32_t index, const std::string& name, int depth) {
    NORMA_CHECK(enter(depth));
    const PickleValue& value = machine_.value(index);
    const auto joined = [&](std::string_view key) { return name.empty() ? std::string(key) : name + "." + std::string(key); };
    if (value.kind == Kind::tensor) return add(value, name.empty() ? std::string("tensor") : name);
    if (value.kind == Kind::list || value.kind == Kind::tuple) {
      for (std::size_t i = 0; i < value.children.size(); ++i) NORMA_CHECK(walk(value.children[i], joined(std::to_string(i)), depth + 1));
      return {};
    }
    if (value.kind != Kind::dict) {
      ++out_.ignored;
      return {};
    }
    // A key that is set again replaces the value and keeps its place, as in Python.
    std::vector<std::pair<std::string, std::uint32_t>> members;
    std::unordered_map<std::string, std::size_t> places;
    for (std::size_t i = 0; i + 1 < value.children.size(); i += 2) {
      NORMA_CHECK(enter(depth));
      const PickleValue& key = machine_.value(value.children[i]);
      if (key.kind != Kind::text && key.kind != Kind::integer) {
        ++out_.ignored;
        continue;
      }
      if (key.kind == Kind::text && !is_utf8(key.text)) return error(Errc::corrupt, "a key is not UTF-8");
      if (static_cast<std::int64_t>(key.text.size() + name.size()) >= options_.max_name_bytes) {
        return error(Errc::unsupported, "a name longer than " + std::to_string(options_.max_name_bytes) + " bytes");
      }
      std::string text = key.kind == Kind::text ? std::string(key.text) : std::to_string(key.integer);
      const auto [place, fresh] = places.try_emplace(text, members.size());
      if (fresh) {
        members.emplace_back(std::move(text), value.children[i + 1]);
      } else {
        members[place->second].second = value.children[i + 1];
      }
    }
    for (const auto& [key, item] : members) NORMA_CHECK(walk(item, joined(key), depth + 1));
    return {};
  }

  /// The bytes of a storage, its size checked against what the pickle says.
  Result<std::span<const std::byte>> bytes_of(const PickleValue& storage, const std::string& name) const {
    const bool part = !storage.children.empty();
    const auto at = storages_.find(storage.text);
    if (at == storages_.end())
      return error(Errc::corrupt, "tensor " + detail::quoted(name) + ": storage " + detail::quoted(storage.text) + " is not in the file");
    const auto element = static_cast<std::uint64_t>(size_of(storage.dtype));
    const std::span<const std::byte> bytes = at->second;
    if (static_cast<std::uint64_t>(storage.integer) > bytes.size() / element) {
      return error(Errc::corrupt, "tensor " + detail::quoted(name) + ": storage " + detail::quoted(storage.text) + " holds " +
                                      std::to_string(bytes.size()) + " bytes, expected " + std::to_string(storage.integer) +
                                      " elements of " + std::to_string(element));
    }
    if (!part) return bytes.first(static_cast<std::size_t>(static_cast<std::uint64_t>(storage.integer) * element));
    const auto offset = static_cast<std::uint64_t>(machine_.value(storage.children[0]).integer);
    const auto count = static_cast<std::uint64_t>(machine_.value(storage.children[1]).integer);
    const auto total = static_cast<std::uint64_t>(storage.integer);
    if (offset > total || count > total - offset)
      return error(Errc::corrupt, "tensor " + detail::quoted(name) + ": its storage is a part outside of another");
    return bytes.subspan(static_cast<std::size_t>(offset * element), static_cast<std::size_t>(count * element));
  }

  Status add(const PickleValue& value, std::string name) {
    NORMA_TRY(const std::span<const std::byte> storage, bytes_of(machine_.value(value.children[0]), name));
    const auto bad = [&](const std::string& what) { return error(Errc::corrupt, "tensor " + detail::quoted(name) + ": " + what); };
    TorchTensor tensor;
    tensor.dtype = value.dtype;
    std::vector<std::int64_t> strides;
    for (const std::uint32_t size : machine_.value(value.children[1]).children) tensor.shape.push_back(machine_.value(size).integer);
    for (const std::uint32_t stride : machine_.value(value.children[2]).children) strides.push_back(machine_.value(stride).integer);

    const auto element = static_cast<std::size_t>(size_of(tensor.dtype));
    const auto available = static_cast<std::int64_t>(storage.size() / element);
    const std::int64_t count = element_count(tensor.shape);
    if (count < 0) return bad("shape " + shape_text(tensor.shape) + " has more elements than can be counted");
    if (count > 0) {
      // The last element's place, growing from the offset; division instead of products that could overflow.
      const std::string beyond = "shape " + shape_text(tensor.shape) + " with strides " + shape_text(strides) + " from element " +
                                 std::to_string(value.integer) + " reaches beyond its storage of " + std::to_string(available) +
                                 " elements";
      std::int64_t last = value.integer;
      if (last >= available) return bad(beyond);
      for (std::size_t i = 0; i < strides.size(); ++i) {
        if (strides[i] > 0 && tensor.shape[i] - 1 > (available - 1 - last) / strides[i]) return bad(beyond);
        last += (tensor.shape[i] - 1) * strides[i];
      }
      if (static_cast<std::uint64_t>(count) > std::numeric_limits<std::uint64_t>::max() / 16) return bad("too large");
      bool dense = true;
      std::int64_t expected = 1;
      for (std::size_t i = strides.size(); i-- > 0;) {
        if (tensor.shape[i] != 1 && strides[i] != expected) dense = false;
        expected *= tensor.shape[i];
      }
      if (dense) {
        tensor.bytes = storage.subspan(static_cast<std::size_t>(value.integer) * element, static_cast<std::size_t>(count) * element);
      } else {
        const std::uint64_t bytes = static_cast<std::uint64_t>(count) * element;
        if (bytes > allowance_)
          return error(Errc::unsupported, "tensor " + detail::quoted(name) + ": unpacks to far more bytes than the file holds");
        allowance_ -= bytes;
        out_.unpacked.push_back(gather(storage, element, value.integer, tensor.shape, strides, static_cast<std::size_t>(bytes)));
        tensor.bytes = out_.unpacked.back();
      }
    }
    if (static_cast<std::int64_t>(out_.tensors.size()) >= options_.max_tensors) {
      return error(Errc::unsupported, "more than " + std::to_string(options_.max_tensors) + " tensors");
    }
    tensor.name = std::move(name);
    out_.tensors.push_back(std::move(tensor));
    return {};
  }

  /// Elements in row-major order of the shape, from where the strides say.
  static std::vector<std::byte> gather(std::span<const std::byte> storage, std::size_t element, std::int64_t offset,
                                       std::span<const std::int64_t> shape, std::span<const std::int64_t> strides, std::size_t total) {
    std::vector<std::byte> out(total);
    std::vector<std::int64_t> index(shape.size(), 0);
    const std::size_t inner = shape.size() - 1;  // a tensor without dimensions is dense
    for (std::byte* to = out.data(); to != out.data() + total;) {
      std::int64_t start = offset;
      for (std::size_t i = 0; i < inner; ++i) start += index[i] * strides[i];
      const std::byte* from = storage.data() + static_cast<std::size_t>(start) * element;
      const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(strides[inner]) * static_cast<std::ptrdiff_t>(element);
      for (std::int64_t i = 0; i < shape[inner]; ++i, to += element) std::memcpy(to, from + i * step, element);
      for (std::size_t i = inner; i-- > 0;) {
        if (++index[i] < shape[i]) break;
        index[i] = 0;
      }
    }
    return out;
  }

  const PickleMachine& machine_;
  const Storages& storages_;
  const TorchReadOptions& options_;
  TorchCheckpoint::State& out_;
  std::uint64_t allowance_;  // bytes that may still be made; views that repeat elements could ask for any number
  std::int64_t visits_ = 0;
};

inline Status read_torch_zip(TorchCheckpoint::State& state, const TorchReadOptions& options) {
  const auto error = [&](Errc code, const std::string& what) {
    return Status(code, "read_torch_checkpoint: '" + state.name + "': " + what);
  };
  NORMA_TRY(const ZipArchive archive, ZipArchive::open(state.bytes, state.name));
  const ZipEntry* pickle = nullptr;
  for (const ZipEntry& entry : archive.entries()) {
    if (entry.name == "data.pkl" || (entry.name.ends_with("/data.pkl") && entry.name.find('/') == entry.name.size() - 9)) pickle = &entry;
  }
  if (pickle == nullptr) return error(Errc::unsupported, "a zip archive without data.pkl is no torch checkpoint");
  const std::string folder = pickle->name.substr(0, pickle->name.size() - 8);
  if (archive.find(folder + "constants.pkl") != nullptr) {
    return error(Errc::unsupported, "a TorchScript program, expected a checkpoint of tensors: save the state_dict instead");
  }
  const auto content = [&](const ZipEntry& entry) -> Result<std::span<const std::byte>> {
    if (entry.method == ZipMethod::stored) return archive.view(entry);
    NORMA_TRY(auto bytes, archive.read(entry));
    state.unpacked.push_back(std::move(bytes));
    return std::span<const std::byte>(state.unpacked.back());
  };
  if (const ZipEntry* order = archive.find(folder + "byteorder"); order != nullptr) {
    NORMA_TRY(const auto text, content(*order));
    if (as_text(text) != "little") return error(Errc::unsupported, "byte order " + detail::quoted(as_text(text)) + ", expected 'little'");
  }
  if (pickle->size > options.max_pickle_bytes) {
    return error(Errc::unsupported,
                 "data.pkl of " + std::to_string(pickle->size) + " bytes, the limit is " + std::to_string(options.max_pickle_bytes));
  }
  NORMA_TRY(const auto program, content(*pickle));
  PickleMachine machine(state.name, options);
  std::size_t at = 0;
  NORMA_TRY(const std::uint32_t root, machine.run(as_text(program), at));

  TorchTensorCollector::Storages storages;
  const std::string data = folder + "data/";
  for (const ZipEntry& entry : archive.entries()) {
    if (!entry.name.starts_with(data)) continue;
    NORMA_TRY(const auto bytes, content(entry));
    storages.emplace(entry.name.substr(data.size()), bytes);
  }
  return TorchTensorCollector(machine, storages, options, state).collect(root);
}

inline Status read_torch_legacy(TorchCheckpoint::State& state, const TorchReadOptions& options) {
  using Kind = PickleValue::Kind;
  const auto error = [&](Errc code, const std::string& what) {
    return Status(code, "read_torch_checkpoint: '" + state.name + "': " + what);
  };
  const std::string_view all = as_text(state.bytes);
  const std::string_view text =
      all.substr(0, static_cast<std::size_t>(std::min<std::int64_t>(static_cast<std::int64_t>(all.size()), options.max_pickle_bytes)));
  PickleMachine machine(state.name, options);
  std::size_t at = 0;
  NORMA_TRY(const std::uint32_t magic, machine.run(text, at));
  constexpr std::string_view kMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
  if (machine.value(magic).kind != Kind::big_integer || machine.value(magic).text != kMagic) {
    return error(Errc::unsupported, "a pickle, but no torch checkpoint: it does not start with torch's number");
  }
  NORMA_TRY(const std::uint32_t version, machine.run(text, at));
  if (machine.value(version).integer != 1001) {
    return error(Errc::unsupported, "format version " + std::to_string(machine.value(version).integer) + ", expected 1001");
  }
  NORMA_TRY(const std::uint32_t system, machine.run(text, at));
  const auto& about = machine.value(system).children;
  for (std::size_t i = 0; machine.value(system).kind == Kind::dict && i + 1 < about.size(); i += 2) {
    if (machine.value(about[i]).text == "little_endian" && machine.value(about[i + 1]).integer == 0) {
      return error(Errc::unsupported, "written on a big-endian machine");
    }
  }
  NORMA_TRY(const std::uint32_t root, machine.run(text, at));
  NORMA_TRY(const std::uint32_t keys, machine.run(text, at));
  if (machine.value(keys).kind != Kind::list) return error(Errc::corrupt, "the list of storages is no list");

  std::map<std::string_view, DType> types;
  for (const std::uint32_t index : machine.storages()) {
    const PickleValue& storage = machine.value(index);
    const auto [place, fresh] = types.try_emplace(storage.text, storage.dtype);
    if (!fresh && place->second != storage.dtype) return error(Errc::corrupt, "storage " + detail::quoted(storage.text) + " has two types");
  }
  TorchTensorCollector::Storages storages;
  LittleEndianReader in{state.bytes};
  for (const std::uint32_t index : machine.value(keys).children) {
    const PickleValue& key = machine.value(index);
    const auto type = types.find(key.text);
    if (key.kind != Kind::text || type == types.end())
      return error(Errc::corrupt, "storage " + detail::quoted(key.text) + " belongs to no tensor");
    const std::uint64_t count = in.at(at, 8);
    const auto element = static_cast<std::uint64_t>(size_of(type->second));
    if (!in.ok || count > (all.size() - at - 8) / element) {
      return error(Errc::corrupt, "cut short: storage " + detail::quoted(key.text) + " of " + std::to_string(count) + " elements at byte " +
                                      std::to_string(at));
    }
    storages.emplace(key.text, state.bytes.subspan(at + 8, static_cast<std::size_t>(count * element)));
    at += 8 + static_cast<std::size_t>(count * element);
  }
  if (at != all.size()) return error(Errc::corrupt, std::to_string(all.size() - at) + " bytes after the last storage");
  return TorchTensorCollector(machine, storages, options, state).collect(root);
}

inline Result<TorchCheckpoint> read_torch_state(std::shared_ptr<TorchCheckpoint::State> state, const TorchReadOptions& options) {
  const std::string_view text = as_text(state->bytes);
  if (text.starts_with("PK\x03\x04")) {
    state->format = TorchFormat::zip;
    NORMA_CHECK(read_torch_zip(*state, options));
  } else if (text.starts_with("\x80")) {
    state->format = TorchFormat::legacy;
    NORMA_CHECK(read_torch_legacy(*state, options));
  } else {
    return Status(Errc::unsupported, "read_torch_checkpoint: '" + state->name + "': neither a zip archive nor a pickle");
  }
  return TorchCheckpoint(std::move(state));
}

}  // namespace detail

/// Reads a checkpoint from a file (mapped: dense tensors are not copied).
/// Errors name the file: not_found, io_error; corrupt; unsupported (names the global, instruction, storage type or limit).
inline Result<TorchCheckpoint> read_torch_checkpoint(const std::string& path, const TorchReadOptions& options = {}) {
  auto state = std::make_shared<TorchCheckpoint::State>();
  NORMA_TRY(state->file, MappedFile::open(path, options.max_file_bytes));
  state->bytes = state->file.bytes();
  state->name = path;
  return detail::read_torch_state(std::move(state), options);
}

/// Reads a checkpoint from bytes that must outlive the result.
inline Result<TorchCheckpoint> read_torch_checkpoint_view(std::span<const std::byte> bytes, std::string_view name,
                                                          const TorchReadOptions& options = {}) {
  auto state = std::make_shared<TorchCheckpoint::State>();
  state->bytes = bytes;
  state->name = name;
  return detail::read_torch_state(std::move(state), options);
}

/// Reads a checkpoint from bytes and keeps them.
inline Result<TorchCheckpoint> read_torch_checkpoint(std::vector<std::byte>&& bytes, std::string_view name,
                                                     const TorchReadOptions& options = {}) {
  auto state = std::make_shared<TorchCheckpoint::State>();
  state->owned = std::move(bytes);
  state->bytes = state->owned;
  state->name = name;
  return detail::read_torch_state(std::move(state), options);
}

}  // namespace norma::io
