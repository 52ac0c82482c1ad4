// The operations of optimizers as torch's CUDA kernels round them: half precision is computed in
// single, and products are fused into sums where CUDA's compiler does so.
#pragma once

#include <torch/extension.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/ExpandUtils.h>
#include <ATen/ScalarOps.h>

using Stack = torch::jit::Stack;

template <typename T> using Formula = T (*)(const T* x, T value);

template <typename T> Formula<T> formula(const std::string& word) {
  static const std::unordered_map<std::string, Formula<T>> all = {
      {"add", [](const T* x, T v) { return v == 1 ? x[0] + x[1] : std::fma(v, x[1], x[0]); }},
      {"sub", [](const T* x, T v) { return v == 1 ? x[0] - x[1] : std::fma(-v, x[1], x[0]); }},
      {"mul", [](const T* x, T) { return x[0] * x[1]; }},
      {"div", [](const T* x, T) { return x[0] / x[1]; }},
      {"div by number", [](const T* x, T) { return x[0] * T(1.0 / double(x[1])); }},
      {"sqrt", [](const T* x, T) { return std::sqrt(x[0]); }},  // MKL's is not correctly rounded
      {"rsqrt", [](const T* x, T) { return 1 / std::sqrt(x[0]); }},
      {"lerp", [](const T* x, T) {
        const T weight = x[2], way = x[1] - x[0];
        return std::abs(weight) < T(.5) ? std::fma(weight, way, x[0]) : std::fma(-way, 1 - weight, x[1]);
      }},
      {"addcmul", [](const T* x, T v) {
        return v == 1 ? std::fma(x[1], x[2], x[0]) : std::fma(v, x[1] * x[2], x[0]);
      }},
      {"addcdiv", [](const T* x, T v) { return std::fma(v, x[1] / x[2], x[0]); }},
  };
  return all.at(word);
}

template <typename T>
void apply(const std::string& word, const std::vector<at::Tensor>& operands, T value, at::Tensor& out) {
  const auto of = formula<T>(word);
  std::vector<const T*> from;
  for (auto& operand : operands) from.push_back(operand.data_ptr<T>());
  T x[3], *to = out.data_ptr<T>();
  for (int64_t i = 0, n = out.numel(); i < n; ++i) {
    for (size_t k = 0; k < from.size(); ++k) x[k] = from[k][i];
    to[i] = of(x, value);
  }
}

inline bool is_number(const at::Tensor& t) { return t.unsafeGetTensorImpl()->is_wrapped_number(); }

// Do an operation on CPU tensors by its formula; false if there is none for it.
inline bool by_formula(const std::string& name, Stack* stack) {
  static const std::set<std::string> unary = {"sqrt", "rsqrt"}, binary = {"add", "sub", "mul", "div"};
  static const std::set<std::string> ternary = {"lerp", "addcmul", "addcdiv"};
  static const std::set<std::string> overloads = {"", "Tensor", "Scalar", "out", "Tensor_out", "Scalar_out"};
  const auto dot = name.find('.', 6);
  auto word = name.substr(6, dot == std::string::npos ? dot : dot - 6);  // behind "aten::"
  const auto overload = dot == std::string::npos ? "" : name.substr(dot + 1);
  const bool in_place = word.back() == '_';
  if (in_place) word.pop_back();
  const size_t count = unary.count(word) ? 1 : binary.count(word) ? 2 : ternary.count(word) ? 3 : 0;
  if (!count || !overloads.count(overload)) return false;

  std::vector<at::Tensor> operands;
  for (size_t k = 0; k < count; ++k) {
    const auto& given = (*stack)[k];
    if (!given.isTensor() && !given.isScalar()) return false;
    operands.push_back(given.isTensor() ? given.toTensor() : at::scalar_to_tensor(given.toScalar()));
    if (given.isScalar()) operands.back().unsafeGetTensorImpl()->set_wrapped_number(true);
  }
  // Tensors with dimensions decide the dtype, or else those that are no numbers.
  std::optional<at::ScalarType> dtype;
  for (bool with_dimensions : {true, false}) {
    for (auto& t : operands) {
      if (t.is_complex() || t.is_conj() || t.is_neg() || t.layout() != at::kStrided) return false;
      if (is_number(t) || (with_dimensions && t.dim() == 0)) continue;
      if (with_dimensions && dtype.value_or(t.scalar_type()) != t.scalar_type()) return false;
      dtype = dtype ? at::promoteTypes(*dtype, t.scalar_type()) : t.scalar_type();
    }
    if (dtype) break;
  }
  if (!dtype || !at::isFloatingType(*dtype)) return false;
  double value = 1;
  if (word == "add" || word == "sub" || word == "addcmul" || word == "addcdiv") {
    if (!(*stack)[count].isScalar() || (*stack)[count].toScalar().isComplex()) return false;
    value = (*stack)[count].toScalar().toDouble();
  }
  const auto working = *dtype == at::kDouble ? at::kDouble : at::kFloat;
  auto check = [&](double number) {
    TORCH_CHECK(working == at::kDouble || !std::isfinite(number) ||
                    std::abs(number) <= std::numeric_limits<float>::max(),
                "value cannot be converted to type float without overflow");
  };
  check(value);
  auto shape = operands[0].sizes().vec();
  for (auto& t : operands) {
    if (is_number(t)) check(t.item().toDouble());
    shape = at::infer_size(shape, t.sizes());
  }
  const bool to_out = overload.find("out") != std::string::npos;
  auto out = in_place ? (*stack)[0].toTensor() : to_out ? stack->back().toTensor() : at::Tensor();
  if (out.defined() && out.scalar_type() != *dtype) return false;

  if (word == "div" && is_number(operands[1])) word = "div by number";
  const auto like = operands[0];
  for (auto& t : operands) t = t.detach().to(working).expand(shape).contiguous();
  auto result = at::empty(shape, at::TensorOptions(working));
  if (working == at::kDouble) apply<double>(word, operands, value, result);
  else apply<float>(word, operands, value, result);
  if (!out.defined()) {
    const auto options = at::TensorOptions(*dtype);
    out = like.sizes() == at::IntArrayRef(shape) ? at::empty_like(like, options) : at::empty(shape, options);
  }
  if (to_out && out.sizes() != at::IntArrayRef(shape)) out.resize_(shape);
  out.copy_(result);
  stack->clear();
  stack->push_back(out);
  return true;
}
