// A stand-in for a Gaudi: torch's own `hpu` device on host memory, every op computed by the CPU's kernel.
//
// Tensors are genuine `hpu` tensors, so whatever asks for their device takes the HPU's path. Two things are observed that
// a Gaudi makes expensive and a CPU hides:
//   - lazy graphs: the ops between two mark_step()s. Each sequence that differs from all before it would be compiled.
//   - host syncs: a value that is asked for on the host ends the graph and makes the host wait.
// Ops can be captured and replayed, as an HPU graph: a replay repeats the ops on the same tensors and runs no Python.
// Nothing here says anything about a Gaudi's speed, memory or numerics.
//
// Random numbers come from a generator of the device's own, so that what the host draws can be told from what the device does.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::IValue;
using c10::OperatorHandle;
using torch::jit::Stack;

constexpr auto HPU = c10::DeviceType::HPU;
const Device DEVICE(HPU, 0);

// ------------------------------------------------------------------ memory: the host's, counted

std::atomic<int64_t> bytes_in_use{0}, most_bytes_in_use{0};

struct HostMemory final : c10::Allocator {
  static void release(void* data) {
    if (data == nullptr) return;
    bytes_in_use -= static_cast<int64_t>(malloc_usable_size(data));
    c10::free_cpu(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    if (data != nullptr) {
      const int64_t used = bytes_in_use += static_cast<int64_t>(malloc_usable_size(data));
      int64_t most = most_bytes_in_use.load();
      while (used > most && !most_bytes_in_use.compare_exchange_weak(most, used)) {}
    }
    return {data, data, &release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
HostMemory host_memory;
REGISTER_ALLOCATOR(HPU, &host_memory);

// One device with one stream, on which everything has happened when it returns.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = HPU;
  c10::DeviceType type() const override { return HPU; }
  Device exchangeDevice(Device) const override { return DEVICE; }
  Device getDevice() const override { return DEVICE; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(Device) const override { return stream(); }
  c10::Stream getNewStream(Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
};
C10_REGISTER_GUARD_IMPL(HPU, Guard);

// The device's own random numbers: the CPU's algorithm, another state.
const at::Generator& generator() {
  static const at::Generator own = at::detail::createCPUGenerator();
  return own;
}

// ------------------------------------------------------------------ what is observed

struct Recorded {  // an op of a capture
  OperatorHandle op;
  std::vector<IValue> inputs, outputs;
};

// Everything below is shared: backward runs in a thread of its own.
std::recursive_mutex lock;
using Locked = std::lock_guard<std::recursive_mutex>;

std::string phase = "other";                                 // what Python says is going on
bool lazy = true;                                            // eager mode compiles every op by itself
uint64_t pending_hash = 0;                                   // the ops since the last graph's end
int64_t pending_ops = 0;
std::string pending_phase;                                   // the phase of the first of them
std::map<std::pair<std::string, uint64_t>, int64_t> graphs;  // phase and hash of each graph, and how often it ran
std::map<std::string, int64_t> events;                       // "what phase detail" and how often
std::unordered_map<int64_t, std::vector<Recorded>> captures;
int64_t capturing = 0, next_capture = 1, host_syncs = 0;     // capturing: its number, 0 for none

void count(const std::string& what, const std::string& detail) { events[what + "\t" + phase + "\t" + detail]++; }

void end_graph() {
  const Locked locked(lock);
  if (pending_ops != 0) graphs[{pending_phase, pending_hash}]++;
  pending_hash = 0;
  pending_ops = 0;
}

void host_sync(const std::string& what) {
  const Locked locked(lock);
  host_syncs++;
  count(capturing ? "sync_in_capture" : "sync", what);
  end_graph();
}

void mix(uint64_t value) { pending_hash ^= value + 0x9e3779b97f4a7c15ULL + (pending_hash << 6) + (pending_hash >> 2); }

void mix(const at::Tensor& tensor) {
  if (!tensor.defined()) return mix(7);
  mix(static_cast<uint64_t>(tensor.scalar_type()) + 131);
  mix(static_cast<uint64_t>(tensor.device().type()) + 17);
  for (const auto size : tensor.sizes()) mix(size + 1000003);
  for (const auto stride : tensor.strides()) mix(stride + 31);
  mix(static_cast<uint64_t>(tensor.storage_offset()) + 257);
}

// Shapes, dtypes, whole numbers and flags make a graph another one. Floating-point numbers don't: a learning rate changes every step.
void mix(const IValue& value) {
  if (value.isTensor()) mix(value.toTensor());
  else if (value.isTensorList()) for (const at::Tensor& tensor : value.toTensorVector()) mix(tensor);
  else if (value.isOptionalTensorList()) for (const IValue& element : value.toList()) mix(element);
  else if (value.isInt()) mix(static_cast<uint64_t>(value.toInt()));
  else if (value.isBool()) mix(static_cast<uint64_t>(value.toBool()) + 3);
  else if (value.isIntList()) for (const auto number : value.toIntVector()) mix(static_cast<uint64_t>(number) + 77);
  else if (value.isNone()) mix(static_cast<uint64_t>(11));
}

void begin_op(uint64_t op) {
  if (pending_ops++ == 0) pending_phase = phase;
  mix(op);
}

void end_op() {
  if (!lazy) end_graph();
}

// ------------------------------------------------------------------ computing on the host

thread_local int depth = 0;  // inside an op: the copies that the fallback makes are no ops of the user's
struct Inside {
  Inside() { depth++; }
  ~Inside() { depth--; }
};

// Conjugated and negated views are flags on a tensor.
at::Tensor flagged_as(const at::Tensor& tensor, at::Tensor view) {
  view._set_conj(tensor.is_conj());
  view._set_neg(tensor.is_neg());
  return view;
}

at::Tensor borrowed(const at::Tensor& tensor) {  // the same memory as a CPU tensor, for as long as `tensor` lives
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  void* data = const_cast<void*>(tensor.const_data_ptr());
  return flagged_as(tensor, at::from_blob(data, tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU)));
}

at::Tensor host_view(const at::Tensor& tensor) {  // the same, which keeps `tensor` alive
  if (tensor.is_cpu()) return tensor;
  void* data = const_cast<void*>(tensor.const_data_ptr());
  const auto owner = [tensor](void*) {};
  return flagged_as(tensor, at::from_blob(data, tensor.sizes(), tensor.strides(), owner, tensor.options().device(at::kCPU)));
}

void copy_memory(const at::Tensor& from, const at::Tensor& to) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(DispatchKey::AutocastHPU);
  borrowed(to).copy_(borrowed(from));
}

OperatorHandle op_named(const char* name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name, ""); }

// aten::convolution asks other backends for *_overrideable, which has no CPU kernel: the CPU's own takes the same arguments,
// and backward one more, the sizes of the bias.
void run_on_host(const OperatorHandle& op, Stack* stack) {
  const Inside inside;
  const std::string& name = op.schema().name();
  if (name == "aten::convolution_overrideable") {
    static const auto forward = op_named("aten::convolution");
    return at::native::cpu_fallback(forward, stack);
  }
  if (name == "aten::convolution_backward_overrideable") {
    static const auto backward = op_named("aten::convolution_backward");
    const size_t first = stack->size() - op.schema().arguments().size();
    const at::Tensor weight = (*stack)[first + 2].toTensor();
    const bool transposed = (*stack)[first + 6].toBool();
    const int64_t channels = transposed ? weight.size(1) * (*stack)[first + 8].toInt() : weight.size(0);
    stack->insert(stack->begin() + static_cast<int64_t>(first) + 3, IValue(std::vector<int64_t>{channels}));
    return at::native::cpu_fallback(backward, stack);
  }
  at::native::cpu_fallback(op, stack);
}

bool starts_with(const std::string& text, const char* beginning) { return text.rfind(beginning, 0) == 0; }

// A Gaudi can't read a CPU tensor; 0-dimensional ones stand for Python numbers, and indexing takes host indices anywhere in torch.
void check_devices(const std::string& name, const Stack& stack, size_t first) {
  if (starts_with(name, "aten::index") || starts_with(name, "aten::_index")) return;
  const auto check = [&](const at::Tensor& tensor) {
    TORCH_CHECK(!tensor.defined() || !tensor.is_cpu() || tensor.dim() == 0 || tensor.numel() == 0,
                "Expected all tensors to be on the same device, but found at least two devices, hpu:0 and cpu! (in ", name, ")");
  };
  for (size_t i = first; i < stack.size(); i++) {
    if (stack[i].isTensor()) check(stack[i].toTensor());
    else if (stack[i].isTensorList()) for (const at::Tensor& tensor : stack[i].toTensorVector()) check(tensor);
  }
}

bool has_mask_index(const Stack& stack, size_t first) {
  for (size_t i = first; i < stack.size(); i++) {
    if (!stack[i].isList() || stack[i].isTensorList()) continue;
    for (const IValue& index : stack[i].toListRef()) {
      if (index.isTensor() && index.toTensor().defined() && index.toTensor().scalar_type() == at::kBool) return true;
    }
  }
  return false;
}

// Ops whose result has as many elements as the data says: a Gaudi needs dynamic shapes for them, or a host sync.
bool has_dynamic_shape(const std::string& name, const Stack& stack, size_t first) {
  static const std::set<std::string> always{"aten::nonzero",     "aten::masked_select",      "aten::_unique2", "aten::unique_dim",
                                            "aten::bincount",    "aten::unique_consecutive", "aten::repeat_interleave"};
  static const std::set<std::string> with_mask{"aten::index", "aten::_index_put_impl_", "aten::index_put_"};
  return always.count(name) || (with_mask.count(name) && has_mask_index(stack, first));
}

// Every op that has no kernel of its own below comes here: observed, then computed by the CPU's kernel on copies.
void any_op(const OperatorHandle& op, Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const size_t first = stack->size() - arguments.size();
  const std::string& name = op.schema().name();
  const bool asks_value = name == "aten::_local_scalar_dense" || name == "aten::equal" || name == "aten::is_nonzero";
  if (asks_value) host_sync(name);
  check_devices(name, *stack, first);
  for (size_t i = 0; i < arguments.size(); i++) {
    const bool takes_generator = arguments[i].type()->str().find("Generator") != std::string::npos;
    if (takes_generator && (*stack)[first + i].isNone()) (*stack)[first + i] = generator();
  }
  int64_t capture = 0;
  std::vector<IValue> inputs;
  if (!asks_value) {
    const Locked locked(lock);
    begin_op(std::hash<std::string>{}(name + "." + op.schema().overload_name()));
    for (size_t i = first; i < stack->size(); i++) mix((*stack)[i]);
    if (has_dynamic_shape(name, *stack, first)) count(capturing ? "dynamic_in_capture" : "dynamic", name);
    capture = capturing;
    if (capture) inputs.assign(stack->begin() + static_cast<int64_t>(first), stack->end());
    end_op();
  }
  run_on_host(op, stack);
  if (capture) {
    const Locked locked(lock);
    captures[capture].push_back({op, std::move(inputs), {stack->begin() + static_cast<int64_t>(first), stack->end()}});
  }
}

// ------------------------------------------------------------------ kernels of its own: memory, copies, views

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &host_memory, c10::DispatchKeySet(DispatchKey::HPU), c10::dtype_or_default(dtype), format);
}
at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &host_memory, c10::DispatchKeySet(DispatchKey::HPU), c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (depth == 0) {
    const Locked locked(lock);
    if (to.is_cpu()) {
      if (non_blocking) end_graph();
      else host_sync("copy to the host");
    } else if (from.is_cpu()) {
      if (capturing) count("host_value_in_capture", "copy from the host");
    } else {
      static const auto op = op_named("aten::_copy_from");
      begin_op(std::hash<std::string>{}("aten::_copy_from"));
      mix(from);
      mix(to);
      if (capturing) captures[capturing].push_back({op, {from, to, non_blocking}, {}});
      end_op();
    }
  }
  copy_memory(from, to);
  return to;
}
at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Tensor as_strided(const at::Tensor& tensor, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(tensor, size, stride, offset);
}
at::Tensor view(const at::Tensor& tensor, at::IntArrayRef size) { return at::native::view(tensor, size); }
at::Tensor reshape_alias(const at::Tensor& tensor, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::_reshape_alias(tensor, size, stride);
}
at::Tensor unfold(const at::Tensor& tensor, int64_t dim, int64_t size, int64_t step) { return at::native::unfold(tensor, dim, size, step); }
at::Tensor view_as_real(const at::Tensor& tensor) { return at::native::view_as_real(tensor); }
at::Tensor view_as_complex(const at::Tensor& tensor) { return at::native::view_as_complex(tensor); }
const at::Tensor& resize(const at::Tensor& tensor, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(tensor, size, format);
}
at::Tensor& set_at(at::Tensor& tensor, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(tensor, std::move(storage), offset, size, stride);
}
at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage) {
  const auto size = static_cast<int64_t>(storage.nbytes() / tensor.dtype().itemsize());
  return at::native::set_storage_cpu_(tensor, std::move(storage), 0, {size}, {1});
}
at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& other) {
  return at::native::set_storage_cpu_(tensor, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}
at::Tensor& set_empty(at::Tensor& tensor) {
  return at::native::set_storage_cpu_(tensor, c10::Storage(c10::Storage::use_byte_size_t(), 0, &host_memory, true), 0, {0}, {1});
}

TORCH_LIBRARY_IMPL(_, HPU, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&any_op>()); }
TORCH_LIBRARY_IMPL(_, AutocastHPU, library) { library.fallback(torch::CppFunction::makeFallthrough()); }
// A copy minds the flags itself; asked to resolve them first, it would copy in order to copy.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) { library.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, library) { library.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, HPU, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("as_strided", as_strided);
  library.impl("view", view);
  library.impl("_reshape_alias", reshape_alias);
  library.impl("unfold", unfold);
  library.impl("view_as_real", view_as_real);
  library.impl("view_as_complex", view_as_complex);
  library.impl("resize_", resize);
  library.impl("set_.source_Storage_storage_offset", set_at);
  library.impl("set_.source_Storage", set_storage);
  library.impl("set_.source_Tensor", set_tensor);
  library.impl("set_", set_empty);
  library.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&any_op>());
  library.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&any_op>());
}

// ------------------------------------------------------------------ autocast: which ops get which dtype is Python's to say

at::Tensor cast(at::ScalarType dtype, const at::Tensor& tensor) {
  const bool eligible = tensor.defined() && tensor.device().type() == HPU && tensor.is_floating_point() && tensor.scalar_type() != at::kDouble;
  return eligible && tensor.scalar_type() != dtype ? tensor.to(dtype) : tensor;
}

void call_with(at::ScalarType dtype, const OperatorHandle& op, Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(DispatchKey::AutocastHPU);
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); i++) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = cast(dtype, value.toTensor());
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (at::Tensor& tensor : tensors) tensor = cast(dtype, tensor);
      value = tensors;
    }
  }
  op.callBoxed(stack);
}
void in_lower_precision(const OperatorHandle& op, Stack* stack) { call_with(at::autocast::get_autocast_dtype(HPU), op, stack); }
void in_float32(const OperatorHandle& op, Stack* stack) { call_with(at::kFloat, op, stack); }

void register_autocast(const std::string& op, bool lower_precision) {
  static torch::Library library(torch::Library::IMPL, "aten", DispatchKey::AutocastHPU, __FILE__, __LINE__);
  if (lower_precision) library.impl(op.c_str(), torch::CppFunction::makeFromBoxedFunction<&in_lower_precision>());
  else library.impl(op.c_str(), torch::CppFunction::makeFromBoxedFunction<&in_float32>());
}

// ------------------------------------------------------------------ captures

int64_t capture_begin() {
  const Locked locked(lock);
  TORCH_CHECK(!capturing, "a capture is running already");
  end_graph();
  capturing = next_capture++;
  captures[capturing];
  return capturing;
}

int64_t capture_end() {
  const Locked locked(lock);
  TORCH_CHECK(capturing, "no capture is running");
  const int64_t number = capturing;
  end_graph();
  capturing = 0;
  return static_cast<int64_t>(captures[number].size());
}

void replay(int64_t number) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(DispatchKey::AutocastHPU);
  const std::vector<Recorded>* ops;
  {
    const Locked locked(lock);
    TORCH_CHECK(!capturing, "a graph can't be replayed within a capture");
    end_graph();
    ops = &captures.at(number);
  }
  const auto put = [](const at::Tensor& to, const at::Tensor& from) {
    const bool both = to.defined() && from.defined() && to.device().type() == HPU && to.numel() != 0;
    if (both && to.const_data_ptr() != from.const_data_ptr()) copy_memory(from, to);
  };
  for (const Recorded& recorded : *ops) {
    if (recorded.outputs.empty() && recorded.op.schema().name() == "aten::_copy_from") {
      copy_memory(recorded.inputs[0].toTensor(), recorded.inputs[1].toTensor());
      continue;
    }
    Stack stack(recorded.inputs.begin(), recorded.inputs.end());
    run_on_host(recorded.op, &stack);
    for (size_t i = 0; i < recorded.outputs.size() && i < stack.size(); i++) {
      if (recorded.outputs[i].isTensor() && stack[i].isTensor()) {
        put(recorded.outputs[i].toTensor(), stack[i].toTensor());
      } else if (recorded.outputs[i].isTensorList() && stack[i].isTensorList()) {
        const auto to = recorded.outputs[i].toTensorVector(), from = stack[i].toTensorVector();
        for (size_t k = 0; k < to.size(); k++) put(to[k], from[k]);
      }
    }
  }
}

bool is_capturing() {
  const Locked locked(lock);
  return capturing != 0;
}

void forget_capture(int64_t number) {
  const Locked locked(lock);
  captures.erase(number);
}

// ------------------------------------------------------------------ what Python asks

void synchronize() { host_sync("synchronize"); }
void set_phase(const std::string& name) {
  const Locked locked(lock);
  phase = name;
}
std::string get_phase() {
  const Locked locked(lock);
  return phase;
}
void set_lazy(bool value) {
  const Locked locked(lock);
  end_graph();
  lazy = value;
}
int64_t count_host_syncs() {
  const Locked locked(lock);
  return host_syncs;
}
c10::Dict<std::string, int64_t> counted_graphs() {  // "phase<tab>hash" and how often it ran
  const Locked locked(lock);
  c10::Dict<std::string, int64_t> listed;
  for (const auto& [graph, times] : graphs) listed.insert(graph.first + "\t" + std::to_string(graph.second), times);
  return listed;
}
c10::Dict<std::string, int64_t> counted_events() {
  const Locked locked(lock);
  c10::Dict<std::string, int64_t> listed;
  for (const auto& [event, times] : events) listed.insert(event, times);
  return listed;
}
void forget_counts() {
  const Locked locked(lock);
  end_graph();
  graphs.clear();
  events.clear();
  host_syncs = 0;
}
c10::Dict<std::string, int64_t> memory() {
  c10::Dict<std::string, int64_t> bytes;
  bytes.insert("in_use", bytes_in_use.load());
  bytes.insert("most_in_use", most_bytes_in_use.load());
  return bytes;
}
void forget_peak_memory() { most_bytes_in_use = bytes_in_use.load(); }

void seed(int64_t value) {
  auto own = generator();
  const std::lock_guard<std::mutex> locked(own.mutex());
  own.set_current_seed(static_cast<uint64_t>(value));
}
int64_t initial_seed() { return static_cast<int64_t>(generator().current_seed()); }
at::Tensor random_state() { return generator().get_state(); }
void set_random_state(const at::Tensor& state) {
  auto own = generator();
  const std::lock_guard<std::mutex> locked(own.mutex());
  own.set_state(state);
}

TORCH_LIBRARY(asr_hpu, library) {
  library.def("mark_step", end_graph);
  library.def("synchronize", synchronize);
  library.def("set_phase", set_phase);
  library.def("get_phase", get_phase);
  library.def("set_lazy", set_lazy);
  library.def("count_host_syncs", count_host_syncs);
  library.def("counted_graphs", counted_graphs);
  library.def("counted_events", counted_events);
  library.def("forget_counts", forget_counts);
  library.def("memory", memory);
  library.def("forget_peak_memory", forget_peak_memory);
  library.def("capture_begin", capture_begin);
  library.def("capture_end", capture_end);
  library.def("replay", replay);
  library.def("is_capturing", is_capturing);
  library.def("forget_capture", forget_capture);
  library.def("register_autocast", register_autocast);
  library.def("seed", seed);
  library.def("initial_seed", initial_seed);
  library.def("random_state", random_state);
  library.def("set_random_state", set_random_state);
  library.def("host_view(Tensor(a) tensor) -> Tensor(a)");
}
TORCH_LIBRARY_IMPL(asr_hpu, HPU, library) { library.impl("host_view", host_view); }
TORCH_LIBRARY_IMPL(asr_hpu, CPU, library) { library.impl("host_view", host_view); }

}  // namespace

namespace at {

struct HPUHooks final : HPUHooksInterface {
  explicit HPUHooks(HPUHooksArgs = {}) {}
  void init() const override {}
  bool hasHPU() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  Device getDeviceFromPtr(void*) const override { return DEVICE; }
  const Generator& getDefaultGenerator(c10::DeviceIndex = -1) const override { return generator(); }
  Generator getNewGenerator(c10::DeviceIndex = -1) const override { return detail::createCPUGenerator(); }
};
REGISTER_HPU_HOOKS(HPUHooks);

}  // namespace at
