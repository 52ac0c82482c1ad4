// Two CUDA devices on the CPU: memory of the host, operations by the CPU's kernels, streams and
// events that have nothing to wait for, and graphs that record operations.
#include <torch/extension.h>
#include <torch/library.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/SparseTensorUtils.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <functional>
#include <mutex>

#include "formulas.h"

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::Storage;

constexpr int DEVICES = 2;
constexpr auto CUDA = c10::DeviceType::CUDA;

thread_local DeviceIndex current = 0;
thread_local c10::StreamId streams[DEVICES] = {};
std::atomic<int64_t> streams_made{0}, launches{0};
bool waiting_is_an_error = false;

DeviceIndex index_of(Device device) { return device.has_index() ? device.index() : current; }

// Graphs. What is recorded is done, too, and then undone: torch needs results that look right.

using Operation = std::function<void()>;
std::vector<Operation>* capturing = nullptr;
std::vector<c10::DataPtr> of_graphs;  // memory that a graph will use again, as in its private pool

// Memory

struct Block {
  c10::DataPtr cpu;
  size_t bytes;
  DeviceIndex device;
  Block(c10::DataPtr cpu, size_t bytes, DeviceIndex device);
  ~Block();
  int64_t rounded() const { return (bytes + 511) / 512 * 512; }  // as torch's allocator
};

std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;
std::set<Block*> blocks;
int64_t allocated[DEVICES], peak[DEVICES];

Block::Block(c10::DataPtr cpu, size_t bytes, DeviceIndex device)
    : cpu(std::move(cpu)), bytes(bytes), device(device) {
  Lock lock(mutex);
  blocks.insert(this);
  peak[device] = std::max(peak[device], allocated[device] += rounded());
}

Block::~Block() {
  Lock lock(mutex);
  blocks.erase(this);
  allocated[device] -= rounded();
  if (capturing) of_graphs.push_back(std::move(cpu));
}

c10::DataPtr on_gpu(c10::DataPtr cpu, size_t bytes, DeviceIndex device) {
  void* address = cpu.get();
  auto free = [](void* block) { delete static_cast<Block*>(block); };
  return {address, new Block(std::move(cpu), bytes, device), free, Device(CUDA, device)};
}

// The memory of a storage, under another device; the storage lives as long.
c10::DataPtr shared(const Storage& storage) {
  auto free = [](void* kept) { delete static_cast<Storage*>(kept); };
  return {const_cast<void*>(storage.data()), new Storage(storage), free, Device(at::kCPU)};
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    return on_gpu(at::getCPUAllocator()->allocate(bytes), bytes, current);
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} allocator;

// Devices, streams, events

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::Stream stream(Device device, c10::StreamId id) const {
    return c10::Stream(c10::Stream::UNSAFE, Device(CUDA, index_of(device)), id);
  }
  c10::DeviceType type() const override { return CUDA; }
  Device getDevice() const override { return {CUDA, current}; }
  Device exchangeDevice(Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  void setDevice(Device device) const override {
    TORCH_CHECK(index_of(device) < DEVICES, "CUDA error: invalid device ordinal");
    current = index_of(device);
  }
  void uncheckedSetDevice(Device device) const noexcept override { current = index_of(device); }
  DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  c10::Stream getStream(Device device) const override { return stream(device, streams[index_of(device)]); }
  c10::Stream getDefaultStream(Device device) const override { return stream(device, 0); }
  c10::Stream getNewStream(Device device, int) const override { return stream(device, ++streams_made); }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override { return stream(device, ++streams_made); }
  c10::Stream exchangeStream(c10::Stream next) const override {
    const auto before = getStream(next.device());
    streams[next.device_index()] = next.id();
    return before;
  }
  void record(void** event, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<Guard*>(this);  // any address: it has been recorded
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// Random numbers are the CPU's.
struct Generator final : c10::GeneratorImpl {
  at::Generator cpu = at::detail::createCPUGenerator();
  explicit Generator(DeviceIndex device) : GeneratorImpl({CUDA, device}, DispatchKeySet(DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "not simulated"); }
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }
  Generator* clone_impl() const override {
    auto* copy = new Generator(device_.index());
    copy->cpu = cpu.clone();
    return copy;
  }
};

at::Generator& default_generator(DeviceIndex device) {
  static at::Generator all[DEVICES] = {at::make_generator<Generator>(0), at::make_generator<Generator>(1)};
  return all[device < 0 ? current : device];
}

at::Generator of_cpu(const at::Generator& generator) {
  return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->cpu;
}

struct Hooks : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return DEVICES; }
  DeviceIndex deviceCount() const override { return DEVICES; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex device) const override { current = device; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    const auto before = current;
    if (device >= 0) current = device;
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override { return exchangeDevice(device); }
  Device getDeviceFromPtr(void*) const override { return {CUDA, current}; }
  void deviceSynchronize(DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(DeviceIndex device) const override { return default_generator(device); }
  at::Generator getNewGenerator(DeviceIndex device) const override {
    return at::make_generator<Generator>(device < 0 ? current : device);
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return at::getCPUAllocator(); }
  at::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
};

// Operations: each runs on CPU tensors that share the memory of its CUDA tensors.

// Those that take tensors of several devices, and those for which the host waits.
const std::set<std::string> MIXED = {"aten::copy_", "aten::index.Tensor", "aten::index.Tensor_out",
    "aten::index_put_", "aten::_index_put_impl_", "aten::_local_scalar_dense"};
const std::set<std::string> WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::nonzero.out",
    "aten::equal", "aten::masked_select", "aten::masked_select.out", "aten::_unique2", "aten::_coalesce"};

void wait(const std::string& name) {
  TORCH_CHECK(!capturing, "CUDA error: operation not permitted when stream is capturing (", name, ")");
  TORCH_CHECK(!waiting_is_an_error, "called a synchronizing CUDA operation (", name, ")");
}

struct Call {
  std::string name;
  DeviceIndex device = -1;
  bool has_host = false;                             // a CPU tensor that is more than a number
  std::vector<std::pair<Tensor, Tensor>> tensors;    // of CUDA, of the CPU
  std::unordered_map<c10::StorageImpl*, Storage> storages;

  void look(const Tensor& t, bool written) {
    if (!t.defined()) return;
    if (!t.is_cuda()) {
      has_host |= t.is_cpu() && (t.dim() || written);
      return;
    }
    TORCH_CHECK(MIXED.count(name) || device < 0 || device == t.device().index(),
                "Expected all tensors to be on the same device, but found at least two devices, cuda:",
                int(device), " and ", t.device(), "! (", name, ")");
    if (device < 0) device = t.device().index();
  }

  Tensor to_cpu(const Tensor& t) {
    if (!t.defined() || !t.is_cuda()) return t;
    for (auto& [gpu, cpu] : tensors) if (gpu.is_same(t)) return cpu;
    Tensor made;
    if (t.is_sparse()) {
      auto* from = at::sparse::get_sparse_impl(t);
      made = at::detail::make_tensor<at::SparseTensorImpl>(DispatchKeySet(DispatchKey::SparseCPU), t.dtype());
      auto* to = at::sparse::get_sparse_impl(made);
      to->resize_(from->sparse_dim(), from->dense_dim(), t.sizes());
      to->set_indices_and_values_unsafe(to_cpu(from->indices()), to_cpu(from->values()));
      to->set_coalesced(from->coalesced());
    } else {
      const auto& storage = t.storage();
      auto found = storages.find(storage.unsafeGetStorageImpl());
      if (found == storages.end()) {
        Storage cpu({}, storage.nbytes(), shared(storage), at::getCPUAllocator(), true);
        found = storages.emplace(storage.unsafeGetStorageImpl(), cpu).first;
      }
      made = at::detail::make_tensor<c10::TensorImpl>(
          Storage(found->second), DispatchKeySet(DispatchKey::CPU), t.dtype());
      copy_layout(t, made);
    }
    tensors.emplace_back(t, made);
    return made;
  }

  Tensor to_gpu(const Tensor& t) {
    if (!t.defined() || !t.is_cpu()) return t;
    for (auto& [gpu, cpu] : tensors) if (cpu.is_same(t)) return gpu;
    if (t.is_sparse()) {
      auto made = at::detail::make_tensor<at::SparseTensorImpl>(DispatchKeySet(DispatchKey::SparseCUDA), t.dtype());
      copy_sparse(t, made);
      return made;
    }
    Storage storage;
    for (auto& [gpu, cpu] : storages) {  // a view
      if (cpu.unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl())
        storage = Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(gpu));
    }
    if (!storage) {
      const auto bytes = t.storage().nbytes();
      storage = Storage({}, bytes, on_gpu(shared(t.storage()), bytes, device), &allocator, true);
    }
    auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(DispatchKey::CUDA), t.dtype());
    copy_layout(t, made);
    return made;
  }

  static void copy_layout(const Tensor& from, const Tensor& to) {
    auto* impl = to.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(from.sizes(), from.strides(), from.storage_offset());
    if (from.is_conj()) to._set_conj(true);
    if (from.is_neg()) to._set_neg(true);
    if (is_number(from)) impl->set_wrapped_number(true);
  }

  void copy_sparse(const Tensor& from, const Tensor& to) {
    auto *cpu = at::sparse::get_sparse_impl(from), *gpu = at::sparse::get_sparse_impl(to);
    gpu->resize_(cpu->sparse_dim(), cpu->dense_dim(), from.sizes());
    gpu->set_indices_and_values_unsafe(to_gpu(cpu->indices()), to_gpu(cpu->values()));
    gpu->set_coalesced(cpu->coalesced());
  }

  // What the operation has resized.
  void follow() {
    const auto all = tensors;
    for (auto& [gpu, cpu] : all) {
      if (gpu.is_sparse()) {
        copy_sparse(cpu, gpu);
        continue;
      }
      auto* storage = gpu.storage().unsafeGetStorageImpl();
      const auto bytes = cpu.storage().nbytes();
      if (bytes != storage->nbytes() || cpu.storage().data() != storage->data()) {
        auto before = storage->set_data_ptr(on_gpu(shared(cpu.storage()), bytes, device));
        storage->set_nbytes(bytes);
        if (capturing) of_graphs.push_back(std::move(before));
      }
      if (gpu.sizes() != cpu.sizes() || gpu.strides() != cpu.strides() || gpu.storage_offset() != cpu.storage_offset())
        gpu.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
    }
  }
};

// Call a function with each tensor of a value, and put what it returns in its place.
void for_tensors(c10::IValue& value, const std::function<Tensor(const Tensor&)>& function) {
  if (value.isTensor()) {
    value = function(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(function(t));
    value = list;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const auto& t : value.toOptionalTensorVector())
      list.push_back(t ? std::optional<Tensor>(function(*t)) : std::nullopt);
    value = list;
  }
}

void run(const c10::OperatorHandle& op, const std::string& name, DispatchKey key, Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  if (key == DispatchKey::CPU && by_formula(name, stack)) return;
  op.redispatchBoxed(DispatchKeySet(key), stack);
}

Operation recorded(const c10::OperatorHandle& op, const std::string& name, DispatchKey key,
                   const Stack& arguments, const Stack& results) {
  return [=] {
    auto again = arguments;
    run(op, name, key, &again);
    at::AutoDispatchBelowADInplaceOrView below;
    for (size_t i = 0; i < results.size(); ++i) {
      std::vector<Tensor> fresh;
      for_tensors(again[i], [&](const Tensor& t) { fresh.push_back(t); return t; });
      auto kept = results[i];
      size_t k = 0;
      for_tensors(kept, [&](const Tensor& t) {
        const auto& value = fresh[k++];
        if (t.defined() && t.layout() == at::kStrided && t.data_ptr() != value.data_ptr()) t.copy_(value);
        return t;
      });
    }
  };
}

void operation(const c10::OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  const auto& schema = op.schema();
  const auto& operator_name = schema.operator_name();
  const auto& overload = operator_name.overload_name;
  Call call{overload.empty() ? operator_name.name : operator_name.name + "." + overload};
  const auto& name = call.name;
  if (name.rfind("aten::_foreach_", 0) == 0) {  // the CPU's calls an operation for each tensor
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
    return;
  }
  const bool sparse = keys.highestPriorityTypeId() == DispatchKey::SparseCUDA;
  const auto key = sparse ? DispatchKey::SparseCPU : DispatchKey::CPU;
  const auto& declared = schema.arguments();
  Stack arguments(stack->end() - declared.size(), stack->end());
  stack->resize(stack->size() - declared.size());

  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool written = declared[i].alias_info() && declared[i].alias_info()->isWrite();
    auto value = arguments[i];
    for_tensors(value, [&](const Tensor& t) { call.look(t, written); return t; });
    if (value.isDevice() && call.device < 0) call.device = index_of(value.toDevice());
  }
  TORCH_CHECK(MIXED.count(name) || !call.has_host || call.device < 0,
              "Expected all tensors to be on the same device, but found at least two devices, cuda:",
              int(call.device), " and cpu! (", name, ")");
  if (call.device < 0) call.device = current;
  if (WAITS.count(name)) wait(name);
  if (name == "aten::copy_" && arguments[0].toTensor().is_cuda() != arguments[1].toTensor().is_cuda()) {
    if (capturing || !arguments[2].toBool()) wait(name);  // non_blocking
  }
  ++launches;

  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = arguments[i];
    const bool is_divisor = i == 1 && name.rfind("aten::div", 0) == 0 && value.isTensor();
    if (is_divisor && value.toTensor().is_cpu() && value.toTensor().dim() == 0) {
      value = value.toTensor().detach().clone();  // a number to CUDA's kernel
      value.toTensor().unsafeGetTensorImpl()->set_wrapped_number(true);
    }
    for_tensors(value, [&](const Tensor& t) { return call.to_cpu(t); });
    const bool is_random = declared[i].type()->str().find("Generator") != std::string::npos;
    if (value.isDevice()) value = Device(at::kCPU);
    else if (value.isGenerator() && value.toGenerator().device().is_cuda()) value = of_cpu(value.toGenerator());
    else if (is_random && value.isNone()) value = of_cpu(default_generator(call.device));
  }
  auto results = arguments;
  run(op, name, key, &results);
  if (capturing) capturing->push_back(recorded(op, name, key, arguments, results));
  call.follow();
  for (auto& value : results) {
    for_tensors(value, [&](const Tensor& t) { return call.to_gpu(t); });
    stack->push_back(std::move(value));
  }
}

// Operations that are about memory or metadata alone.

using Layout = std::optional<at::Layout>;
DispatchKeySet dense() { return DispatchKeySet(DispatchKey::CUDA); }
at::ScalarType or_default(std::optional<at::ScalarType> dtype) {
  return dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype()));
}
c10::DeviceGuard on(std::optional<Device> device) {
  return c10::DeviceGuard(Device(CUDA, device ? index_of(*device) : current));
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, Layout, std::optional<Device> device,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  auto guard = on(device);
  return at::detail::empty_generic(size, &allocator, dense(), or_default(dtype), format);
}
Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, Layout,
                     std::optional<Device> device, std::optional<bool>) {
  auto guard = on(device);
  return at::detail::empty_strided_generic(size, stride, &allocator, dense(), or_default(dtype));
}
Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(source);
  impl->set_sizes_contiguous(size);
  impl->set_storage_offset(offset);
  if (stride.size() == size.size()) impl->set_sizes_and_strides(size, stride, offset);
  return self;
}
Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  const int64_t count = source.nbytes() / self.itemsize();
  return set_storage(self, source, 0, {count}, {1});
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}
Tensor& set_empty(Tensor& self) { return set_tensor(self, at::empty({0}, self.options())); }
bool is_set_to(const Tensor& a, const Tensor& b) {
  return a.storage().unsafeGetStorageImpl() == b.storage().unsafeGetStorageImpl() &&
         a.storage_offset() == b.storage_offset() && a.sizes() == b.sizes() && a.strides() == b.strides();
}
void record_stream(Tensor&, c10::Stream) {}

auto* sparse(const Tensor& t) { return at::sparse::get_sparse_impl(t); }
Tensor indices(const Tensor& t) { return sparse(t)->indices(); }
Tensor values(const Tensor& t) { return sparse(t)->values(); }
int64_t sparse_dim(const Tensor& t) { return sparse(t)->sparse_dim(); }
int64_t dense_dim(const Tensor& t) { return sparse(t)->dense_dim(); }
int64_t nnz(const Tensor& t) { return sparse(t)->nnz(); }
bool is_coalesced(const Tensor& t) { return sparse(t)->coalesced(); }
Tensor& set_coalesced(Tensor& t, bool value) { sparse(t)->set_coalesced(value); return t; }

// A build of torch for CUDA has kernels of its own, which these take the place of.
std::vector<c10::RegistrationHandleRAII> registered;
void register_operations() {
  auto& dispatcher = c10::Dispatcher::singleton();
  const auto simulated = c10::KernelFunction::makeFromBoxedFunction<&operation>();
  for (auto key : {DispatchKey::CUDA, DispatchKey::SparseCUDA}) {
    registered.push_back(dispatcher.registerFallback(key, simulated, "simulated"));
    for (auto& name : dispatcher.getAllOpNames()) {
      const auto op = dispatcher.findOp(name);
      if (op && op->hasKernelForDispatchKey(key))
        registered.push_back(dispatcher.registerImpl(name, key, simulated, std::nullopt, nullptr, "simulated"));
    }
  }
  static auto gpu = torch::Library(torch::Library::IMPL, "aten", DispatchKey::CUDA, __FILE__, __LINE__);
  gpu.impl("empty.memory_format", empty);
  gpu.impl("empty_strided", empty_strided);
  gpu.impl("set_.source_Storage_storage_offset", set_storage);
  gpu.impl("set_.source_Storage", set_whole_storage);
  gpu.impl("set_.source_Tensor", set_tensor);
  gpu.impl("set_", set_empty);
  gpu.impl("is_set_to", is_set_to);
  gpu.impl("record_stream", record_stream);
  gpu.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&operation>());
  static auto coo = torch::Library(torch::Library::IMPL, "aten", DispatchKey::SparseCUDA, __FILE__, __LINE__);
  coo.impl("_indices", indices);
  coo.impl("indices", indices);
  coo.impl("_values", values);
  coo.impl("values", values);
  coo.impl("sparse_dim", sparse_dim);
  coo.impl("dense_dim", dense_dim);
  coo.impl("_nnz", nnz);
  coo.impl("is_coalesced", is_coalesced);
  coo.impl("_coalesced_", set_coalesced);
  coo.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&operation>());
}

// A graph, whose operations were done while it was captured: what they did to memory is undone.
struct Graph {
  std::vector<Operation> operations;
  std::vector<std::pair<Block*, std::string>> before;

  void begin() {
    Lock lock(mutex);
    TORCH_CHECK(!capturing, "CUDA error: another stream is capturing");
    operations.clear();
    for (auto* block : blocks)
      before.emplace_back(block, std::string(static_cast<const char*>(block->cpu.get()), block->bytes));
    capturing = &operations;
  }
  void end() {
    Lock lock(mutex);
    capturing = nullptr;
    for (auto& [block, content] : before)
      if (blocks.count(block) && block->bytes == content.size())
        std::memcpy(block->cpu.mutable_get(), content.data(), content.size());
    before.clear();
  }
  void replay() {
    at::NoGradGuard no_grad;
    for (auto& operation : operations) operation();
  }
};

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  c10::SetAllocator(CUDA, &allocator, 100);
  // Torch has made its hooks already, so they get the methods of these.
  static Hooks hooks;
  std::memcpy((void*)&at::detail::getCUDAHooks(), (void*)&hooks, sizeof(void*));
  register_operations();

  namespace py = pybind11;
  m.attr("DEVICES") = DEVICES;
  py::class_<Graph>(m, "Graph")
      .def(py::init<>())
      .def("begin", &Graph::begin)
      .def("end", &Graph::end)
      .def("replay", &Graph::replay, py::call_guard<py::gil_scoped_release>())
      .def("__len__", [](const Graph& graph) { return graph.operations.size(); });
  m.def("is_capturing", [] { return capturing != nullptr; });
  m.def("record", [](py::function function) {
    auto* kept = new py::function(std::move(function));
    capturing->push_back([kept] { py::gil_scoped_acquire gil; (*kept)(); });
  });
  m.def("launches", [] { return launches.load(); });
  m.def("count_launch", [] { ++launches; });
  m.def("get_device", [] { return int(current); });
  m.def("set_device", [](int device) { if (device >= 0) Guard().setDevice(Device(CUDA, device)); });
  m.def("new_stream", [] { return int64_t(++streams_made); });
  m.def("get_stream", [](int device) { return int64_t(streams[device]); });
  m.def("set_stream", [](int device, int64_t id) { streams[device] = id; });
  m.def("allocated", [](int device) { return allocated[device]; });
  m.def("peak", [](int device) { return peak[device]; });
  m.def("reset_peak", [](int device) { peak[device] = allocated[device]; });
  m.def("default_generator", [](int device) { return default_generator(device); });
  m.def("set_waiting_is_an_error", [](bool value) { waiting_is_an_error = value; });
  m.def("waiting_is_an_error", [] { return waiting_is_an_error; });
}
